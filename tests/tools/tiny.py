"""Encoders small enough for tests, loaded as ``tests.tools.tiny:teacher`` and ``tests.tools.tiny:student``."""

import time

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Pooled responses of one strided convolution."""

    mean = (0.7, 0.6, 0.7)
    std = (0.2, 0.2, 0.2)
    image_px = 224
    mpp = 0.5

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.stem = nn.Conv2d(3, 8, 16, 16)
        self.head = nn.Linear(16, dim)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images).flatten(2).tanh()
        return self.head(torch.cat([maps.mean(2), maps.std(2)], dim=1))


class Loud(Tiny):
    """As `Tiny`, with activations beyond 65504, which a later module hides."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.loud = nn.Linear(dim, dim)
        with torch.no_grad():
            self.loud.weight.mul_(3e5)  # up to 61,000: float16 holds the weights

    def forward(self, images: Tensor) -> Tensor:
        return (self.loud(super().forward(images)).float() / 1e5).tanh()


def loud_teacher() -> nn.Module:
    """24-d features that float16 cannot compute."""
    return Loud(24)


def teacher() -> nn.Module:
    """24-d features."""
    return Tiny(24)


def student() -> nn.Module:
    """12-d features."""
    return Tiny(12)


class Slow(Tiny):
    """As `Tiny`, and waits, so that there is time to interrupt it."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.03)
        return super().forward(images)


def slow_student() -> nn.Module:
    """12-d features, 30 ms a batch."""
    return Slow(12)


def teacher_of_64_px() -> nn.Module:
    """24-d features of views of 64 px."""
    made = Tiny(24)
    made.image_px = 64
    return made


def student_of_64_px() -> nn.Module:
    """12-d features of views of 64 px."""
    made = Tiny(12)
    made.image_px = 64
    return made


def teacher_of_96_px() -> nn.Module:
    """24-d features of views of 96 px."""
    made = Tiny(24)
    made.image_px = 96
    return made


def student_of_32_px() -> nn.Module:
    """12-d features of views of 32 px."""
    made = Tiny(12)
    made.image_px = 32
    return made
