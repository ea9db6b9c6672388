"""The pixels of a tile, from an image file or a row of an HDF5 file, and the patches that are cut from them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from pipeline.slides.image_file import TooManyPixels, open_image
from pipeline.tiles.hdf5 import MAX_TILE_PX, Stacked, file_and_row
from stores.errors import ReadError, StoreError
from stores.io.files import first_line

Pixels = npt.NDArray[np.uint8]
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".jp2", ".webp"))
"""Endings of image files in a folder of tiles."""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "WEBP")
_MAX_BYTES = 8 * MAX_TILE_PX
_MODES = frozenset(("RGB", "RGBA", "L", "LA", "P", "1"))


class TileReader:
    """Reads tiles by folder and name; belongs to one thread. Keeps the last HDF5 file open."""

    def __init__(self) -> None:
        self._stacked: tuple[Path, Stacked] | None = None

    def read(self, folder: Path, name: str) -> Pixels:
        """A tile, uint8 (h, w, 3) RGB; what is transparent is white.

        Parameters
        ----------
        name : str
            Below `folder`, with ``/``; ``file.h5#row`` for a row of an HDF5 file.

        Raises
        ------
        ReadError
            When it is absent, damaged, too large, or no 8-bit image.
        """
        file, row = file_and_row(name)
        if row is None:
            return read_image(folder / name)
        path = folder / file
        if self._stacked is None or self._stacked[0] != path:
            self.close()
            self._stacked = path, Stacked(path)
        return self._stacked[1].read(row)

    def close(self) -> None:
        """Close the HDF5 file."""
        if self._stacked is not None:
            self._stacked[1].close()
            self._stacked = None


def read_image(path: Path) -> Pixels:
    """The pixels of an image file, uint8 (h, w, 3) RGB; what is transparent is white.

    Raises
    ------
    ReadError
        When it is absent, damaged, too large, wholly transparent, or not an 8-bit image of one page.
    """
    try:
        with open_image(path, _FORMATS, _MAX_BYTES, MAX_TILE_PX) as image:
            if image.mode not in _MODES:
                raise ReadError(f"mode {image.mode}; 8-bit grey or RGB is expected")
            if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
                raise ReadError("several pages; a tile is a file of one image")
            return np.asarray(_opaque(image), np.uint8)
    except ReadError:
        raise
    except TooManyPixels as error:
        raise ReadError(f"{error}, at most {MAX_TILE_PX} pixels are read") from None
    except StoreError as error:
        raise ReadError(str(error).removeprefix(f"{path}: ")) from None
    except (FileNotFoundError, NotADirectoryError):
        raise ReadError("no such file") from None
    except Exception as error:  # a decoder may raise anything on a damaged file
        said = first_line(error).replace(str(path), path.name)
        raise ReadError(f"not a readable image ({said})") from None


def _opaque(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode not in ("RGBA", "LA") and "transparency" not in image.info:
        return image.convert("RGB")
    over = image.convert("RGBA")
    if over.getchannel("A").getextrema()[1] == 0:
        raise ReadError("wholly transparent")
    white = PIL.Image.new("RGBA", over.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, over).convert("RGB")


def corners(height: int, width: int, size_px: int, pad: str) -> list[tuple[int, int]]:
    """x and y of the patches of a tile, row by row: a grid of whole patches from its upper left corner.

    >>> corners(100, 250, 96, "none"), corners(50, 100, 96, "white")
    ([(0, 0), (96, 0)], [(0, 0)])

    Raises
    ------
    ReadError
        When the tile is smaller than a patch, and `pad` is ``none``.
    """
    if pad == "none" and min(height, width) < size_px:
        raise ReadError(
            f"{width}x{height} px, smaller than a patch of {size_px} px: a smaller --patch, or --pad white or reflect"
        )
    across, down = (range(max(1, side // size_px)) for side in (width, height))
    return [(x * size_px, y * size_px) for y in down for x in across]


def padded(pixels: Pixels, size_px: int, pad: str) -> Pixels:
    """A tile with a margin on all sides where it is smaller than a patch; as it is otherwise."""
    missing = [max(0, size_px - side) for side in pixels.shape[:2]]
    if not any(missing):
        return pixels
    margins = [(m // 2, m - m // 2) for m in missing] + [(0, 0)]
    if pad == "white":
        return np.pad(pixels, margins, constant_values=255)
    return np.pad(pixels, margins, mode="reflect" if min(pixels.shape[:2]) > 1 else "edge")
