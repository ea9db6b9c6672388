"""The teacher of stage one: its features as they are stored. Nothing of stage two imports this module."""

import numpy as np
import numpy.typing as npt
import torch

from pipeline.inference.encoding import Encoded
from pipeline.inference.loaded import OnDevice
from pipeline.runtime import devices
from stores.errors import FeatureError
from stores.format.features import FLOAT16_MAX


def encode(
    teacher: OnDevice, views: npt.NDArray[np.uint8], positions: npt.NDArray[np.int32] | None
) -> Encoded:
    """Features of views (B, crop_px, crop_px, 3) as they are stored, and tokens at `positions` (B, t) if given."""
    if positions is None:
        return Encoded(collect(teacher.launch(views), teacher.dtype))
    features, tokens = teacher.launch_tokens(views, positions)
    return Encoded(collect(features, teacher.dtype), collect(tokens, teacher.dtype))


def encode_with_attention(
    teacher: OnDevice, views: npt.NDArray[np.uint8], positions: npt.NDArray[np.int32] | None
) -> Encoded:
    """As `encode`, with the attention of the class token."""
    places = np.empty((len(views), 0), np.int32) if positions is None else positions
    features, tokens, attention = teacher.launch_attention(views, places)
    kept = None if positions is None else collect(tokens, teacher.dtype)
    return Encoded(collect(features, teacher.dtype), kept, collect(attention, teacher.dtype))


def collect(features: torch.Tensor, dtype: torch.dtype) -> npt.NDArray[np.float16]:
    """Features or tokens as they are stored, float16, in their shape.

    Parameters
    ----------
    dtype
        The arithmetic that made them, for the message.

    Raises
    ------
    FeatureError
        When a value is not finite or beyond float16.
    """
    largest = float(features.abs().max())
    if not largest <= FLOAT16_MAX:  # also true for NaN
        raise FeatureError(
            f"the teacher returned {largest:g}; features are stored as float16, at most {FLOAT16_MAX:g}: "
            f"{devices.remedy(dtype)}"
        )
    stored: npt.NDArray[np.float16] = features.half().cpu().numpy()
    return stored
