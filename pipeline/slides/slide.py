"""Slides: find them, open them, know their mpp and fingerprint, read a patch at a target mpp.

Coordinates are level-0 pixels of the top-left corner, x to the right, y down.

A worked example. A slide of 0.2525 mpp with levels of downsample 1, 4 and 16; patches of 256 px at 0.5 mpp.
The patch covers ``patch_px0 = round(256 * 0.5 / 0.2525) = 507`` level-0 pixels, so it really has
``507 * 0.2525 / 256 = 0.50007`` mpp. Level 1 would have 1.01 mpp, too coarse; level 0 is just finer than the
target: 507 x 507 pixels are read there and area-resampled to 256 x 256.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openslide

from stores.errors import MppError, OptionError, SlideError
from stores.format.layout import is_slide_id
from stores.io.files import first_line

SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm")
)
MPP_MIN, MPP_MAX = 0.05, 5.0
AS_IS_TOLERANCE = 0.05


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
    """Of level 0."""
    mpp_source: str
    """``slide``, ``option`` or ``csv``."""
    downsamples: tuple[float, ...]
    """Of each pyramid level."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How patches of one slide are read."""

    level: int
    read_px: int
    """Side of what is read, in pixels of `level`."""
    size_px: int
    """Side of the patch that comes out."""
    patch_px0: int
    """Side of the patch in level-0 pixels; the step of the grid."""
    mpp: float
    """The mpp that the patch really has."""


def slide_id_of(path: Path) -> str:
    """The slide id that a file name gives: its stem, with every character that is not allowed as ``_``."""
    slide_id = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip("._-")
    if not is_slide_id(slide_id):
        raise OptionError(f"{path.name}: gives no slide id (letters, digits, '.', '_', '-'); rename the file")
    return slide_id


def find_slides(inputs: Sequence[Path]) -> dict[str, Path]:
    """Slide files by slide id, sorted. Folders are searched recursively, hidden files left out.

    Raises
    ------
    OptionError
        When an input does not exist, nothing is found, or two files give one slide id.
    """
    paths: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found = (p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            paths += [
                p for p in found if not any(part.startswith(".") for part in p.relative_to(given).parts)
            ]
        elif given.is_file():
            paths.append(given)
        else:
            raise OptionError(f"{given}: no such file or folder")
    slides: dict[str, Path] = {}
    for path in sorted(set(paths)):
        slide_id = slide_id_of(path)
        if slide_id in slides:
            raise OptionError(
                f"slide id {slide_id!r}: both {slides[slide_id]} and {path}; rename one of them"
            )
        slides[slide_id] = path
    if not slides:
        where = ", ".join(map(str, inputs)) or "no input"
        raise OptionError(f"{where}: no slide found; looked for {' '.join(sorted(SUFFIXES))}")
    return dict(sorted(slides.items()))


def open_slide(path: Path) -> openslide.OpenSlide:
    """Open a slide; SlideError says why it does not open."""
    try:
        return openslide.OpenSlide(path)
    except FileNotFoundError:
        raise SlideError(f"{path.name}: no such file") from None
    except openslide.OpenSlideUnsupportedFormatError:
        raise SlideError(f"{path.name}: not a slide format that OpenSlide knows") from None
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path.name}: does not open ({first_words(error, path)})") from None


def first_words(error: Exception, path: Path) -> str:
    """What OpenSlide says, without the folders of this machine: a reason stands in the store, which others get."""
    return first_line(Exception(str(error).replace(str(path), path.name)))


def inspect(slide_id: str, path: Path, mpp: float | None = None, mpp_source: str = "option") -> SlideInfo:
    """Open a slide and read its properties.

    Parameters
    ----------
    mpp : float, optional
        Overrides the slide's own, in micrometres per level-0 pixel; `mpp_source` says where it comes from.

    Raises
    ------
    SlideError
        When it does not open.
    MppError
        When there is no plausible mpp.
    """
    with open_slide(path) as slide:
        properties = slide.properties
        if mpp is None:
            mpp, mpp_source = _own_mpp(slide_id, properties), "slide"
        if not MPP_MIN <= mpp <= MPP_MAX:
            raise MppError(
                f"{slide_id}: mpp {mpp:g} from the {mpp_source} is not plausible ({MPP_MIN} to {MPP_MAX}); "
                f"give the true one: --slide-mpp {slide_id}=0.5"
            )
        width, height = slide.dimensions
        return SlideInfo(
            slide_id=slide_id,
            path=path,
            fingerprint=_fingerprint(path, properties),
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
            width_px0=width,
            height_px0=height,
            mpp=float(mpp),
            mpp_source=mpp_source,
            downsamples=tuple(float(d) for d in slide.level_downsamples),
        )


def _own_mpp(slide_id: str, properties: Any) -> float:
    values = []
    for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y):
        try:
            values.append(float(properties[name]))
        except (KeyError, ValueError):
            raise MppError(
                f"{slide_id}: the slide has no mpp; give it by --slide-mpp {slide_id}=0.5 "
                "or in a column mpp of --slides-csv"
            ) from None
    x, y = values
    if not (math.isfinite(x) and math.isfinite(y)) or abs(x - y) > AS_IS_TOLERANCE * max(abs(x), abs(y)):
        raise MppError(
            f"{slide_id}: mpp {x:g} in x and {y:g} in y; pixels must be square, or give --slide-mpp"
        )
    return (x + y) / 2


def _fingerprint(path: Path, properties: Any) -> str:
    quickhash = properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
    if quickhash:
        return f"quickhash-1:{quickhash}"
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def plan_read(info: SlideInfo, mpp: float, size_px: int) -> ReadPlan:
    """Choose the pyramid level just finer than `mpp`; within 5 % of it a level is read as it is.

    Raises
    ------
    MppError
        When even level 0 is coarser than the target: pixels would have to be invented.
    """
    finer = [i for i, d in enumerate(info.downsamples) if info.mpp * d <= mpp * (1 + AS_IS_TOLERANCE)]
    if not finer:
        raise MppError(
            f"{info.slide_id}: level 0 has {info.mpp:g} mpp, coarser than the target {mpp:g}; "
            f"choose --mpp {info.mpp:g} or coarser"
        )
    level = max(finer, key=lambda i: info.downsamples[i])
    downsample = info.downsamples[level]
    if abs(info.mpp * downsample - mpp) <= AS_IS_TOLERANCE * mpp:
        patch_px0, read_px = round(size_px * downsample), size_px
    else:
        patch_px0 = round(size_px * mpp / info.mpp)
        read_px = round(patch_px0 / downsample)
    return ReadPlan(level, read_px, size_px, patch_px0, patch_px0 * info.mpp / size_px)
