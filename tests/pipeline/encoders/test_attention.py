"""The class token's attention of the last block, against attention computed by hand from q and k."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.encoders.attention import with_attention
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from stores.errors import EncoderError
from tests.tools.encoders import make_views, shaken

H_OPTIMUS = "vit_giant_patch14_reg4_dinov2?img_size=28&depth=2&embed_dim=24&num_heads=3&init_values=1e-5"
"""H-optimus-0's class of timm, with its registers, SwiGLU and layer scale, in small; 2x2 patches."""


def made(spec: str = H_OPTIMUS) -> Encoder:
    return shaken(load_encoder(spec, random_weights=1))


def by_hand(encoder: Encoder, views: Tensor) -> Tensor:
    """Head by head and token by token, from the weights of the last block: (B, tokens) of the class token."""
    model: Any = encoder.backbone
    x = model.pos_embed.new_zeros(0)
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(encoder.normalized(views)))))
    for block in model.blocks[:-1]:
        x = block(x)
    last = model.blocks[-1]
    x = last.norm1(x)
    width, heads = x.shape[2], last.attn.num_heads
    size = width // heads
    rows = []
    for tokens in x:
        of_heads = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            q = last.attn.qkv.weight[:width][part] @ tokens[0] + last.attn.qkv.bias[:width][part]
            weight, bias = (getattr(last.attn.qkv, n)[width : 2 * width][part] for n in ("weight", "bias"))
            scores = torch.stack([q @ (weight @ token + bias) / size**0.5 for token in tokens])
            of_heads.append(torch.exp(scores) / torch.exp(scores).sum())
        rows.append(torch.stack(of_heads).mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("fused", [True, False])
@torch.inference_mode()
def test_it_is_attention_computed_by_hand(fused: bool) -> None:
    encoder, views = made(), make_views(3, 28)
    for block in encoder.backbone.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = fused
    features, tokens, found = with_attention(encoder, views)
    expected = by_hand(encoder, views)
    assert found.shape == (3, 4)
    torch.testing.assert_close(expected.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(found, expected[:, 5:], rtol=1e-4, atol=1e-6)  # class token and four registers
    assert (found.sum(dim=1) < 0.9).all()
    plain = encoder.with_tokens(views)
    assert torch.equal(features, plain[0])
    assert torch.equal(tokens, plain[1])


@pytest.mark.parametrize("spec", [H_OPTIMUS, f"{H_OPTIMUS}&qk_norm=true"])
@torch.inference_mode()
def test_it_is_what_the_block_multiplies_its_values_with(spec: str) -> None:
    """timm's own module, not fused: the softmax that goes into its dropout."""
    encoder, views = made(spec), make_views(2, 28)
    last: Any = encoder.backbone.blocks[-1].attn  # type: ignore[union-attr,index]
    last.fused_attn, seen = False, []
    last.attn_drop.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    _, _, found = with_attention(encoder, views)
    torch.testing.assert_close(found, seen[0].mean(dim=1)[:, 0, 5:], rtol=1e-5, atol=1e-7)


def test_threads_do_not_mix_and_copies_work() -> None:
    """Batches of two threads go through one teacher; the moving average is a copy of a student."""
    encoder = made()
    views = [make_views(4, 28).roll(i, dims=1) for i in range(4)]
    with torch.inference_mode():
        expected = [with_attention(encoder, part)[2] for part in views]
        assert torch.equal(with_attention(copy.deepcopy(encoder), views[0])[2], expected[0])
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.inference_mode():
            wrong.extend(
                i for _ in range(20) if not torch.equal(with_attention(encoder, views[i])[2], expected[i])
            )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_gradients_reach_the_blocks_before() -> None:
    encoder = made()
    with_attention(encoder, make_views(2, 28))[2][:, 0].sum().backward()
    first: Any = encoder.backbone.blocks[0]  # type: ignore[index]
    assert first.attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("resnet18", "has no square grid of patch tokens"),
        (
            "vit_tiny_patch16_224?img_size=32&depth=1&class_token=false&global_pool=avg",
            "no attention of a class",
        ),
        ("eva02_tiny_patch14_224?img_size=28&depth=1", "no attention of a class token that can be read"),
    ],
)
def test_encoders_without_it(spec: str, said: str) -> None:
    with pytest.raises(EncoderError, match=said):
        with_attention(load_encoder(spec, random_weights=0), make_views(2, 32))
