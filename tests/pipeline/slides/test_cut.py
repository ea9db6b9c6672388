"""Which level another tool read, and how many pixels of it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.slides.cut import Cut, CutPatches, plan_cut
from pipeline.slides.slide import SlideInfo
from stores.errors import ReadError, SlideError
from stores.format.recipe import AS_DECLARED, Declared, Patch

PATCH = Patch(0.5, 224, AS_DECLARED, 0.0, {"kind": "declared"})


def info(*downsamples: float) -> SlideInfo:
    sizes = tuple((round(8192 / d), round(8192 / d)) for d in downsamples)
    return SlideInfo("a", Path("a.svs"), "f", "aperio", 8192, 8192, 0.25, "slide", None, downsamples, sizes)


@pytest.mark.parametrize(
    ("downsamples", "patch_px0", "level", "read_px"),
    [
        ((1.0, 4.0, 16.0), 1024, 1, 256),
        ((1.0, 4.00012, 16.002), 1024, 1, 256),  # a level that is coarser by less than 0.1 is near enough
        ((1.0, 4.05, 4.0), 1024, 1, 256),  # the first that is
        ((1.0, 4.2, 16.0), 1024, 0, 1024),
        ((1.0, 2.5, 16.0), 1024, 1, 512),  # by the whole part of its downsample
        ((1.0, 4.0, 16.0), 512, 0, 512),
        ((1.0, 4.0), 128, 0, 128),  # finer than any level: the first
    ],
)
def test_trident(downsamples: tuple[float, ...], patch_px0: int, level: int, read_px: int) -> None:
    cut = plan_cut(info(*downsamples), patch_px0, Declared("trident", 256, "bilinear", "1"), PATCH)
    assert (cut.level, cut.read_px, cut.cut_px, cut.size_px) == (level, read_px, 256, 224)


def test_clam() -> None:
    about = Declared("clam", 256, "bicubic", "1")
    cut = plan_cut(info(1.0, 4.00012), 1024, about, PATCH)
    assert (cut.level, cut.read_px, cut.filter) == (1, 256, "bicubic")
    with pytest.raises(
        SlideError, match="no level of the file has patches of 256 px with 1000 px at level 0"
    ):
        plan_cut(info(1.0, 4.0), 1000, about, PATCH)


class Failing:
    """A slide of one colour whose first `n` reads fail; a handle that failed once never reads again."""

    def __init__(self, n: int) -> None:
        self.left, self.opened, self.closed = n, 0, 0

    def open(self, path: Path) -> Any:
        self.opened += 1
        return self

    def region(self, *at: int) -> npt.NDArray[np.uint8]:
        if self.left:
            self.left -= 1
            raise SlideError("latched")
        return np.full((at[4], at[3], 3), 200, np.uint8)

    def scanned(self, *at: int) -> npt.NDArray[np.bool_]:
        found = np.ones((at[4], at[3]), np.bool_)
        found[:, : at[3] // 2] = False
        return found

    def close(self) -> None:
        self.closed += 1


def test_a_failed_read_is_tried_once_more_on_a_new_handle() -> None:
    slide: Any = Failing(1)
    reader = CutPatches(slide, Path("a.svs"), Cut(0, 32, 16, 8, "bilinear"))
    patch = reader.read(0, 0)
    assert (slide.opened, slide.closed) == (2, 1)
    assert patch.shape == (8, 8, 3)
    assert (patch[:, 0].max(), patch[:, 7].min()) == (0, 200)  # what was not scanned is black
    slide.left = 2
    with pytest.raises(ReadError, match=r"a\.svs at 3,4: latched"):
        reader.read(3, 4)
    assert slide.closed == slide.opened == 3
