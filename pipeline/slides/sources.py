"""Where the pixels of patches come from: a slide file, or a store that keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.slides.contract import PatchReader, SlideFile, SlideReader
from pipeline.slides.cut import Cut, CutPatches, plan_cut
from pipeline.slides.registry import reader_of
from pipeline.slides.slide import ReadPlan, SlideInfo, plan_read
from stores.errors import SlideError
from stores.format import oblong, pixels, recipe
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
        """What a worker keeps one reader for: two sources that read other pixels have two of them.

        Several stores may have slides of one id, which are other slides, or have their rows in another order.
        """

    def open(self) -> Reader:
        """A reader for one thread."""


@dataclass(frozen=True, slots=True)
class SlideSource:
    """Patches from the slide file."""

    slide_id: str
    path: Path
    """Absolute: workers may stand in another folder."""
    plan: ReadPlan
    reader: SlideReader
    cut: Cut | None = None
    """How another tool cut its patches; None where `plan` says it."""

    @property
    def key(self) -> str:
        return f"{self.slide_id} {self.path} {self.cut or self.plan}"

    def open(self) -> Reader:
        if self.cut is not None:
            return _FromSlide(CutPatches(self.reader, self.path, self.cut))
        return _FromSlide(self.reader.patches(self.path, self.plan))


def open_slide_source(
    row: Mapping[str, Any], path: Path, patch: recipe.Patch, declared: recipe.Declared | None = None
) -> SlideSource:
    """The file of a slide that was tiled, as a source of its patches.

    Parameters
    ----------
    row
        Of the slides table.
    declared
        Of the recipe, where another tool cut the patches.

    Raises
    ------
    SlideError
        When the file does not open, or is another one than that which was tiled.
    """
    reader = reader_of(path, row["fingerprint"])
    with reader.open(path) as file:
        info = inspect_again(file, row, path)
    if declared is None:
        return SlideSource(info.slide_id, path.absolute(), plan_read(info, patch.mpp, patch.size_px), reader)
    cut = plan_cut(info, row["patch_px0"], declared, patch)
    plan = ReadPlan(cut.level, cut.read_px, cut.size_px, row["patch_px0"], row["patch_mpp"])
    return SlideSource(info.slide_id, path.absolute(), plan, reader, cut)


def inspect_again(file: SlideFile, row: Mapping[str, Any], path: Path) -> SlideInfo:
    """What is known of a slide that was tiled; SlideError when the file is another one than that."""
    info = replace(file.inspect(row["slide_id"], row["mpp"], row["mpp_source"]), mpp_y=oblong.mpp_in_y(row))
    if info.fingerprint != row["fingerprint"]:
        raise SlideError(
            f"{info.slide_id}: {path.name} is another file than the one that was tiled (its fingerprint differs); "
            "give that file, or begin in a new folder"
        )
    size, tiled = (info.width_px0, info.height_px0), (row["width_px0"], row["height_px0"])
    if size != tiled:  # DICOM: a series whose largest images are missing has the same fingerprint
        raise SlideError(
            f"{info.slide_id}: {path.name} has {size[0]}x{size[1]} px, and {tiled[0]}x{tiled[1]} when it was tiled; "
            "put all files of the series into one folder"
        )
    return info


@dataclass(frozen=True, slots=True)
class StoreSource:
    """Patches from the store's own pixels."""

    slide_id: str
    store: StoreLike

    @property
    def key(self) -> str:
        return f"{self.slide_id} {self.store}"

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
    """Keeps the last chunk: neighbouring rows come together."""

    def __init__(self, array: pixels.SlidePixels) -> None:
        self._array = array
        self._index = -1
        self._chunk: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        self._array.require_row(row)
        index, offset = divmod(row, self._array.chunk_rows)
        if index != self._index:
            self._chunk, self._index = self._array.read_chunk(index), index
        return np.asarray(self._chunk[offset])

    def close(self) -> None: ...
