"""TIFF that OpenSlide does not read, or only in part: OME-TIFF with sub-resolutions, and pictures in strips.

OpenSlide sees the full resolution of an OME-TIFF and none of its pyramid, which lies in SubIFDs, and no mpp, which
stands in XML. Files are untrusted: XML without entities and in a bounded size, pages without their pixels, and each
tile in no more memory than its size.
"""

import functools
import itertools
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import openslide
import tifffile

from pipeline.slides.contract import Pixels, RegionPatches
from pipeline.slides.pyramid import MAX_LEVELS, MAX_TILE_BYTES, Facts, PyramidFile, micrometres
from pipeline.slides.samples import MAX_PAGES, is_tiff, not_rgb, other_than_rgb
from pipeline.slides.slide import ReadPlan, sha256_fingerprint
from pipeline.slides.tiff_codecs import DEFLATE, JPEG, RGB, YCBCR, DecodeError, Deflate, Jpeg, fill
from stores.errors import SlideError
from stores.io.files import first_line
from stores.io.text import one_line

_ENDINGS = (".tif", ".tiff", ".tf2", ".tf8", ".btf")
_MAX_XML, _MAX_SEGMENTS, _SPARE_BYTES = 16 << 20, 1 << 24, 1 << 16
_NONE, _LZW, _ZSTD = 1, 5, frozenset((50000, 34926))
_COMPRESSIONS = {_NONE, _LZW, JPEG, *DEFLATE, *_ZSTD}
_NAMES = "none, LZW, JPEG, deflate and zstd"
_CONVERT = "convert it, for example with `vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg`"
_UNITS = {2: "inch", 3: "cm"}
"""Values of the TIFF tag ResolutionUnit."""


@dataclass(frozen=True, slots=True)
class TiffReader:
    """The `SlideReader` of OME-TIFF, and of TIFF in strips."""

    @property
    def suffixes(self) -> frozenset[str]:
        return frozenset(_ENDINGS)

    @property
    def folder_suffixes(self) -> frozenset[str]:
        return frozenset()

    def takes(self, path: Path) -> bool:
        """OME-TIFF by its ending, other TIFF when OpenSlide does not know it; a TIFF by its first bytes."""
        name = path.name.lower()
        if not name.endswith(_ENDINGS) or not is_tiff(path):
            return False
        return Path(name).stem.endswith(".ome") or openslide.OpenSlide.detect_format(path) is None

    def open(self, path: Path) -> PyramidFile:
        return _open(path)

    def patches(self, path: Path, plan: ReadPlan) -> RegionPatches:
        return RegionPatches(_open(path), plan)


def _open(path: Path) -> PyramidFile:
    try:
        with tifffile.TiffFile(path) as tiff:
            image = _main_image(path, tiff)
            page: Any = next(itertools.islice(tiff.pages, image.page, None))
            levels = [_level(path, level) for level in (page, *_reduced(tiff, page, image.page))]
            own = image.mpp or _mpp_of_tags(page)
    except SlideError:
        raise
    except Exception as error:  # a damaged file may raise anything in a parser
        raise SlideError(f"{path.name}: does not open ({first_line(error)})") from None
    levels.sort(key=lambda level: -level.size_px[0])
    file = path.open("rb", buffering=0)
    facts = Facts(image.vendor, functools.partial(sha256_fingerprint, path), own, {})
    try:
        return PyramidFile(path, [_Tiles(file, level) for level in levels], facts, file.close)
    except BaseException:
        file.close()
        raise


@dataclass(frozen=True, slots=True)
class _Image:
    """Which page of a file is the slide."""

    vendor: str
    page: int = 0
    mpp: tuple[float, float] | None = None


def _main_image(path: Path, tiff: Any) -> _Image:
    """The largest image of an OME-TIFF, beside which label and overview lie; of another TIFF the first page."""
    text = str(tiff.pages[0].description or "")
    if not text.rstrip().endswith("OME>"):
        return _Image("tiff")
    if len(text) > _MAX_XML or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise SlideError(
            f"{path.name}: its OME-XML has a document type or more than {_MAX_XML >> 20} MiB; write it anew"
        )
    root = ET.fromstring(text)
    images = [pixels for pixels in root.iter() if _tag(pixels) == "Pixels"]
    if not images:
        raise SlideError(f"{path.name}: its OME-XML describes no image; write it anew, or rename it to .tif")
    main = max(images, key=lambda pixels: int(pixels.get("SizeX", 0)) * int(pixels.get("SizeY", 0)))
    if (depths := [main.get(name, "1") for name in ("SizeZ", "SizeT")]) != ["1", "1"]:
        raise SlideError(
            f"{path.name}: {depths[0]} focal planes at {depths[1]} times; one of each is read: export the plane that "
            "you want"
        )
    data = [child for child in main if _tag(child) == "TiffData"]
    own = root.get("UUID")  # stays when the file is renamed, and names of files in the XML stay too
    files = [uuid for place in data for uuid in place if _tag(uuid) == "UUID"]
    other = next((file for file in files if own is not None and (file.text or "").strip() != own), None)
    if other is not None:
        name = one_line(other.get("FileName", "another file"), 80)
        raise SlideError(f"{path.name}: some of its pixels are in {name}; write the image into one file")
    number = int(data[0].get("IFD", 0)) if data else 0
    if not 0 <= number < MAX_PAGES:
        raise SlideError(f"{path.name}: the image is page {number}; the first {MAX_PAGES} are looked at")
    x, y = (micrometres(main.get(f"PhysicalSize{a}"), main.get(f"PhysicalSize{a}Unit", "um")) for a in "XY")
    return _Image("ome-tiff", number, None if x is None or y is None else (x, y))


