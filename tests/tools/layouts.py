"""Models as labs publish them, written out: DINOv2's native encoder, and a forward pass over timm's names.

The native block follows facebookresearch/dinov2 (``layers/block.py``, ``attention.py``, ``swiglu_ffn.py``,
``models/vision_transformer.py``).
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.tools.encoders import State


class NativeBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.ls1 = nn.ParameterDict({"gamma": torch.ones(dim)})
        self.mlp = nn.ModuleDict({"w12": nn.Linear(dim, 2 * hidden), "w3": nn.Linear(hidden, dim)})
        self.ls2 = nn.ParameterDict({"gamma": torch.ones(dim)})

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = ((q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        x = x + self.ls1["gamma"] * self.attn["proj"]((weights @ v).transpose(1, 2).reshape(b, n, c))
        x1, x2 = self.mlp["w12"](self.norm2(x)).chunk(2, dim=-1)
        return x + self.ls2["gamma"] * self.mlp["w3"](nn.functional.silu(x1) * x2)


class NativeEncoder(nn.Module):
    """Class token, four registers and patch tokens after the final norm."""

    def __init__(
        self, dim: int = 1024, heads: int = 16, hidden: int = 2736, side: int = 16, depth: int = 2
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 14, 14)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, 4, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, dim))
        self.blocks = nn.ModuleList(NativeBlock(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def at_random(model: nn.Module) -> nn.Module:
    """Every tensor away from its start, so that none can be left out or exchanged unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim < 2 else 0.05
            centre = 1.0 if re.search(r"norm\d?\.weight", name) else 0.0
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def chunked(state: State, size: int = 1) -> State:
    """As DINOv2's trainer keeps blocks: in chunks of `size`, each block under its number in the whole model."""

    def moved(match: re.Match[str]) -> str:
        return f"blocks.{int(match[1]) // size}.{match[1]}."

    return {re.sub(r"^blocks\.(\d+)\.", moved, name): value for name, value in state.items()}


def forward_timm(state: State, images: Tensor, heads: int, patch: int) -> Tensor:
    """Tokens after the final norm from tensors under timm's names for vision transformers.

    Registers, layer scale, SwiGLU (gate first) and a position embedding with or without the class token are taken from
    the tensors that are there.
    """

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attention(name: str, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = linear(f"{name}.qkv", x).reshape(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (c // heads) ** 0.5).softmax(-1)
        return linear(f"{name}.proj", (weights @ v).transpose(1, 2).reshape(b, n, c))

    def mlp(name: str, x: Tensor) -> Tensor:
        hidden, wide = linear(f"{name}.fc1", x), state[f"{name}.fc2.weight"].shape[1]
        if hidden.shape[-1] == wide:
            return linear(f"{name}.fc2", functional.gelu(hidden))
        return linear(f"{name}.fc2", functional.silu(hidden[..., :wide]) * hidden[..., wide:])

    projection = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = functional.conv2d(images, *projection, stride=patch).flatten(2).transpose(1, 2)
    begin = [state["cls_token"].expand(len(x), -1, -1)]
    if "reg_token" in state:
        begin.append(state["reg_token"].expand(len(x), -1, -1))
    if state["pos_embed"].shape[1] == x.shape[1]:
        x = torch.cat([*begin, x + state["pos_embed"]], dim=1)
    else:
        x = torch.cat([*begin, x], dim=1) + state["pos_embed"]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth):
        for part, work in (("1", attention), ("2", mlp)):
            scale: Any = state.get(f"blocks.{i}.ls{part}.gamma", 1.0)
            name = f"blocks.{i}.{'attn' if part == '1' else 'mlp'}"
            x = x + scale * work(name, norm(f"blocks.{i}.norm{part}", x))
    return norm("norm", x)
