"""A slide file made of levels, and a level of tiles: what readers share that decode tiles themselves."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from pipeline.slides.contract import Bools, Pixels
from pipeline.slides.slide import SlideInfo, choose_mpp
from stores.errors import ReadError, SlideError
from stores.io.files import first_line

WHITE = 255, 255, 255
MAX_LEVELS = 32
MAX_TILE_BYTES = 1 << 28
"""The most that a decoded tile, strip or whole picture may have, 268 MB; each thread that reads keeps at least one."""
MAX_SIDE_PX = 1 << 31
_CACHE_BYTES = 32 << 20
_UM = {
    "m": 1e6, "meter": 1e6, "cm": 1e4, "centimeter": 1e4, "mm": 1e3, "millimeter": 1e3, "um": 1.0, "\u00b5m": 1.0,
    "\u03bcm": 1.0, "micrometer": 1.0, "nm": 1e-3, "nanometer": 1e-3, "\u00c5": 1e-4, "angstrom": 1e-4, "pm": 1e-6,
    "picometer": 1e-6, "in": 25_400.0, "inch": 25_400.0,
}  # fmt: skip


class Level(Protocol):
    """One resolution of a slide, in tiles that are decoded one at a time."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""

    @property
    def tile_px(self) -> tuple[int, int]:
        """Width and height of a tile; those at the right and bottom edge may be smaller, or reach over it."""

    def tile(self, column: int, row: int) -> Pixels | None:
        """A decoded tile, uint8 (h, w, 3); None for one that was never written. Any exception means a damaged file."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says of itself, for `SlideInfo`."""

    vendor: str
    fingerprint: Callable[[], str]
    own_mpp: tuple[float, float] | None
    """In x and y."""
    known: Mapping[str, Any]
    """What else it says that helps to find out the mpp."""
    background: tuple[int, int, int] = WHITE
    """The colour of what was never written or lies outside."""


def micrometres(value: object, unit: object) -> float | None:
    """A length in micrometres; None when it is no number, or in a unit that is none of length.

    >>> micrometres("250", "nm"), micrometres(0.5, "micrometer"), micrometres(1, "pixel")
    (0.25, 0.5, None)
    """
    factor = _UM.get(str(unit)) or _UM.get(str(unit).removesuffix("s"))
    try:
        return None if factor is None else float(str(value)) * factor
    except ValueError:
        return None


