"""Options of a short training, its first steps without a run, and whether two runs ended with the same weights."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.data.loader import Batch
from pipeline.distill import train
from pipeline.distill.inputs import open_data
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.model import Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Ranks
from pipeline.distill.trainer import Trainer, make_trainer
from pipeline.runtime.progress import Silent

VIT = "timm:vit_tiny_patch16_224?embed_dim=24&depth=1&num_heads=2&patch_size=32"


OPTIONS = DistillOptions(
    student=VIT,
    random_weights=1,
    steps=24,
    batch_size=8,
    lr=3e-3,
    val_every=10,
    checkpoint_every=8,
    threads=2,
    window=64,
)


STUDENT = "timm:vit_tiny_patch16_224?patch_size=28&depth=1&embed_dim=24&num_heads=3&reg_tokens=2"
"""A vision transformer with the grid of the teacher in `tests.tools.settings.VIT`: 8x8 patches, and registers."""
SHORT = DistillOptions(
    student=STUDENT,
    random_weights=1,
    steps=2,
    batch_size=8,
    val_views=16,
    lr=3e-3,
    threads=1,
    window=64,
    check_views="none",
)
ALONE = Ranks(0, 1, 1, torch.device("cpu"))


def made(store: Path, options: DistillOptions) -> tuple[Trainer, Batch]:
    """What trains a student on a store, and the held-out views."""
    data = open_data(store, replace(options, check_views="none"), 2, Silent())
    assert data.held_out is not None
    return make_trainer(train.load_student(options), data, options, ALONE), data.held_out


def first_of(batch: Batch, count: int) -> tuple[torch.Tensor, Targets]:
    """Views and targets of the first of a batch, as a trainer takes them."""
    return torch.from_numpy(batch.views[:count]), Targets.of(batch).rows(torch.arange(count))


def without_end(run: Path) -> None:
    """Make a finished run one that was interrupted after its last checkpoint but one."""
    (run / "summary.json").unlink()
    sorted((run / "checkpoints").glob("*.pt"))[-1].unlink()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {**load_file(run / "student/model.safetensors"), **load_file(run / "projector.safetensors")}


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every training step."""
    return [(r["step"], r["loss"]) for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]
