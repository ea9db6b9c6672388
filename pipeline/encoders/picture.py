"""Pictures as an encoder takes them: what benchmarks and other libraries call a transform."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PictureTransform:
    """The shorter side becomes ``image_px``, the centre is cropped, squares are averaged, and colours normalised.

    Resizing and cropping are torchvision's ``Resize`` (bilinear) and ``CenterCrop``, which `g2l embed` follows for
    tiles. It computes on the CPU wherever the encoder is, and can be sent to other processes.
    """

    image_px: int
    """Side of the view."""
    shrink: int
    """Side of the squares of pixels of the view that are averaged; see `shrunk`."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, picture: PIL.Image.Image) -> Tensor:
        """A picture as float32 (3, side, side) for `pipeline.encoders.encoder.Encoder.of_images`."""
        from torchvision.transforms import functional

        picture = functional.resize(picture.convert("RGB"), self.image_px)
        view = np.array(functional.center_crop(picture, self.image_px))
        constants = torch.tensor([self.mean, self.std], dtype=torch.float32)
        return normalized(torch.from_numpy(view)[None], constants, self.shrink)[0]


def normalized(
    views: Tensor, constants: Tensor, shrink: int, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Views uint8 (B, H, W, 3) as a backbone sees them: float32 (B, 3, H / shrink, W / shrink).

    Parameters
    ----------
    constants : float32 (2, 3)
        Mean and std of red, green and blue between 0 and 1.
    """
    mean, std = constants.view(2, 1, 3, 1, 1)
    # torchvision's ToTensor and Normalize, as on the model cards, to the last bit
    images = shrunk(views, shrink).permute(0, 3, 1, 2).to(torch.float32, memory_format=layout)
    return images.div_(255).sub_(mean).div_(std)


def shrunk(views: Tensor, by: int) -> Tensor:
    """Views (B, H, W, 3), uint8, to (B, H / by, W / by, 3): means of squares in integers, rounded half up.

    ``(sum + by * by // 2) // (by * by)``: the same on every device, and that of
    `pipeline.slides.resample.resample_area` where `by` is a power of two.
    """
    if by == 1:
        return views
    height, width, channels = views.shape[1:]
    squares = views.reshape(-1, height // by, by, width // by, by, channels)  # -1: an export takes any batch
    total = squares.sum(dim=(2, 4), dtype=torch.int32)
    return total.add_(by * by // 2).div_(by * by, rounding_mode="floor").to(torch.uint8)
