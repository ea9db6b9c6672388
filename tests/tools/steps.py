"""Single steps of a training without a store: views and targets that a generator makes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.distill.inputs import Data
from pipeline.distill.model import Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.trainer import Trainer, make_trainer
from pipeline.encoders.load import load_encoder
from tests.tools.distill import ALONE

PX = 32
VIT = f"timm:vit_tiny_patch16_224?img_size={PX}&patch_size=8&embed_dim=24&depth=3&num_heads=2&reg_tokens=1"
DIM = 8


def a_teaching(**about: Any) -> Teaching:
    """A teacher of `DIM` numbers of mean 0 and variance 1."""
    return Teaching(DIM, np.zeros(DIM), np.ones(DIM), **about)


def a_trainer(student: str, *teachings: Teaching, **options: Any) -> Trainer:
    """What trains a student of views of `PX` px."""
    every = teachings or (a_teaching(),)
    data = SimpleNamespace(crop_px=PX, teachings=every)
    chosen = DistillOptions(student=student, random_weights=0, **options)
    return make_trainer(load_encoder(student, random_weights=0), cast(Data, data), chosen, ALONE)


def a_batch(count: int, n_teachers: int = 1, grid: int = 4, tokens: int = 0) -> tuple[Tensor, Targets]:
    """Views, and targets of each teacher: features, the first tokens of the grid, attention. Some of several miss."""
    made = torch.Generator().manual_seed(1)
    views = torch.randint(0, 256, (count, PX, PX, 3), dtype=torch.uint8, generator=made)
    every = [targets_of(count, made, grid, tokens) for _ in range(n_teachers)]
    if n_teachers == 1:
        return views, every[0]
    present = torch.ones(count, n_teachers, dtype=torch.uint8)
    present[::3, 1] = 0
    return views, replace(every[0], others=tuple(every[1:]), present=present)


def targets_of(count: int, made: torch.Generator, grid: int = 4, tokens: int = 0) -> Targets:
    """Those of a teacher of `DIM` numbers, as drawn."""
    return Targets(
        torch.randn(count, DIM, generator=made),
        torch.randn(count, tokens, DIM, generator=made),
        torch.arange(tokens).expand(count, -1),
        torch.rand(count, grid**2, generator=made),
    )


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Those of a step, by parameter."""
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
