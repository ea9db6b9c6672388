"""Layouts in which labs publish DINOv2 encoders, brought to the one that timm converts: names of tensors only.

``native``        facebookresearch/dinov2 as it is deployed: ``blocks.3.mlp.w12.weight``, ``register_tokens``
``chunked``       the same as DINOv2 trains it, blocks in chunks: ``blocks.1.3.mlp.w12.weight``
``transformers``  Dinov2WithRegistersModel: ``encoder.layer.3.attention.attention.query.weight`` in files, and
                  ``encoder.layer.3.attention.q_proj.weight`` in the memory of version 5
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

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


def to_native(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of any of the three layouts in the native one; of any other, as it is.

    Where one of several parts to be stacked is missing, the others keep their names, so that whoever fills an
    architecture can name them.
    """
    inside = {name: match for name in state if (match := _IN_BLOCK.fullmatch(name))}
    first = next((m for m in inside.values() if any(m["part"] in parts for parts in _STACKED)), None)
    if first is None:
        return {re.sub(r"(^|\.)blocks\.\d+\.(\d+)\.", r"\1blocks.\2.", name): t for name, t in state.items()}
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
