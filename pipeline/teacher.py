"""The teacher of stage one: loads an encoder for features only. Nothing of stage two imports this module."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline import devices
from pipeline.encoders import Encoder, load_encoder
from pipeline.export import weights_sha256
from pipeline.options import ExtractOptions
from stores import recipe
from stores.errors import FeatureError
from stores.features import FLOAT16_MAX

_BATCH = {"cuda": 256, "mps": 64, "cpu": 16}


@dataclass(frozen=True, slots=True)
class Teacher:
    """An encoder on its device, in its arithmetic."""

    encoder: Encoder
    device: torch.device
    dtype: torch.dtype
    dtype_reason: str
    batch_size: int
    identity: recipe.Teacher

    @torch.inference_mode()
    def launch(self, views: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Start a forward pass and return its features, (B, dim) float32 on the device.

        On CUDA this returns before the device is done; `collect` waits for it.

        Parameters
        ----------
        views : uint8 (B, crop_px, crop_px, 3)
        """
        batch = torch.from_numpy(views)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.encoder(batch).float()

    def encode(self, views: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        """Features of views (B, crop_px, crop_px, 3) as they are stored, float16 (B, dim)."""
        return collect(self.launch(views))


def collect(features: torch.Tensor) -> npt.NDArray[np.float16]:
    """Features as they are stored, float16 (B, dim).

    Raises
    ------
    FeatureError
        When a value is not finite or beyond float16.
    """
    wide: npt.NDArray[Any] = features.cpu().numpy()
    largest = np.abs(wide).max()
    if not largest <= FLOAT16_MAX:  # also true for NaN
        raise FeatureError(
            f"the teacher returned {largest:g}; features are stored as float16, at most {FLOAT16_MAX:g}: "
            "try --dtype float32, or check the weights"
        )
    return wide.astype(np.float16)


def load_teacher(options: ExtractOptions) -> Teacher:
    """Load the encoder that ``--teacher`` names onto its device."""
    device = devices.choose_device(options.device)
    dtype, reason = devices.choose_dtype(options.dtype, device)
    encoder = load_encoder(options.teacher, weights=options.weights, random_weights=options.random_weights)
    identity = recipe.Teacher(
        name=encoder.name,
        weights_sha256=weights_sha256(encoder),
        pooling=encoder.pooling,
        mean=encoder.mean,
        std=encoder.std,
        image_px=encoder.image_px,
        dim=encoder.dim,
        dtype=devices.dtype_name(dtype),
    )
    batch_size = options.batch_size or _BATCH[device.type]
    return Teacher(encoder.to(device), device, dtype, reason, batch_size, identity)
