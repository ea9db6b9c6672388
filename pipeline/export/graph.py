"""What is exported: an encoder as one function of a tensor, with all that a tool would otherwise get wrong inside."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.encoders.encoder import Encoder

Views = npt.NDArray[np.uint8]


class FromViews(nn.Module):
    """uint8 (B, H, W, 3), RGB, as decoders and slide readers return it, to features float32 (B, dim)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, views: Tensor) -> Tensor:
        return self.encoder.of_images(self.encoder.normalized(views)).float()


class FromImages(nn.Module):
    """Normalised float32 (B, 3, H, W), as torchvision's ``Normalize`` returns it, to features float32 (B, dim).

    An encoder that averages squares averages levels from 0 to 255: they are restored first, so that the features are
    those of the uint8 view.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtype = next(encoder.backbone.parameters()).dtype
        constants = torch.tensor([encoder.mean, encoder.std], dtype=torch.float32)
        self.constants: Tensor
        self.register_buffer("constants", constants.view(2, 1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.encoder.shrink == 1:
            return self.encoder.of_images(images.to(self.dtype)).float()
        mean, std = self.constants
        levels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return self.encoder.of_images(self.encoder.normalized(levels.permute(0, 2, 3, 1))).float()


def graph_of(encoder: Encoder, takes: str) -> nn.Module:
    """What is exported of an encoder in eval mode; `takes` is ``uint8`` or ``float``."""
    made = FromViews(encoder) if takes == "uint8" else FromImages(encoder)
    return made.eval().requires_grad_(False)


def fed(encoder: Encoder, takes: str, views: Views) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Views as a caller of the export passes them: as they are, or normalised in NumPy."""
    return views if takes == "uint8" else normalised(views, encoder.mean, encoder.std)


def normalised(
    views: Views, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> npt.NDArray[np.float32]:
    """Views (B, H, W, 3) to normalised images (B, 3, H, W), as ``ToTensor`` and ``Normalize`` of torchvision."""
    scaled = views.astype(np.float32) / np.float32(255)
    found = (scaled - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(found.transpose(0, 3, 1, 2))


def example(encoder: Encoder, takes: str) -> Tensor:
    """A batch of two views to trace with: grey, since nothing of it may remain in the export."""
    side = encoder.image_px
    return (
        torch.full((2, side, side, 3), 128, dtype=torch.uint8)
        if takes == "uint8"
        else torch.zeros(2, 3, side, side)
    )
