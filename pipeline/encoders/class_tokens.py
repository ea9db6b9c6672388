"""Several class tokens in a vision transformer of timm: each looks at the patches for itself.

timm has one class token and any number of registers behind it. So the further class tokens are the first registers of
a model with more of them (timm opens C-RADIO's class tokens in the same way): stock ``timm.create_model`` builds it,
``forward_features(x)[:, :n]`` are the class tokens, and an exported folder needs no code.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.encoder import Encoder
from pipeline.encoders.presets import Pooling
from pipeline.encoders.timm_models import MAX_CLASS_TOKENS, create
from stores.errors import EncoderError

ALLOWED = "a vision transformer (ViT) of timm that embeds with a class token"


def with_class_tokens(encoder: Encoder, count: int) -> Encoder:
    """The same encoder with `count` class tokens, the new ones copies of the first, and their places too.

    Its pooling takes all class tokens, one after another. An encoder that has as many already is returned as it is.

    Raises
    ------
    EncoderError
        It is no vision transformer with a class token that timm builds, or has another number of class tokens.
    """
    if encoder.pooling == "cls-average":
        all_of_them = encoder.class_tokens * encoder.dim
        encoder = encoder.like(replace(encoder.preset, pooling="cls", dim=all_of_them), encoder.backbone)
    if encoder.class_tokens == count:
        return encoder
    if encoder.class_tokens != 1:
        raise EncoderError(
            f"{encoder.name} has {encoder.class_tokens} class tokens, not {count}; give as many teachers, or an "
            "encoder with one class token"
        )
    if count > MAX_CLASS_TOKENS:
        raise EncoderError(f"{count} class tokens; allowed are at most {MAX_CLASS_TOKENS}")
    backbone: Any = encoder.backbone
    _require_class_token(encoder)
    registers = int(backbone.num_reg_tokens) + count - 1
    pooling: Pooling = "cls+mean" if encoder.pooling == "cls+mean" else "cls"
    width = int(backbone.embed_dim)
    preset = replace(
        encoder.preset,
        kwargs={**encoder.preset.kwargs, "reg_tokens": registers},
        pooling=pooling,
        class_tokens=count,
        dim=(count + (pooling == "cls+mean")) * width,
    )
    state = dict(backbone.state_dict())
    copies = state["cls_token"].repeat(1, count - 1, 1)
    state["reg_token"] = torch.cat([copies, *([state["reg_token"]] if "reg_token" in state else [])], dim=1)
    if "pos_embed" in state and not backbone.no_embed_class:
        first, others = state["pos_embed"].split([1, state["pos_embed"].shape[1] - 1], dim=1)
        state["pos_embed"] = torch.cat([first.repeat(1, count, 1), others], dim=1)
    with torch.device("meta"):  # without memory, and without a draw from torch's random state
        wider = create(preset)
    wider.load_state_dict(state, assign=True)
    params = sum(parameter.numel() for parameter in wider.parameters())
    return encoder.like(replace(preset, params=params), wider)


def _require_class_token(encoder: Encoder) -> None:
    """Raise EncoderError unless an encoder is a plain vision transformer of timm that gives its class token."""
    from timm.models.vision_transformer import VisionTransformer

    backbone: Any = encoder.backbone
    if not encoder.preset.arch or type(backbone) is not VisionTransformer or backbone.cls_token is None:
        raise EncoderError(
            f"{encoder.name} cannot have several class tokens; allowed is {ALLOWED}, such as hibou-l, h0-mini or "
            "vit_small_patch16_224"
        )
    # without a classifier, timm returns the class token as it is
    gives_it = backbone.global_pool == "token" and isinstance(backbone.fc_norm, nn.Identity)
    if encoder.pooling == "forward" and not (gives_it and backbone.attn_pool is None):
        raise EncoderError(
            f"{encoder.name} embeds with {backbone.global_pool!r} pooling; several class tokens need {ALLOWED}: "
            "--pooling cls takes it"
        )
    if {name for name, _ in backbone.named_buffers()} - backbone.state_dict().keys():
        raise EncoderError(f"{encoder.name} computes constants that no file holds; allowed is {ALLOWED}")


def places_of(encoder: Encoder, number: int) -> Sequence[slice]:
    """Which numbers of the embedding one class token gives, with those of the mean of the patches where they belong.

    >>> from pipeline.encoders.load import load_encoder
    >>> spec = "timm:vit_tiny_patch16_224?depth=1&embed_dim=24&num_heads=3&img_size=32"
    >>> places_of(with_class_tokens(load_encoder(spec, random_weights=0), 3), 1)
    (slice(24, 48, None),)
    """
    width = encoder.dim // (encoder.class_tokens + (encoder.pooling == "cls+mean"))
    own = slice(number * width, (number + 1) * width)
    return (own, slice(encoder.dim - width, encoder.dim)) if encoder.pooling == "cls+mean" else (own,)


def part_of(features: Tensor, places: Sequence[slice]) -> Tensor:
    """Some numbers of embeddings (B, dim)."""
    parts = [features[:, place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
