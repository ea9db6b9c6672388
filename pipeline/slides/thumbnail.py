"""The whole slide as a small picture."""

import math
from collections.abc import Iterable

import cv2
import numpy as np

from pipeline.slides.contract import Pixels, SlideFile
from pipeline.slides.slide import SlideInfo

_PIECE_PX = 2048


def read_thumbnail(file: SlideFile, info: SlideInfo, mpp: float) -> Pixels:
    """The whole slide at about `mpp`, uint8 (h, w, 3), read in pieces so that memory stays bounded.

    Raises
    ------
    ReadError
        When a piece cannot be read.
    """
    finer = [i for i, d in enumerate(info.downsamples) if info.mpp * d <= mpp]
    level = max(finer, key=lambda i: info.downsamples[i], default=0)
    width, height = info.level_sizes_px[level]
    downsample = info.downsamples[level]
    step = max(1, round(mpp / (info.mpp * downsample)))
    out = np.empty((math.ceil(height / step), math.ceil(width / step), 3), np.uint8)
    piece = max(1, _PIECE_PX // step) * step
    for y, x in _corners(height, width, piece):
        w, h = min(piece, width - x), min(piece, height - y)
        pixels = file.region(round(x * downsample), round(y * downsample), level, w, h)
        small = cv2.resize(pixels, (math.ceil(w / step), math.ceil(h / step)), interpolation=cv2.INTER_AREA)
        out[y // step : y // step + small.shape[0], x // step : x // step + small.shape[1]] = small
    return out


def _corners(height: int, width: int, piece: int) -> Iterable[tuple[int, int]]:
    return ((y, x) for y in range(0, height, piece) for x in range(0, width, piece))
