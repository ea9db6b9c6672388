"""PNG and JPEG of a whole slide, without a pyramid: decoded as a whole, so only up to a size.

In folders they are thumbnails, masks and exports, so none is looked for there: the user names the file.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.slides.contract import Pixels, RegionPatches
from pipeline.slides.image_file import TooManyPixels, open_image
from pipeline.slides.pyramid import MAX_TILE_BYTES, Facts, PyramidFile
from pipeline.slides.samples import not_rgb
from pipeline.slides.slide import ReadPlan, sha256_fingerprint
from stores.errors import CorruptStore, SlideError
from stores.io.files import first_line
from stores.io.foreign import open_regular

_ENDINGS = frozenset((".png", ".jpg", ".jpeg"))
_FORMATS = ("PNG", "JPEG")
_MAX_FILE_BYTES = 1 << 30
_PNG_DEPTH_AT = 24
_OTHERS = {"L": "grey", "LA": "grey", "1": "black and white", "P": "colours of a palette", "CMYK": "CMYK"}
"""Pillow's modes of pictures that are not RGB."""


@dataclass(frozen=True, slots=True)
class PictureReader:
    """The `SlideReader` of PNG and JPEG."""

    @property
    def suffixes(self) -> frozenset[str]:
        return frozenset()

    @property
    def folder_suffixes(self) -> frozenset[str]:
        return frozenset()

    def takes(self, path: Path) -> bool:
        """By its ending."""
        return path.suffix.lower() in _ENDINGS

    def open(self, path: Path) -> PyramidFile:
        return _open(path)

    def patches(self, path: Path, plan: ReadPlan) -> RegionPatches:
        return RegionPatches(_open(path), plan)


def _open(path: Path) -> PyramidFile:
    try:
        with open_image(path, _FORMATS, _MAX_FILE_BYTES, MAX_TILE_BYTES // 3) as image:
            size, mode, transparent = image.size, image.mode, "transparency" in image.info
            is_png = image.format == "PNG"
        with open_regular(path, _MAX_FILE_BYTES) as file:
            head = file.read(_PNG_DEPTH_AT + 1)  # Pillow shows the upper 8 bits of 16, without a word
    except FileNotFoundError:
        raise SlideError(f"{path.name}: no such file") from None
    except TooManyPixels:
        raise _too_large(path) from None
    except (OSError, ValueError, SyntaxError, CorruptStore) as error:
        words = first_line(error).replace(str(path), path.name)
        raise SlideError(f"{path.name}: no PNG or JPEG that opens ({words})") from None
    if is_png and head[_PNG_DEPTH_AT] == 16:
        raise not_rgb(path.name, f"of 16 bits a sample ({mode})")
    if mode not in ("RGB", "RGBA") or transparent:
        raise not_rgb(path.name, _OTHERS.get(mode, f"of another kind ({mode})"))
    facts = Facts("picture", functools.partial(sha256_fingerprint, path), None, {})
    return PyramidFile(path, [_Whole(path, size)], facts)


def _too_large(path: Path) -> SlideError:
    return SlideError(
        f"{path.name}: more than {MAX_TILE_BYTES // 3:,} pixels, and a PNG or JPEG has to be decoded as a whole; "
        "convert it, for example with `vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg`"
    )


class _Whole:
    """The `Level` of a picture, which is one tile."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self._path, self._size = path, size

    @property
    def size_px(self) -> tuple[int, int]:
        return self._size

    @property
    def tile_px(self) -> tuple[int, int]:
        return self._size

    def tile(self, column: int, row: int) -> Pixels:
        with open_image(self._path, _FORMATS, _MAX_FILE_BYTES, MAX_TILE_BYTES // 3) as image:
            if image.size != self._size:
                raise ValueError("it is another picture now")
            pixels = np.asarray(image)
        if pixels.shape[2] == 4 and int(pixels[:, :, 3].min()) < 255:
            raise ValueError("it has transparent parts, and RGB without them is read")
        return np.ascontiguousarray(pixels[:, :, :3])
