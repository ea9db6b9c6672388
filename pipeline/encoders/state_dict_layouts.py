"""Layouts in which labs publish DINOv2 encoders, brought to the one that timm converts: names of tensors only.

``native``        facebookresearch/dinov2 as it is deployed: ``blocks.3.mlp.w12.weight``, ``register_tokens``
``chunked``       the same as DINOv2 trains it, blocks in chunks: ``blocks.1.3.mlp.w12.weight``
``transformers``  Dinov2WithRegistersModel: ``encoder.layer.3.attention.attention.query.weight`` in files, and
                  ``encoder.layer.3.attention.q_proj.weight`` in the memory of version 5
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_IN_BLOCK = re.compile(r"(?P<prefix>.*?)encoder\.layer\.(?P<block>\d+)\.(?P<part>.+)\.(?P<kind>[^.]+)")
_STACKED = {
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"): "attn.qkv",
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"): "attn.qkv",
    ("mlp.gate_proj", "mlp.up_proj"): "mlp.w12",
}
"""Parts that are one matrix in the native layout, in its order; the gate comes before what it multiplies."""
_RENAMED = {
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "mlp.down_proj": "mlp.w3",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "lambda1": "gamma",
    "embeddings.mask_token": "mask_token",
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}


_IN_CHUNK = re.compile(
    r"(?P<prefix>(?:.*?\.)?)blocks\.(?P<chunk>\d+)\.(?P<block>\d+)\.(?P<part>[^.]+)(?P<rest>\..+)"
)
_BLOCK_PARTS = frozenset(["norm1", "attn", "ls1", "norm2", "mlp", "ls2"])
"""Modules with tensors in a block of DINOv2."""


def to_native(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of any of the three layouts in the native one; of any other, as it is.

    Where one of several parts to be stacked is missing, the others keep their names, so that whoever fills an
    architecture can name them.
    """
    inside = {name: match for name in state if (match := _IN_BLOCK.fullmatch(name))}
    first = next((m for m in inside.values() if any(m["part"] in parts for parts in _STACKED)), None)
    if first is None:
        return _without_chunks(state)
    native: dict[str, Tensor] = {}
    for name, value in state.items():
        if name not in inside:
            bare = name.removeprefix(first["prefix"])
            native[_RENAMED.get(bare, bare)] = value
            continue
        block, part, kind = inside[name].group("block", "part", "kind")
        parts = next((parts for parts in _STACKED if part in parts), (part,))
        whole = [name.replace(f".{part}.", f".{other}.") for other in parts]
        if len(parts) == 1:
            native[f"blocks.{block}.{_RENAMED.get(part, part)}.{_RENAMED.get(kind, kind)}"] = value
        elif not all(other in state for other in whole):
            native[name] = value
        elif part == parts[0]:
            native[f"blocks.{block}.{_STACKED[parts]}.{kind}"] = torch.cat([state[other] for other in whole])
    return native


def _without_chunks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of DINOv2's chunks under the number of their block alone; all names as they are where they are no chunks.

    DINOv2 numbers blocks through the whole model, so a number is in one chunk, and its blocks have the parts of a
    transformer. Stages of other models (EfficientNet, MobileNet, Twins) number their blocks from 0 each.
    """
    chunks: dict[tuple[str, str], str] = {}
    bare: dict[str, str] = {}
    for name in state:
        found = _IN_CHUNK.fullmatch(name)
        if found is None:
            continue
        prefix, chunk, block, part, rest = found.groups()
        if part not in _BLOCK_PARTS or chunks.setdefault((prefix, block), chunk) != chunk:
            return dict(state)
        bare[name] = f"{prefix}blocks.{block}.{part}{rest}"
    return {bare.get(name, name): value for name, value in state.items()}


def resampled(
    native: Mapping[str, Tensor], state: Mapping[str, Tensor], grid: tuple[int, int]
) -> dict[str, Tensor]:
    """Position embeddings of another grid as transformers resamples them for DINOv2 without registers: not smoothed.

    timm smooths when it makes a grid smaller (``antialias``), as DINOv2 with registers does; the features differ.

    Parameters
    ----------
    native, state
        The tensors in the native layout, and in the one of the file.
    grid : (int, int)
        Of the architecture that they are for.
    """
    plain = (
        any(name.endswith("embeddings.position_embeddings") for name in state)
        and "register_tokens" not in native
    )
    positions = native.get("pos_embed")
    if not plain or positions is None or positions.ndim != 3:
        return dict(native)
    side = math.isqrt(positions.shape[1] - 1)
    if side**2 != positions.shape[1] - 1 or grid == (side, side):
        return dict(native)
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    patches = nn.functional.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return {**native, "pos_embed": torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)}
