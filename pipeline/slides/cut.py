"""Patches as another tool cut and scaled them: the student has to see what the teacher saw there.

``trident``: `WSIPatcher` of mahmoodlab/TRIDENT. The downsample is the side at level 0 by the side at the target
magnification; the level is the first within 0.1 of it, else the coarsest that is finer. What is read there has the
side at level 0 divided by the whole part of the level's downsample, and Pillow scales it to the target, bicubic.
``clam``: `Whole_Slide_Bag_FP` of mahmoodlab/CLAM. The patch is read at a level, with a side in pixels of that level.

Both drop transparency, so that what was never scanned, or lies over the edge of the slide, is black. The transform of
the encoder follows: Pillow scales the patch to the side that the encoder wants, with a filter that is in the recipe.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from pipeline.slides.contract import Pixels, SlideFile, SlideReader
from pipeline.slides.slide import SlideInfo
from stores.errors import ReadError, SlideError
from stores.format.recipe import Declared, Patch

VERSION = PIL.__version__
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TRIDENT_TOLERANCE = 0.1


def rule_of(by: str) -> str:
    """Name and version of the rule, for the recipe."""
    return f"{by}-1"


@dataclass(frozen=True, slots=True)
class Cut:
    """How one slide's patches were cut and scaled."""

    level: int
    read_px: int
    """Side of what is read, in pixels of `level`."""
    cut_px: int
    """Side to which the tool scaled it."""
    size_px: int
    """Side to which the encoder's transform scaled that."""
    filter: str


def plan_cut(info: SlideInfo, patch_px0: int, about: Declared, patch: Patch) -> Cut:
    """How patches of a slide are read, whose side is `patch_px0` level-0 pixels.

    Raises
    ------
    SlideError
        When the tool cannot have cut such patches from this file.
    """
    if about.by == "trident":
        level, read_px = _trident(info, patch_px0, about.cut_px)
    else:
        level, read_px = _clam(info, patch_px0, about.cut_px)
    return Cut(level, read_px, about.cut_px, patch.size_px, about.filter)


def _trident(info: SlideInfo, patch_px0: int, cut_px: int) -> tuple[int, int]:
    wanted = patch_px0 / cut_px
    near = [i for i, d in enumerate(info.downsamples) if abs(d - wanted) <= _TRIDENT_TOLERANCE]
    finer = [i for i, d in enumerate(info.downsamples) if d <= wanted]
    coarser = [i for i, d in enumerate(info.downsamples) if d >= wanted]
    level = near[0] if near else finer[-1] if finer else coarser[0]
    return level, max(1, round(patch_px0 / int(info.downsamples[level])))


def _clam(info: SlideInfo, patch_px0: int, cut_px: int) -> tuple[int, int]:
    for level, downsample in enumerate(info.downsamples):
        if level0_side(cut_px, downsample) == patch_px0:
            return level, cut_px
    raise SlideError(
        f"{info.slide_id}: no level of the file has patches of {cut_px} px with {patch_px0} px at level 0; "
        "is it the file from which they were cut?"
    )


def level0_side(side_px: int, downsample: float) -> int:
    """The side at level 0 of a patch of `side_px` pixels of a level."""
    return math.floor(side_px * downsample + 0.5)


class CutPatches:
    """The `PatchReader` of such patches. A failed read is tried once more on a new handle: OpenSlide's errors latch."""

    def __init__(self, reader: SlideReader, path: Path, cut: Cut) -> None:
        self._reader, self._path, self._cut = reader, path, cut
        self._file: SlideFile | None = None

    def read(self, x_px0: int, y_px0: int) -> Pixels:
        """The patch at a level-0 position as the encoder's transform leaves it, uint8 (size_px, size_px, 3).

        Raises
        ------
        ReadError
            When two attempts failed.
        """
        try:
            return self._read(x_px0, y_px0)
        except SlideError:
            self.close()
        try:
            return self._read(x_px0, y_px0)
        except SlideError as error:
            self.close()
            raise ReadError(f"{self._path.name} at {x_px0},{y_px0}: {error}") from None

    def _read(self, x_px0: int, y_px0: int) -> Pixels:
        if self._file is None:
            self._file = self._reader.open(self._path)
        cut = self._cut
        region = x_px0, y_px0, cut.level, cut.read_px, cut.read_px
        pixels, scanned = self._file.region(*region), self._file.scanned(*region)
        if not scanned.all():
            pixels = np.where(scanned[..., None], pixels, np.uint8(0))
        image = Image.fromarray(pixels)
        image = image.resize((cut.cut_px, cut.cut_px), Image.Resampling.BICUBIC)
        image = image.resize((cut.size_px, cut.size_px), _FILTERS[cut.filter])
        return np.array(image)

    def close(self) -> None:
        """Close the slide file."""
        if self._file is not None:
            self._file.close()
            self._file = None
