"""A reader of slides that are NumPy arrays, ``.npy``: what a reader of a new format has to have, and no more."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.slides.contract import Bools, Pixels, RegionPatches
from pipeline.slides.slide import ReadPlan, SlideInfo, choose_mpp, sha256_fingerprint
from stores.errors import ReadError, SlideError


class ArrayFile:
    """Level 0 is the array, uint8 (h, w, 3), at 0.5 mpp; level 1 every second pixel of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._levels = [np.load(path)[::step, ::step] for step in (1, 2)]
        except (OSError, ValueError):
            raise SlideError(f"{path.name}: does not open") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._levels = []

    def inspect(self, slide_id: str, mpp: float | None = None, mpp_source: str = "option") -> SlideInfo:
        (height, width, _), *_ = (level.shape for level in self._levels)
        sizes = tuple((level.shape[1], level.shape[0]) for level in self._levels)
        chosen = choose_mpp(slide_id, (0.5, 0.5), mpp, mpp_source, {})
        fingerprint = sha256_fingerprint(self._path)
        return SlideInfo(
            slide_id, self._path, fingerprint, "numpy", width, height, *chosen, (1.0, 2.0), sizes
        )

    def region(self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int) -> Pixels:
        x, y = x_px0 >> level, y_px0 >> level
        found = self._levels[level][y : y + height_px, x : x + width_px]
        if found.shape != (height_px, width_px, 3):
            raise ReadError(f"{self._path.name} at {x_px0},{y_px0}: outside of the slide")
        return np.ascontiguousarray(found)

    def scanned(self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int) -> Bools:
        rows, columns = (y_px0 >> level) + np.arange(height_px), (x_px0 >> level) + np.arange(width_px)
        height, width, _ = self._levels[level].shape
        return ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))


@dataclass(frozen=True, slots=True)
class ArrayReader:
    suffixes: frozenset[str] = frozenset((".npy",))
    folder_suffixes: frozenset[str] = frozenset()

    def takes(self, path: Path) -> bool:
        return path.suffix == ".npy"

    def open(self, path: Path) -> ArrayFile:
        return ArrayFile(path)

    def patches(self, path: Path, plan: ReadPlan) -> RegionPatches:
        return RegionPatches(ArrayFile(path), plan)
