"""How much the class token of a vision transformer looks at each patch, in its last block.

timm's attention computes this inside a fused kernel, which hands it to nobody. So the input of the last attention is
noted while the encoder runs, and queries and keys are made from it once more: for one block of many, and for the query
of the class token alone.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.encoder import Encoder, token_grid
from stores.errors import EncoderError

ATTENTION_RULE = "attention-1"
"""Its name in the recipe: last block, class token to patches, mean over heads after softmax."""


class _Noted(threading.local):
    """What a thread waits for, and what came: batches of several threads go through one encoder at a time."""

    wanted: nn.Module | None = None
    found: Tensor | None = None


_NOTED = _Noted()


def _note(module: nn.Module, args: tuple[Any, ...]) -> None:
    if _NOTED.wanted is module:
        _NOTED.found = args[0]


def last_attention(encoder: Encoder) -> nn.Module:
    """The attention of the last block.

    Raises
    ------
    EncoderError
        The backbone is no vision transformer of timm with a class token and plain attention.
    """
    token_grid(encoder)
    from timm.layers import Attention

    backbone: Any = encoder.backbone
    blocks = getattr(backbone, "blocks", None)
    attention = getattr(blocks[-1], "attn", None) if blocks is not None and len(blocks) else None
    if getattr(backbone, "cls_token", None) is None or type(attention) is not Attention:
        raise EncoderError(
            f"{encoder.name} has no attention of a class token that can be read; attention needs a vision transformer "
            "(ViT) of timm with a class token and plain attention"
        )
    return attention


def require_attention(encoder: Encoder) -> None:
    """Raise EncoderError unless there is a last attention, and one class token whose attention is meant."""
    last_attention(encoder)
    if encoder.class_tokens > 1:
        raise EncoderError(
            f"{encoder.name} has {encoder.class_tokens} class tokens, and the attention of one is kept; take an "
            "encoder with one, or leave --attention out"
        )


def with_attention(encoder: Encoder, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `with_attentions`, with the attention of the first class token alone: (B, grid * grid)."""
    features, tokens, attention = with_attentions(encoder, views)
    return features, tokens, attention[:, 0]


def with_attentions(encoder: Encoder, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features of views, their patch tokens, and the attention of each class token to the patches, from one pass.

    Returns
    -------
    tuple
        What `Encoder.with_tokens` returns, and float32 (B, class tokens, grid * grid): the mean over heads of
        ``softmax(q k^T / sqrt(d))`` in the row of a class token and the columns of the patches. The sum of a row is
        at most 1: class tokens and registers have the rest.

    Raises
    ------
    EncoderError
        See `last_attention`.
    """
    attention: Any = last_attention(encoder)
    with _noting(attention):
        features, tokens = encoder.with_tokens(views)
        found = _NOTED.found
    assert found is not None
    first = int(encoder.backbone.num_prefix_tokens)  # type: ignore[arg-type]
    return features, tokens, class_attention(attention, found, encoder.class_tokens)[:, :, first:]


@contextlib.contextmanager
def _noting(attention: nn.Module) -> Iterator[None]:
    if _note not in attention._forward_pre_hooks.values():
        attention.register_forward_pre_hook(_note)
    _NOTED.wanted = attention
    try:
        yield
    finally:
        _NOTED.wanted = _NOTED.found = None


def class_attention(attention: Any, tokens: Tensor, first: int = 1) -> Tensor:
    """Attention of the `first` of `tokens` (B, N, width) to all, mean over heads, rows sum to 1.

    float32 (B, first, N).
    """
    count, n = tokens.shape[:2]
    qkv = attention.qkv(tokens).reshape(count, n, 3, attention.num_heads, attention.head_dim)
    q, k = qkv[:, :first, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2)  # (B, heads, first or N, head_dim)
    q, k = attention.q_norm(q), attention.k_norm(k)
    with torch.autocast(tokens.device.type, enabled=False):
        logits = (q.float() * attention.scale) @ k.float().transpose(2, 3)
        return logits.softmax(dim=-1).mean(dim=1)