def _reduced(tiff: Any, page: Any, number: int) -> list[Any]:
    """The coarser levels of a page: its SubIFDs, or the pages behind it that say that they are smaller copies."""
    if page.pages is not None:
        return list(itertools.islice(page.pages, MAX_LEVELS))
    behind = itertools.islice(tiff.pages, number + 1, MAX_PAGES)
    width, height = page.imagewidth, page.imagelength
    return [
        other
        for other in behind
        if other.is_reduced
        and other_than_rgb(other) is None
        and abs(other.imagewidth * height - other.imagelength * width) <= width + height
    ]


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _mpp_of_tags(page: Any) -> tuple[float, float] | None:
    unit = _UNITS.get(int(page.tags.valueof(296, 2)))
    found = []
    for tag in (282, 283):
        numerator, denominator = page.tags.valueof(tag, (0, 1))
        if unit is None or not numerator or not denominator:
            return None
        found.append(micrometres(denominator / numerator, unit))
    x, y = found
    return None if x is None or y is None else (x, y)


@dataclass(frozen=True, slots=True)
class _Level:
    """Where the tiles or strips of a page are, and how they are coded."""

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    is_tiled: bool
    planes: int
    """1, or 3 where the samples of a colour lie together."""
    offsets: Any
    sizes: Any
    decode: Callable[[bytes, Pixels], None]
    """Fills an array of uint8 (h, w, samples); raises for data of another size."""


def _level(path: Path, page: Any) -> _Level:
    what = other_than_rgb(page)
    if what is not None or page.samplesperpixel != 3:
        raise not_rgb(path.name, what or "RGB with transparency")
    planes = 3 if page.planarconfig == 2 else 1
    if page.compression not in _COMPRESSIONS or page.predictor not in (1, 2) or page.fillorder != 1:
        name = f"{getattr(page.compression, 'name', page.compression)}, predictor {int(page.predictor)}"
        raise SlideError(f"{path.name}: compression {name}; {_NAMES} are read; {_CONVERT}")
    if (page.compression == JPEG and planes == 3) or (page.compression != JPEG and page.photometric == YCBCR):
        raise SlideError(f"{path.name}: colours in planes of JPEG, or YCbCr without it; {_CONVERT}")
    size = int(page.imagewidth), int(page.imagelength)
    if page.is_tiled:
        tile = int(page.tilewidth), int(page.tilelength)
    else:
        tile = size[0], min(int(page.rowsperstrip), size[1])
    if min(*tile, *size) < 1 or 3 * tile[0] * tile[1] > MAX_TILE_BYTES:
        raise SlideError(
            f"{path.name}: tiles or strips of {tile[0]}x{tile[1]} px, and each may have {MAX_TILE_BYTES >> 20} MiB; "
            f"{_CONVERT}"
        )
    count = planes * -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    tags = (324, 325) if page.is_tiled else (273, 279)
    if count > _MAX_SEGMENTS or any(page.tags[tag].count != count for tag in tags):
        raise SlideError(f"{path.name}: a page whose tiles are not those of its size; write it anew")
    offsets, sizes = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    return _Level(size, tile, bool(page.is_tiled), planes, offsets, sizes, _decoder(page))


def _decoder(page: Any) -> Callable[[bytes, Pixels], None]:
    if page.compression == JPEG:
        return Jpeg(page.jpegtables, RGB if page.photometric == RGB else YCBCR).decode
    if page.compression in DEFLATE:
        return Deflate(page.predictor).decode
    return functools.partial(_unpack, int(page.compression), page.predictor == 2)


def _unpack(compression: int, differences: bool, data: bytes, tile: Pixels) -> None:
    raw: bytes | bytearray = data
    if compression == _LZW:
        raw = imagecodecs.lzw_decode(data, out=tile.nbytes + 1)
    elif compression in _ZSTD:
        raw = imagecodecs.zstd_decode(data, out=tile.nbytes)
    fill(tile, raw, differences)


class _Tiles:
    """The `Level` of a page, read from an open file."""

    def __init__(self, file: BinaryIO, level: _Level) -> None:
        self._file, self._level = file, level

    @property
    def size_px(self) -> tuple[int, int]:
        return self._level.size_px

    @property
    def tile_px(self) -> tuple[int, int]:
        return self._level.tile_px

    def tile(self, column: int, row: int) -> Pixels | None:
        level = self._level
        width, height = level.tile_px
        across, down = (-(-whole // side) for whole, side in zip(level.size_px, level.tile_px, strict=True))
        if not level.is_tiled:
            height = min(height, level.size_px[1] - row * height)
        numbers = [plane * across * down + row * across + column for plane in range(level.planes)]
        if not any(level.sizes[number] for number in numbers):
            return None
        if level.planes == 1:
            whole = np.empty((height, width, 3), np.uint8)
            level.decode(self._data(numbers[0], whole.nbytes), whole)
            return whole
        planes = np.empty((3, height, width, 1), np.uint8)
        for plane, number in zip(planes, numbers, strict=True):
            level.decode(self._data(number, plane.nbytes), plane)
        return np.ascontiguousarray(np.moveaxis(planes[..., 0], 0, -1))

    def _data(self, number: int, decoded: int) -> bytes:
        size = int(self._level.sizes[number])
        if not 0 < size <= 2 * decoded + _SPARE_BYTES:
            raise DecodeError(f"{size} bytes for {decoded}")
        self._file.seek(int(self._level.offsets[number]))
        data = self._file.read(size)
        if len(data) != size:
            raise DecodeError("the file ends in it")
        return data