def downsamples_of(sizes_px: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """How many times smaller each level is than the first: the whole number that gives its size, else the mean ratio.

    >>> downsamples_of([(1000, 800), (500, 400), (400, 320)])
    (1.0, 2.0, 2.5)
    """
    (width, height), found = sizes_px[0], []
    for w, h in sizes_px:
        ratio = (width / w + height / h) / 2
        whole = round(ratio)
        exact = all(b in (a // whole, -(-a // whole)) for a, b in ((width, w), (height, h)))
        found.append(float(whole) if exact else ratio)
    return tuple(found)


def require_pyramid(name: str, sizes_px: Sequence[tuple[int, int]]) -> None:
    """Refuse levels that are not one picture in falling sizes; SlideError names what is wrong."""
    if not 1 <= len(sizes_px) <= MAX_LEVELS:
        raise SlideError(f"{name}: {len(sizes_px)} levels; 1 to {MAX_LEVELS} are read")
    (width, height), before = sizes_px[0], None
    for w, h in sizes_px:
        if not (0 < w < MAX_SIDE_PX and 0 < h < MAX_SIDE_PX):
            raise SlideError(f"{name}: a level of {w}x{h} px; 1 to {MAX_SIDE_PX - 1} px a side are read")
        # a pixel of rounding each way on the level's sides
        same_shape = abs(w * height - h * width) <= width + height
        if before is not None and (w > before[0] or h > before[1] or not same_shape):
            raise SlideError(
                f"{name}: a level of {w}x{h} px after one of {before[0]}x{before[1]} px; levels are one picture in "
                "falling sizes"
            )
        before = w, h


class PyramidFile:
    """A `SlideFile` of levels. A level-0 position that is no whole pixel of a level means the nearest one."""

    def __init__(
        self, path: Path, levels: Sequence[Level], facts: Facts, close: Callable[[], None] | None = None
    ) -> None:
        sizes = tuple(level.size_px for level in levels)
        require_pyramid(path.name, sizes)
        self._path, self._levels, self._facts, self._close = path, levels, facts, close
        self._sizes, self._downsamples = sizes, downsamples_of(sizes)
        self._kept: collections.OrderedDict[tuple[int, int, int], Pixels | None] = collections.OrderedDict()
        largest = max(3 * math.prod(level.tile_px) for level in levels)
        self._room = max(2, _CACHE_BYTES // largest) if largest <= _CACHE_BYTES else 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._kept.clear()
        if self._close is not None:
            self._close()

    def inspect(self, slide_id: str, mpp: float | None = None, mpp_source: str = "option") -> SlideInfo:
        (width, height), facts = self._sizes[0], self._facts
        known = {"vendor": facts.vendor, **facts.known, "size": f"{width}x{height} px"}
        mpp, mpp_source, mpp_y = choose_mpp(slide_id, facts.own_mpp, mpp, mpp_source, known)
        return SlideInfo(
            slide_id=slide_id,
            path=self._path,
            fingerprint=facts.fingerprint(),
            vendor=facts.vendor,
            width_px0=width,
            height_px0=height,
            mpp=mpp,
            mpp_source=mpp_source,
            mpp_y=mpp_y,
            downsamples=self._downsamples,
            level_sizes_px=self._sizes,
        )

    def region(self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int) -> Pixels:
        out = np.empty((height_px, width_px, 3), np.uint8)
        out[:] = self._facts.background
        for rows, columns, part in self._parts(x_px0, y_px0, level, width_px, height_px):
            out[rows, columns] = part
        return out

    def scanned(self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int) -> Bools:
        out = np.zeros((height_px, width_px), np.bool_)
        for rows, columns, _ in self._parts(x_px0, y_px0, level, width_px, height_px):
            out[rows, columns] = True
        return out

    def _parts(
        self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int
    ) -> list[tuple[slice, slice, Pixels]]:
        """Rows and columns of a region with the pixels that are there, for each tile that has any."""
        (width, height), (tile_w, tile_h) = self._sizes[level], self._levels[level].tile_px
        downsample = self._downsamples[level]
        x, y = (math.floor(at / downsample + 0.5) for at in (x_px0, y_px0))
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + width_px, width), min(y + height_px, height)
        found = []
        for row in range(top // tile_h, -(-bottom // tile_h)) if left < right else ():
            for column in range(left // tile_w, -(-right // tile_w)):
                x_tile, y_tile = column * tile_w, row * tile_h
                x_from, y_from = max(left, x_tile), max(top, y_tile)
                x_to, y_to = min(right, x_tile + tile_w), min(bottom, y_tile + tile_h)
                tile = self._tile(level, column, row, (x_to - x_tile, y_to - y_tile))
                if tile is not None:
                    part = tile[y_from - y_tile : y_to - y_tile, x_from - x_tile : x_to - x_tile]
                    found.append((slice(y_from - y, y_to - y), slice(x_from - x, x_to - x), part))
        return found

    def _tile(self, level: int, column: int, row: int, at_least_px: tuple[int, int]) -> Pixels | None:
        key = level, column, row
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            tile = self._levels[level].tile(column, row)
        except Exception as error:  # decoders raise what they like
            raise ReadError(
                f"{self._path.name}: tile {column},{row} of level {level} cannot be read ({first_line(error)})"
            ) from None
        if tile is not None and (tile.shape[1] < at_least_px[0] or tile.shape[0] < at_least_px[1]):
            raise ReadError(f"{self._path.name}: tile {column},{row} of level {level} is too small")
        self._kept[key] = tile
        while len(self._kept) > self._room:
            self._kept.popitem(last=False)
        return tile
