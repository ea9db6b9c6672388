"""Pixels of tiled TIFF slides without OpenSlide: tiles are read whole, decoded once, kept while neighbours need them.

OpenSlide spends about four fifths of a read outside of decoding. This reader replaces it where the result is certain to
be the same: on levels of JPEG, JPEG 2000 or Deflate tiles, some of which were compared with OpenSlide's, for regions
inside the level, on whole pixels. For everything else `TileReader.read` returns None, and OpenSlide reads.
"""

import collections
import contextlib
import functools
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import openslide
import tifffile

from pipeline.slides.tiff_codecs import DecodeError, Pixels, TileCodec, codec_of

_VENDORS = frozenset(("aperio", "generic-tiff"))
_MAX_PAGES = 64
_MAX_TILE_PX = 1 << 22
_MAX_TILES = 1 << 24
_MAX_HEADER_BYTES = 1 << 16
_CACHE_BYTES = 16 << 20
_COMPARED = 5
"""Tiles whose pixels are compared with OpenSlide's."""
_PROOFS, _INDEXES = 1 << 14, 32
"""Levels that are remembered: stage two comes back to a slide many times. The index of 100,000 tiles is 1.2 MB."""
_TILE_OFFSETS, _TILE_BYTE_COUNTS = 324, 325


class _Unusual(Exception):
    """Only OpenSlide can read this tile, region or level."""


