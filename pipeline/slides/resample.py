"""Area resampling in integers: the same bits on every machine."""

import functools
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

RESAMPLING = "area-integer-1"
"""Its name in the recipe."""
_FIXED_ONE = 1 << 14  # weights of a target pixel sum to this
_ROWS = 32  # at a time: what they take stays in the processor's cache


@functools.lru_cache(maxsize=8)
def area_weights(source_px: int, target_px: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Which source pixels each target pixel covers, and how much, in 1/16384.

    Returns
    -------
    index : int64 (target_px, taps)
    weight : int32 (target_px, taps)
        Sums to 16384 in every row; the rounding is settled on the largest weight.
    """
    taps = math.ceil(source_px / target_px) + 1
    index = np.empty((target_px, taps), np.int64)
    weight = np.empty((target_px, taps), np.int32)
    for i in range(target_px):
        # exact rational arithmetic in units of 1/target_px source pixels
        start, stop = i * source_px, (i + 1) * source_px
        cells = [start // target_px + k for k in range(taps)]
        cover = [max(0, min(stop, (c + 1) * target_px) - max(start, c * target_px)) for c in cells]
        row = [(2 * c * _FIXED_ONE + source_px) // (2 * source_px) for c in cover]
        row[cover.index(max(cover))] += _FIXED_ONE - sum(row)
        index[i] = np.minimum(cells, source_px - 1)
        weight[i] = row
    return index, weight


def resample_area(image: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.uint8]:
    """Average an image down to a square of `size_px`.

    Parameters
    ----------
    image : uint8 (h, w, 3)
        h and w >= size_px, each scaled by its own factor.

    Returns
    -------
    uint8 (size_px, size_px, 3)
    """
    height, width = image.shape[:2]
    if height == width == 2 * size_px:
        return _halved(image)
    # rows first, keeping 5 fractional bits: 255 * 2^5 * 2^14 < 2^31
    rows = _weighted(image.reshape(height, -1), *area_weights(height, size_px), shift=9, dtype=np.uint16)
    turned = cv2.transpose(rows.reshape(size_px, width, 3)).reshape(width, -1)
    columns = _weighted(turned, *area_weights(width, size_px), shift=19, dtype=np.uint8)
    return np.asarray(cv2.transpose(columns.reshape(size_px, size_px, 3)), np.uint8)


def to_size(image: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.uint8]:
    """`resample_area`, or the image itself where it is a square of that size."""
    return image if image.shape[:2] == (size_px, size_px) else resample_area(image, size_px)


def _halved(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What the weights come to for half the side: four pixels and 2, divided by 4."""
    rows: Any = cv2.transpose(np.add(image[0::2], image[1::2], dtype=np.uint16))
    total = rows[0::2] + rows[1::2]
    total += 2
    total >>= 2
    return np.asarray(cv2.transpose(total.astype(np.uint8)), np.uint8)


def _weighted(
    image: npt.NDArray[Any],
    index: npt.NDArray[np.int64],
    weight: npt.NDArray[np.int32],
    shift: int,
    dtype: type[np.unsignedinteger[Any]],
) -> npt.NDArray[Any]:
    """Weighted sums of rows, divided by ``2**shift`` and rounded half up, (len(index), image.shape[1])."""
    out = np.empty((len(index), image.shape[1]), dtype)
    total, product = np.empty((2, _ROWS, image.shape[1]), np.int32)
    taps = np.flatnonzero(weight.any(axis=0)).tolist()
    for start in range(0, len(index), _ROWS):
        part = slice(start, min(start + _ROWS, len(index)))
        here, one = (array[: part.stop - start] for array in (total, product))
        here[:] = 1 << (shift - 1)
        for tap in taps:
            np.multiply(image[index[part, tap]], weight[part, tap, None], out=one, dtype=np.int32)
            here += one
        here >>= shift
        out[part] = here
    return out
