"""An encoder that is loaded for features only, on its device and in its arithmetic."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline import devices
from pipeline.encoders import Encoder, load_encoder
from pipeline.export import weights_sha256
from pipeline.tokens import take_tokens
from stores import recipe

_BATCH = {"cuda": 256, "mps": 64, "cpu": 16}


@dataclass(frozen=True, slots=True)
class OnDevice:
    """An encoder on its device, in its arithmetic."""

    encoder: Encoder
    device: torch.device
    dtype: torch.dtype
    dtype_reason: str
    batch_size: int
    identity: recipe.Teacher
    """What decides a feature's value; the recipe has it of a teacher."""

    @torch.inference_mode()
    def launch(self, views: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Start a forward pass and return its features, (B, dim) float32 on the device.

        On CUDA this returns before the device is done.

        Parameters
        ----------
        views : uint8 (B, crop_px, crop_px, 3)
        """
        batch = self._sent(views)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.encoder(batch).float()

    @torch.inference_mode()
    def launch_tokens(
        self, views: npt.NDArray[np.uint8], positions: npt.NDArray[np.int32]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `launch`, with the patch tokens at `positions`, (B, t, width) float32 on the device.

        Parameters
        ----------
        positions : int32 (B, t)
            In the grid of patches, counted row by row.
        """
        batch, chosen = self._sent(views), self._sent(positions).long()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features, tokens = self.encoder.with_tokens(batch)
        return features.float(), take_tokens(tokens, chosen).float()

    def _sent(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def load_on_device(
    spec: str,
    *,
    weights: Path | None,
    random_weights: int | None,
    device: str,
    dtype: str,
    batch_size: int | None,
    pooling: str | None = None,
) -> OnDevice:
    """Load the encoder that `spec` names onto a device; see `encoders.load_encoder` and `devices`."""
    where = devices.choose_device(device)
    arithmetic, reason = devices.choose_dtype(dtype, where)
    encoder = load_encoder(spec, weights=weights, random_weights=random_weights, pooling=pooling)
    identity = recipe.Teacher(
        name=encoder.name,
        weights_sha256=weights_sha256(encoder),
        pooling=encoder.pooling,
        mean=encoder.mean,
        std=encoder.std,
        image_px=encoder.image_px,
        dim=encoder.dim,
        dtype=devices.dtype_name(arithmetic),
    )
    return OnDevice(encoder.to(where), where, arithmetic, reason, batch_size or _BATCH[where.type], identity)
