"""What is known of a slide: its size, resolution and identity, and how patches at a target mpp are read from it.

Coordinates are level-0 pixels of the top-left corner, x to the right, y down.

A worked example. A slide of 0.2525 mpp with levels of downsample 1, 4 and 16; patches of 256 px at 0.5 mpp.
The patch covers ``patch_px0 = round(256 * 0.5 / 0.2525) = 507`` level-0 pixels, so it really has
``507 * 0.2525 / 256 = 0.50007`` mpp. Level 1 would have 1.01 mpp, too coarse; level 0 is just finer than the
target: 507 x 507 pixels are read there and area-resampled to 256 x 256.
"""

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.errors import MppError
from stores.format.recipe import AS_IS_TOLERANCE
from stores.io.text import one_line

MPP_MIN, MPP_MAX = 0.05, 5.0


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What is known of a slide without reading pixels."""

    slide_id: str
    path: Path
    fingerprint: str
    vendor: str
    width_px0: int
    height_px0: int
    mpp: float
    """Micrometres per level-0 pixel; in x, where `mpp_y` is a number."""
    mpp_source: str
    """``slide``, ``option`` or ``csv``."""
    mpp_y: float | None
    """Micrometres per level-0 pixel in y; None where pixels are square."""
    downsamples: tuple[float, ...]
    """How many times smaller each pyramid level is than level 0."""
    level_sizes_px: tuple[tuple[int, int], ...]
    """Width and height of each pyramid level."""
    bounds_px0: tuple[int, int, int, int] | None = None
    """Left, top, width and height of the part that was scanned, where the file says it; None where it is silent."""

    @property
    def mpp_xy(self) -> tuple[float, float]:
        """Micrometres per level-0 pixel in x and in y."""
        return self.mpp, self.mpp if self.mpp_y is None else self.mpp_y

    def columns(self) -> dict[str, Any]:
        """Its part of a row of the slides table, in x where pixels are not square."""
        names = ("fingerprint", "vendor", "width_px0", "height_px0", "mpp", "mpp_source")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How patches of one slide are read."""

    level: int
    read_px: int
    """Side of what is read, in pixels of `level`; its width, where pixels are not square."""
    size_px: int
    """Side of the patch that comes out."""
    patch_px0: int
    """Side of the patch in level-0 pixels; the step of the grid. Its width, where pixels are not square."""
    mpp: float
    """The mpp that the patch really has; in x, where pixels are not square."""
    heights: tuple[int, int] | None = None
    """`read_px` and `patch_px0` in y; None where pixels are square."""

    @property
    def read_size_px(self) -> tuple[int, int]:
        """Width and height of what is read, in pixels of `level`."""
        return self.read_px, self.read_px if self.heights is None else self.heights[0]

    @property
    def sides_px0(self) -> tuple[int, int]:
        """Width and height of the patch in level-0 pixels; the steps of the grid."""
        return self.patch_px0, self.patch_px0 if self.heights is None else self.heights[1]


def choose_mpp(
    slide_id: str,
    own: tuple[Any, Any] | None,
    given: float | None,
    given_source: str,
    known: Mapping[str, Any],
) -> tuple[float, str, float | None]:
    """The mpp of level 0, where it comes from, and the mpp in y where pixels are not square, for `SlideInfo`.

    It is `given` if there is one, which means square pixels, else the slide's own.

    Parameters
    ----------
    own
        What the file says of x and y: numbers or text; None when it says nothing.
    known
        What else it says that helps to find out: vendor, size, objective power, resolution tags. An error shows it; no
        error names a value, which would be copied and be wrong for some slides.

    Raises
    ------
    MppError
        When there is none, or it is not plausible.
    """
    said = ", ".join(f"{name} {one_line(value, 40)}" for name, value in known.items() if value is not None)
    remedy = (
        f"the file says: {said or 'nothing else'}; find out the true mpp of level 0, and give it by --slide-mpp "
        f"{slide_id}=MPP or in a column mpp of --slides-csv"
    )
    if given is not None:
        mpp, mpp_y, source = float(given), None, given_source
    else:
        mpp, mpp_y = _own_mpp(slide_id, own, remedy)
        source = "slide"
    for value in (mpp, mpp if mpp_y is None else mpp_y):
        if not MPP_MIN <= value <= MPP_MAX:
            raise MppError(
                f"{slide_id}: mpp {value:g} from the {source} is not plausible ({MPP_MIN} to {MPP_MAX}); {remedy}"
            )
    return mpp, source, mpp_y


