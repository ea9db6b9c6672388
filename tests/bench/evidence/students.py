"""The students of the evidence, from scratch: a small CNN and a small vision transformer, on views of half the side.

A view of 224 px costs a student four times as much as one of 112 px; both average 2x2 pixels first.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.torchvision_cpu import make_importable


class _Halved(nn.Module):
    """A timm model on images of half the side; channels last, which takes two thirds of the time for the CNN."""

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__()
        make_importable()
        import timm

        self.halve = nn.AvgPool2d(2)
        model: nn.Module = timm.create_model(name, num_classes=0, **arguments)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, d)"""
        features: Tensor = self.model(self.halve(images).contiguous(memory_format=torch.channels_last))
        return features


_ABOUT = {"image_px": 224, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "licence": "Apache-2.0"}


def cnn() -> tuple[nn.Module, dict[str, Any]]:
    """MobileNetV3-Small: 1.5 M parameters, 1,024 features."""
    return _Halved("mobilenetv3_small_100"), _ABOUT


def vit() -> tuple[nn.Module, dict[str, Any]]:
    """A ViT of 4 blocks, 128-d, 7x7 tokens of 16 px, their mean as feature: 0.9 M parameters."""
    model = _Halved(
        "vit_tiny_patch16_224",
        img_size=112,
        embed_dim=128,
        depth=4,
        num_heads=4,
        global_pool="avg",
        class_token=False,
        weight_init="jax",
    )
    return model, _ABOUT
