"""Read patches and thumbnails of one slide, and never invent pixels."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide

from pipeline.slides.resample import resample_area
from pipeline.slides.slide import ReadPlan, SlideInfo, first_words, open_slide
from pipeline.slides.tiff import TileReader
from stores.errors import ReadError, SlideError


def flatten(region: Any, background: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """RGBA of OpenSlide to RGB (h, w, 3): transparent means never scanned and becomes `background`."""
    rgba = np.asarray(region)
    alpha = rgba[:, :, 3:4].astype(np.uint32)
    if int(alpha.min()) == 255:
        return np.ascontiguousarray(rgba[:, :, :3])
    mixed = rgba[:, :, :3] * alpha + np.array(background, np.uint32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def background_of(slide: openslide.OpenSlide) -> tuple[int, int, int]:
    """The colour of what was never scanned: the slide's own property, or white."""
    text = slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


class PatchReader:
    """Reads patches of one slide; one reader a thread. Pixels are OpenSlide's, whoever decodes them.

    OpenSlide's errors latch: after one failure every later call on the handle fails. So a failed read
    is tried once more on a new handle, and a handle that failed is never used again.
    """

    def __init__(self, path: Path, plan: ReadPlan) -> None:
        self.plan = plan
        self._path = path
        self._tiles = TileReader.open(path, plan.level)
        self._slide: openslide.OpenSlide | None = None
        self._background = 255, 255, 255

    def read(self, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        """The patch at a level-0 position, uint8 (size_px, size_px, 3).

        Raises
        ------
        ReadError
            When two attempts failed. Never returns invented pixels.
        """
        try:
            return self._read(x_px0, y_px0)
        except (openslide.OpenSlideError, SlideError):
            self._drop_handle()
        try:
            return self._read(x_px0, y_px0)
        except (openslide.OpenSlideError, SlideError) as error:
            self._drop_handle()
            raise ReadError(
                f"{self._path.name} at {x_px0},{y_px0}: {first_words(error, self._path)}"
            ) from None

    def _read(self, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        side = self.plan.read_px
        pixels = None if self._tiles is None else self._tiles.read(x_px0, y_px0, side, side)
        if pixels is None:
            pixels = self._by_openslide(x_px0, y_px0, side)
        return pixels if side == self.plan.size_px else resample_area(pixels, self.plan.size_px)

    def _by_openslide(self, x_px0: int, y_px0: int, side: int) -> npt.NDArray[np.uint8]:
        if self._slide is None:
            self._slide = open_slide(self._path)
            self._background = background_of(self._slide)
        return flatten(
            self._slide.read_region((x_px0, y_px0), self.plan.level, (side, side)), self._background
        )

    def _drop_handle(self) -> None:
        if self._slide is not None:
            self._slide.close()
            self._slide = None

    def close(self) -> None:
        """Close the file."""
        self._drop_handle()
        if self._tiles is not None:
            self._tiles.close()
            self._tiles = None


def read_thumbnail(info: SlideInfo, mpp: float) -> npt.NDArray[np.uint8]:
    """The whole slide at about `mpp`, uint8 (h, w, 3), read in pieces so that memory stays bounded.

    Raises
    ------
    ReadError
        When a piece cannot be read.
    """
    import cv2

    level, width, height = _thumbnail_level(info, mpp)
    step = max(1, round(mpp / (info.mpp * info.downsamples[level])))
    out = np.empty((math.ceil(height / step), math.ceil(width / step), 3), np.uint8)
    piece = max(1, 2048 // step) * step
    with open_slide(info.path) as slide:
        background = background_of(slide)
        for y, x in _pieces(height, width, piece):
            w, h = min(piece, width - x), min(piece, height - y)
            at_px0 = (round(x * info.downsamples[level]), round(y * info.downsamples[level]))
            try:
                pixels = flatten(slide.read_region(at_px0, level, (w, h)), background)
            except openslide.OpenSlideError as error:
                raise ReadError(
                    f"{info.slide_id}: cannot be read ({first_words(error, info.path)})"
                ) from None
            small = cv2.resize(
                pixels, (math.ceil(w / step), math.ceil(h / step)), interpolation=cv2.INTER_AREA
            )
            out[y // step : y // step + small.shape[0], x // step : x // step + small.shape[1]] = small
    return out


def _thumbnail_level(info: SlideInfo, mpp: float) -> tuple[int, int, int]:
    finer = [i for i, d in enumerate(info.downsamples) if info.mpp * d <= mpp]
    level = max(finer, key=lambda i: info.downsamples[i], default=0)
    with open_slide(info.path) as slide:
        width, height = slide.level_dimensions[level]
    return level, width, height


def _pieces(height: int, width: int, piece: int) -> Iterable[tuple[int, int]]:
    return ((y, x) for y in range(0, height, piece) for x in range(0, width, piece))
