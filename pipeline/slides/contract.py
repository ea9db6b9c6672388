"""What a reader of slide files does. A new one is a file in this folder and a line in `registry.READERS`.

Coordinates are level-0 pixels of the slide's own frame: the origin is the top-left corner, x runs to the right, y down.
Level 0 has the full resolution. Pixels are RGB, uint8, without colour management; a reader never invents any: what was
never scanned has the file's own background colour, and what cannot be read is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipeline.slides.resample import to_size
from pipeline.slides.slide import ReadPlan, SlideInfo

Pixels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


class SlideFile(Protocol):
    """A slide file that is open; belongs to one thread; a context manager that closes it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def inspect(self, slide_id: str, mpp: float | None = None, mpp_source: str = "option") -> SlideInfo:
        """What is known of the slide without reading pixels.

        Parameters
        ----------
        mpp : float, optional
            Takes precedence over the file's own, in micrometres per level-0 pixel; `mpp_source` says where it comes
            from. `slide.choose_mpp` does this.

        Raises
        ------
        MppError
            When there is no plausible mpp.
        """

    def region(self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int) -> Pixels:
        """A region of a level, uint8 (height_px, width_px, 3).

        Parameters
        ----------
        x_px0, y_px0 : int
            Top-left corner in level-0 pixels, whatever the level.
        width_px, height_px : int
            In pixels of the level. What lies outside of the slide has the background colour.

        Raises
        ------
        ReadError
            When it cannot be read.
        """

    def scanned(self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int) -> Bools:
        """Which pixels of a region were scanned, bool (height_px, width_px); arguments and errors as for `region`.

        False where a pixel is wholly transparent, and outside of the slide.
        """

    def close(self) -> None:
        """Release the file."""


class PatchReader(Protocol):
    """Reads patches of one slide file as a `ReadPlan` says; belongs to one thread."""

    def read(self, x_px0: int, y_px0: int) -> Pixels:
        """The patch at a level-0 position, uint8 (size_px, size_px, 3); ReadError when it cannot be read."""

    def close(self) -> None:
        """Release the file."""


class SlideReader(Protocol):
    """A reader of one or more file formats.

    It travels to the processes that read, so it is picklable: an instance of a class at the top of its module.
    """

    @property
    def suffixes(self) -> frozenset[str]:
        """Endings of the files that `find.search_slides` looks for in folders, such as ``.svs``; lower case."""

    @property
    def folder_suffixes(self) -> frozenset[str]:
        """Endings of folders that are one slide each, such as ``.zarr``; empty for formats that are files."""

    def takes(self, path: Path) -> bool:
        """Whether this reader is the one for a file or folder, by its ending or its first bytes; opens no slide."""

    def open(self, path: Path) -> SlideFile:
        """Open a slide file.

        Raises
        ------
        SlideError
            When it does not open; the message names the file without its folder, as it is kept in the store.
        """

    def patches(self, path: Path, plan: ReadPlan) -> PatchReader:
        """A reader of patches; `RegionPatches` where there is no faster way."""


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Files that are one slide together."""

    stem: str
    """What the slide id is made of, as of a file name without its ending."""
    name: str
    """What tells the slide apart from others that give the same id, as the name of a file does."""
    path: Path | None
    """By which the slide is opened, the same for whichever of its files; None when the files are no slide."""
    files: frozenset[Path]


@runtime_checkable
class SeriesReader(SlideReader, Protocol):
    """A reader of a format in which several files in a folder are one slide. Where there is none, each file is one."""

    def group(self, paths: Sequence[Path]) -> list[FileGroup]:
        """The slides of which these files are part; a group names files beside them too.

        Parameters
        ----------
        paths
            Files that the reader takes. Those that it cannot assign are groups of their own, to fail with a reason.
        """


class RegionPatches:
    """Patches out of the regions of a slide file: read at the level of the plan, area-resampled to its size."""

    def __init__(self, file: SlideFile, plan: ReadPlan) -> None:
        self._file, self._plan = file, plan

    def read(self, x_px0: int, y_px0: int) -> Pixels:
        """The patch at a level-0 position, uint8 (size_px, size_px, 3)."""
        pixels = self._file.region(x_px0, y_px0, self._plan.level, *self._plan.read_size_px)
        return to_size(pixels, self._plan.size_px)

    def close(self) -> None:
        """Close the slide file."""
        self._file.close()
