"""The teacher of stage one: an encoder whose features are stored. Nothing of stage two imports this module."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.on_device import OnDevice, load_on_device
from pipeline.options import ExtractOptions
from stores.errors import FeatureError
from stores.features import FLOAT16_MAX


def load_teacher(options: ExtractOptions) -> OnDevice:
    """Load the encoder that ``--teacher`` names onto its device."""
    return load_on_device(
        options.teacher,
        weights=options.weights,
        random_weights=options.random_weights,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
    )


def encode(teacher: OnDevice, views: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    """Features of views (B, crop_px, crop_px, 3) as they are stored, float16 (B, dim)."""
    return collect(teacher.launch(views))


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
