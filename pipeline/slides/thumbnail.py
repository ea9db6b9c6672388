"""The whole slide as a small picture, and which parts of it were scanned."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.slides.contract import Pixels, SlideFile
from pipeline.slides.slide import SlideInfo
from stores.errors import SlideError

_PIECE_PX = 2048
_Read = Callable[[int, int, int, int, int], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Overview:
    """A slide at one resolution, for finding patches."""

    pixels: Pixels
    """uint8 (h, w, 3)."""
    scanned: npt.NDArray[np.float32]
    """How much of each of these pixels was scanned, 0 to 1, float32 (h, w)."""


def read_overview(file: SlideFile, info: SlideInfo, mpp: float) -> Overview:
    """The whole slide at about `mpp`, read in pieces so that memory stays bounded.

    Raises
    ------
    ReadError
        When a piece cannot be read.
    SlideError
        When all of the slide is transparent.
    """

    def scanned(*region: int) -> npt.NDArray[np.float32]:
        return file.scanned(*region).astype(np.float32)

    # A piece is read twice, the second time from OpenSlide's cache of decoded tiles.
    overview = Overview(*_read(info, mpp, file.region, scanned))
    if not overview.scanned.any():
        raise SlideError(
            f"{info.path.name}: every pixel of it is transparent, nothing was scanned; convert the slide to RGB "
            "without transparency, or leave it out"
        )
    return overview


def read_thumbnail(file: SlideFile, info: SlideInfo, mpp: float) -> Pixels:
    """The whole slide at about `mpp`, uint8 (h, w, 3); as `read_overview`, pixels alone."""
    (pixels,) = _read(info, mpp, file.region)
    return np.asarray(pixels, np.uint8)


def _read(info: SlideInfo, mpp: float, *readers: _Read) -> list[npt.NDArray[Any]]:
    """What each reader reads of a region, for the whole slide, averaged to about `mpp`."""
    finer = [i for i, d in enumerate(info.downsamples) if max(info.mpp_xy) * d <= mpp]
    level = max(finer, key=lambda i: info.downsamples[i], default=0)
    width, height = info.level_sizes_px[level]
    downsample = info.downsamples[level]
    across, down = (max(1, round(mpp / (own * downsample))) for own in info.mpp_xy)
    wide, high = (max(1, _PIECE_PX // step) * step for step in (across, down))
    out: list[npt.NDArray[Any]] = []
    for y, x in itertools.product(range(0, height, high), range(0, width, wide)):
        w, h = min(wide, width - x), min(high, height - y)
        for number, read in enumerate(readers):
            part = read(round(x * downsample), round(y * downsample), level, w, h)
            small = cv2.resize(
                part, (math.ceil(w / across), math.ceil(h / down)), interpolation=cv2.INTER_AREA
            )
            if number == len(out):
                shape = math.ceil(height / down), math.ceil(width / across), *small.shape[2:]
                out.append(np.empty(shape, small.dtype))
            top, left = y // down, x // across
            out[number][top : top + small.shape[0], left : left + small.shape[1]] = small
    return out
