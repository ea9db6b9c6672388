"""What the tests of encoders share: a tiny trained encoder, its tensors, and a load that must be refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from stores.errors import G2LError

TINY = "vit_tiny_patch16_224?img_size=32&depth=2&embed_dim=24&num_heads=3&reg_tokens=4&init_values=1.0"
SWIGLU = "vit_giant_patch14_reg4_dinov2?img_size=28&depth=2&embed_dim=24&num_heads=3&mlp_ratio=5.33334&init_values=1.0"
State = dict[str, Tensor]


def make_views(count: int = 3, side: int = 32) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def trained_encoder() -> Encoder:
    """An encoder whose every tensor is distinct from every start that timm gives."""
    return shaken(load_encoder(TINY, random_weights=1))


def shaken(encoder: Encoder) -> Encoder:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return encoder


def state_of(encoder: Encoder) -> State:
    return {name: value.clone() for name, value in encoder.backbone.state_dict().items()}


def refusal(spec: str, weights: Path | None = None, random_weights: int | None = None) -> str:
    """The message with which `load_encoder` refuses, which must be one line."""
    with pytest.raises(G2LError) as caught:
        load_encoder(spec, weights=weights, random_weights=random_weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "any.safetensors")
    return folder / "any.safetensors"


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}