def _own_mpp(slide_id: str, own: tuple[Any, Any] | None, remedy: str) -> tuple[float, float | None]:
    """The mpp of a file with square pixels, or those in x and y."""
    try:
        x, y = map(float, own or ())
    except (TypeError, ValueError):
        raise MppError(f"{slide_id}: the slide has no mpp; {remedy}") from None
    if not (math.isfinite(x) and math.isfinite(y)):
        raise MppError(f"{slide_id}: mpp {x:g} in x and {y:g} in y, which are no resolution; {remedy}")
    if abs(x - y) > AS_IS_TOLERANCE * max(abs(x), abs(y)):
        return x, y
    return (x + y) / 2, None


def require_square(info: SlideInfo, remedy: str = "resample them by --square-pixels") -> None:
    """Refuse a slide whose pixels are not square.

    Raises
    ------
    MppError
        That says what to do: `remedy`, or the true mpp where the file is wrong.
    """
    if info.mpp_y is not None:
        raise MppError(
            f"{info.slide_id}: mpp {info.mpp:g} in x and {info.mpp_y:g} in y, so its pixels are not square; {remedy}; "
            f"where the file is wrong, find out the true mpp of level 0, and give it by --slide-mpp "
            f"{info.slide_id}=MPP or in a column mpp of --slides-csv"
        )


def sha256_fingerprint(path: Path) -> str:
    """The identity of a file whose format has no hash of its own: the SHA-256 of all its bytes."""
    stat = path.stat()
    return _sha256_of(path.absolute(), (stat.st_size, stat.st_mtime_ns, stat.st_ino))


@functools.lru_cache(1 << 12)
def _sha256_of(path: Path, identity: tuple[int, ...]) -> str:
    """Remembered by size, time and inode: a slide is opened several times, and hashing reads all of it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def plan_read(info: SlideInfo, mpp: float, size_px: int) -> ReadPlan:
    """Choose the pyramid level just finer than `mpp`; within 5 % of it a level is read as it is.

    Raises
    ------
    MppError
        When even level 0 is coarser than the target: pixels would have to be invented.
    """
    coarser = max(info.mpp_xy)
    finer = [i for i, d in enumerate(info.downsamples) if coarser * d <= mpp * (1 + AS_IS_TOLERANCE)]
    if not finer:
        raise MppError(
            f"{info.slide_id}: level 0 has {coarser:g} mpp, coarser than the target {mpp:g}; "
            f"choose --mpp {coarser:g} or coarser"
        )
    level = max(finer, key=lambda i: info.downsamples[i])
    downsample = info.downsamples[level]
    if info.mpp_y is not None:
        (read_px, patch_px0), heights = (
            _side(own, downsample, mpp, size_px) for own in (info.mpp, info.mpp_y)
        )
        return ReadPlan(level, read_px, size_px, patch_px0, patch_px0 * info.mpp / size_px, heights)
    if abs(info.mpp * downsample - mpp) <= AS_IS_TOLERANCE * mpp:
        patch_px0, read_px = round(size_px * downsample), size_px
    else:
        patch_px0 = round(size_px * mpp / info.mpp)
        read_px = round(patch_px0 / downsample)
    return ReadPlan(level, read_px, size_px, patch_px0, patch_px0 * info.mpp / size_px)


def _side(own_mpp: float, downsample: float, mpp: float, size_px: int) -> tuple[int, int]:
    """A side of a patch in pixels of the level and of level 0.

    Where pixels are not square, a side is read as it is only where it is not finer than the target: were both off by
    nearly 5 %, one finer and one coarser, the patch would not be square.
    """
    if own_mpp * downsample >= mpp:
        return size_px, round(size_px * downsample)
    side_px0 = round(size_px * mpp / own_mpp)
    return max(size_px, round(side_px0 / downsample)), side_px0
