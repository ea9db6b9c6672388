"""Image files that somebody else may have made: opened with Pillow, their size judged before pixels are decoded."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL.Image

from stores.io.foreign import open_regular


class TooManyPixels(Exception):
    """An image has more pixels than its reader takes; the message says how many, where that is known."""


@contextlib.contextmanager
def open_image(path: Path, formats: Sequence[str], max_bytes: int, max_px: int) -> Iterator[PIL.Image.Image]:
    """Open an image file; no pixel is decoded yet.

    Parameters
    ----------
    formats
        Pillow's names of those that are tried.
    max_px
        Most pixels that it may have. Pillow's own limit, of which it warns on standard error, is not told.

    Raises
    ------
    TooManyPixels
        When it has more.
    FileNotFoundError, NotADirectoryError, CorruptStore
        As `open_regular`; and whatever Pillow raises for a damaged file.
    """
    with open_regular(path, max_bytes) as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
                opened = PIL.Image.open(file, formats=tuple(formats))
        except PIL.Image.DecompressionBombError:
            raise TooManyPixels("too many pixels") from None
        with opened as image:
            if image.width * image.height > max_px:
                raise TooManyPixels(f"{image.width}x{image.height} px")
            yield image
