"""Whether what a reader shows is the picture that the file holds: RGB with 8 bits a sample.

OpenSlide turns whatever it opens into 8-bit RGBA, without a word. Of three grey pages that are the colours of one
picture it shows the first, of 16 bits the upper 8, of two channels of fluorescence colours that nobody chose.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tifffile

from pipeline.slides.tiff_codecs import RGB, YCBCR
from stores.errors import SlideError
from stores.io.text import one_line

MAX_PAGES = 64
"""Pages of a TIFF that are looked at."""
_TIFF = frozenset((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))
_PHOTOMETRIC = {0: "grey", 1: "grey", 3: "colours of a palette", 5: "CMYK", 8: "CIELAB"}
_ALPHA = (1, 2)
"""Values of ExtraSamples that OpenSlide takes as transparency."""
_REMEDY = "8-bit RGB is read, 3 samples a pixel in one page; convert the slide to that, or leave it out"
_PROPERTIES = {
    "mirax.GENERAL.SLIDE_TYPE": ("SLIDE_TYPE_FLUORESCENCE", "channels of fluorescence"),
    "zeiss.Information.Image.PixelType": ("Bgr48", "16 bits a sample"),
}
"""Properties of OpenSlide, the value that means that its RGB is not the picture, and what is there instead."""


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF; False when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) in _TIFF
    except OSError:
        return False


def require_rgb_tiff(path: Path, size_px: tuple[int, int]) -> None:
    """Refuse a TIFF whose full-resolution pages are not RGB of 8 bits.

    Parameters
    ----------
    size_px : (int, int)
        Width and height of level 0. Where no page has that size, as in formats of several areas, the first one counts.

    Raises
    ------
    SlideError
        That says what the file holds. A file that is no TIFF, or that tifffile cannot parse, is not judged.
    """
    try:
        if not is_tiff(path):
            return
        with tifffile.TiffFile(path) as tiff:
            pages: list[Any] = list(itertools.islice(tiff.pages, MAX_PAGES))
            pages = [page for page in pages if (page.imagewidth, page.imagelength) == size_px] or pages[:1]
            found = [what for page in pages if (what := other_than_rgb(page)) is not None]
    except Exception:  # a damaged file may raise anything in a parser; OpenSlide says what is wrong with it
        return
    if found:
        several = f" in {len(pages)} pages, of which one would be read" if len(pages) > 1 else ""
        raise not_rgb(path.name, found[0] + several)


def require_rgb_properties(path: Path, properties: Mapping[str, str]) -> None:
    """Refuse a slide of which OpenSlide itself says that it is not RGB of 8 bits; SlideError that says what it is."""
    for name, (value, what) in _PROPERTIES.items():
        if properties.get(name) == value:
            raise not_rgb(path.name, what)


def not_rgb(name: str, what: str) -> SlideError:
    """The error for a slide whose pixels are `what`."""
    return SlideError(f"{name}: its pixels are {one_line(what)}; {_REMEDY}")


def other_than_rgb(page: Any) -> str | None:
    """What the pixels of a TIFF page are, in words; None when they are RGB of 8 bits, with or without transparency."""
    n, bits = int(page.samplesperpixel), page.bitspersample
    depths = bits if isinstance(bits, tuple) else (bits,)
    extra = tuple(page.extrasamples)
    usual = page.photometric in (RGB, YCBCR) and n == 3 + len(extra)
    if usual and set(depths) == {8} and (not extra or (len(extra) == 1 and extra[0] in _ALPHA)):
        return None
    colours = (
        "RGB" if page.photometric in (RGB, YCBCR) else _PHOTOMETRIC.get(page.photometric, "of another kind")
    )
    return f"{colours}, {n} {'sample' if n == 1 else 'samples'} a pixel, {max(depths)} bits a sample"