@dataclass(frozen=True, slots=True)
class _Level:
    """Where the tiles of a level are."""

    width_px: int
    height_px: int
    tile_px: tuple[int, int]
    """Width and height of a tile."""
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.uint32]
    """In bytes; 0 for a tile that was never scanned."""
    codec: TileCodec
    downsample: int

    @property
    def across(self) -> int:
        return -(-self.width_px // self.tile_px[0])

    def touched(self, x: int, y: int, width_px: int, height_px: int) -> list[int]:
        """Numbers of the tiles that a region of the level touches."""
        rows = range(y // self.tile_px[1], (y + height_px - 1) // self.tile_px[1] + 1)
        columns = range(x // self.tile_px[0], (x + width_px - 1) // self.tile_px[0] + 1)
        return [row * self.across + column for row in rows for column in columns]


class TileReader:
    """Reads regions of one level, from `open`; belongs to one thread."""

    def __init__(self, path: Path, level: _Level) -> None:
        self._level = level
        self._file = path.open("rb", buffering=0)
        self._kept: collections.OrderedDict[int, Pixels] = collections.OrderedDict()
        decoded = 3 * math.prod(level.tile_px)
        self._room = max(4, _CACHE_BYTES // decoded)
        self._largest = 2 * decoded + _MAX_HEADER_BYTES

    @classmethod
    def open(cls, path: Path, level: int) -> Self | None:
        """A reader of a pyramid level; None when only OpenSlide can be trusted with it."""
        try:
            stat = path.stat()
            found = _level(path, level, (stat.st_size, stat.st_mtime_ns, stat.st_ino))
            return None if found is None else cls(path, found)
        except OSError:
            return None

    def close(self) -> None:
        """Close the file and forget what was decoded."""
        self._file.close()
        self._kept.clear()

    def read(self, x_px0: int, y_px0: int, width_px: int, height_px: int) -> Pixels | None:
        """A region as uint8 (height_px, width_px, 3), or None when OpenSlide has to say what is there.

        Parameters
        ----------
        x_px0, y_px0 : int
            Top-left corner in level-0 pixels.
        width_px, height_px : int
            In pixels of the level.
        """
        try:
            return self._read(x_px0, y_px0, width_px, height_px)
        except (_Unusual, DecodeError, OSError):
            return None

    def _read(self, x_px0: int, y_px0: int, width_px: int, height_px: int) -> Pixels:
        level = self._level
        (x, x_part), (y, y_part) = divmod(x_px0, level.downsample), divmod(y_px0, level.downsample)
        right, bottom = x + width_px, y + height_px
        if x_part or y_part or min(x, y) < 0 or right > level.width_px or bottom > level.height_px:
            raise _Unusual
        out = np.empty((height_px, width_px, 3), np.uint8)
        tile_w, tile_h = level.tile_px
        for index in level.touched(x, y, width_px, height_px):
            row, column = divmod(index, level.across)
            tile_x, tile_y = column * tile_w, row * tile_h
            rows = slice(max(y, tile_y), min(bottom, tile_y + tile_h))
            columns = slice(max(x, tile_x), min(right, tile_x + tile_w))
            used_up = rows.stop - rows.start == tile_h and columns.stop - columns.start == tile_w
            tile = self._tile(index, keep=not used_up)
            out[_moved(rows, y), _moved(columns, x)] = tile[_moved(rows, tile_y), _moved(columns, tile_x)]
        return out

    def _tile(self, index: int, keep: bool) -> Pixels:
        """A decoded tile; kept for later regions when this one does not use it up."""
        tile = self._kept.get(index)
        if tile is not None:
            self._kept.move_to_end(index)
            return tile
        tile = np.empty((self._level.tile_px[1], self._level.tile_px[0], 3), np.uint8)
        self._level.codec.decode(self._data(index, int(self._level.sizes[index])), tile)
        if keep:
            self._kept[index] = tile
            if len(self._kept) > self._room:
                self._kept.popitem(last=False)
        return tile

    def _data(self, index: int, size: int) -> bytes:
        self._file.seek(int(self._level.offsets[index]))
        if not 0 < size <= self._largest:
            raise _Unusual  # never scanned, or absurd
        data = self._file.read(size)
        if len(data) != size:
            raise _Unusual  # cut off
        return data

    def _agrees(self, slide: openslide.OpenSlide, index: int) -> bool:
        """Whether tiles with little to much data in them have the pixels that OpenSlide finds at their places."""
        level, compared = self._level, 0
        for tile in _spread(level.sizes):
            row, column = divmod(tile, level.across)
            x, y = column * level.tile_px[0], row * level.tile_px[1]
            width, height = (
                min(level.tile_px[0], level.width_px - x),
                min(level.tile_px[1], level.height_px - y),
            )
            at_px0 = x * level.downsample, y * level.downsample
            theirs = np.asarray(slide.read_region(at_px0, index, (width, height)))
            level.codec.trust(self._data(tile, min(int(level.sizes[tile]), _MAX_HEADER_BYTES)))
            ours = self.read(*at_px0, width, height)
            if ours is not None:
                if not (theirs[:, :, 3].min() == 255 and np.array_equal(ours, theirs[:, :, :3])):
                    return False
                compared += 1
        return compared > 0


@dataclass(frozen=True, slots=True)
class _Proof:
    """The pixels of a level were compared with OpenSlide's."""

    page: int
    downsample: int
    codec: TileCodec


@functools.lru_cache(_PROOFS)
def _prove(path: Path, index: int, identity: tuple[int, ...]) -> _Proof | None:
    """None when only OpenSlide can read the level."""
    try:
        with openslide.OpenSlide(path) as slide:
            proof = _candidate(path, slide, index)
            with contextlib.closing(TileReader(path, _load(path, proof))) as reader:
                return proof if reader._agrees(slide, index) else None
    except Exception:  # a damaged file may raise anything in a parser; OpenSlide says what is wrong with it
        return None


@functools.lru_cache(_INDEXES)
def _level(path: Path, index: int, identity: tuple[int, ...]) -> _Level | None:
    proof = _prove(path, index, identity)
    return None if proof is None else _load(path, proof)


def _moved(span: slice, origin: int) -> slice:
    return slice(span.start - origin, span.stop - origin)


def _spread(sizes: npt.NDArray[np.uint32]) -> list[int]:
    """Numbers of tiles that were scanned, from the smallest to the largest."""
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    places = np.linspace(0, len(order) - 1, min(_COMPARED, len(order))).astype(int)
    return list(order[places].tolist())


def _candidate(path: Path, slide: openslide.OpenSlide, index: int) -> _Proof:
    """The one tiled page that has the size of a level."""
    downsample = float(slide.level_downsamples[index])
    # OpenSlide interpolates between pixels of a level that is not a whole number of times smaller
    if slide.properties.get(openslide.PROPERTY_NAME_VENDOR) not in _VENDORS or not downsample.is_integer():
        raise _Unusual
    size = slide.level_dimensions[index]
    with tifffile.TiffFile(path) as tiff:
        pages: list[Any] = list(itertools.islice(tiff.pages, _MAX_PAGES))
        found = [i for i, p in enumerate(pages) if p.is_tiled and (p.imagewidth, p.imagelength) == size]
        codec = codec_of(pages[found[0]]) if len(found) == 1 else None
    if codec is None:
        raise _Unusual
    return _Proof(found[0], int(downsample), codec)


def _load(path: Path, proof: _Proof) -> _Level:
    """Where the tiles of a level are."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = next(itertools.islice(tiff.pages, proof.page, None))
        tile_px = int(page.tilewidth), int(page.tilelength)
        if not 0 < math.prod(tile_px) <= _MAX_TILE_PX:
            raise _Unusual
        tiles = -(-page.imagewidth // tile_px[0]) * -(-page.imagelength // tile_px[1])
        usual = (
            (page.planarconfig, page.samplesperpixel, page.bitspersample) == (1, 3, 8)
            and tiles <= _MAX_TILES
            and page.tags[_TILE_OFFSETS].count == page.tags[_TILE_BYTE_COUNTS].count == tiles
        )
        if not usual:
            raise _Unusual
        offsets, sizes = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.uint32)
    size = page.imagewidth, page.imagelength
    return _Level(*size, tile_px, offsets, sizes, proof.codec, proof.downsample)
