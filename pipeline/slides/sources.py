"""Where the pixels of patches come from: a slide file, or a store that keeps them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.slides.reader import PatchReader
from pipeline.slides.slide import ReadPlan
from stores.format import pixels
from stores.io.location import StoreLike


class Reader(Protocol):
    """Reads patches of one slide; belongs to one thread."""

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        """The patch, uint8 (size_px, size_px, 3); ReadError or CorruptStore when it cannot be read."""

    def close(self) -> None:
        """Release handles."""


class Source(Protocol):
    """Where the patches of one slide come from."""

    @property
    def slide_id(self) -> str:
        """The slide."""

    @property
    def key(self) -> str:
        """What a worker keeps one reader for."""

    def open(self) -> Reader:
        """A reader for one thread."""


@dataclass(frozen=True, slots=True)
class SlideSource:
    """Patches from the slide file."""

    slide_id: str
    path: Path
    plan: ReadPlan

    @property
    def key(self) -> str:
        return self.slide_id

    def open(self) -> Reader:
        return _FromSlide(PatchReader(self.path, self.plan))


@dataclass(frozen=True, slots=True)
class StoreSource:
    """Patches from the store's own pixels."""

    slide_id: str
    store: StoreLike

    @property
    def key(self) -> str:
        return self.slide_id

    def open(self) -> Reader:
        return _FromStore(pixels.open_pixels(self.store, self.slide_id))


@dataclass(frozen=True, slots=True)
class _FromSlide:
    reader: PatchReader

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        return self.reader.read(x_px0, y_px0)

    def close(self) -> None:
        self.reader.close()


class _FromStore:
    """Keeps the last chunk: rows come in runs of neighbours."""

    def __init__(self, array: pixels.SlidePixels) -> None:
        self._array = array
        self._index = -1
        self._chunk: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        index, offset = divmod(row, self._array.chunk_rows)
        if index != self._index:
            self._chunk, self._index = self._array.read_chunk(index), index
        return np.asarray(self._chunk[offset])

    def close(self) -> None: ...
