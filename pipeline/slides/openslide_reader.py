"""OpenSlide: the reader of most formats, with a faster reader of TIFF tiles that proves itself against it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import openslide

from pipeline.slides.contract import Bools
from pipeline.slides.resample import to_size
from pipeline.slides.samples import require_rgb_properties, require_rgb_tiff
from pipeline.slides.slide import ReadPlan, SlideInfo, choose_mpp, sha256_fingerprint
from pipeline.slides.tiff import TileReader
from stores.errors import ReadError, SlideError
from stores.io.files import first_line

_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi")
)
QUICKHASH = "quickhash-1:"
"""What fingerprints begin with that are OpenSlide's own hash."""
_KNOWN = {
    "vendor": openslide.PROPERTY_NAME_VENDOR,
    "objective power": openslide.PROPERTY_NAME_OBJECTIVE_POWER,
    "tiff.XResolution": "tiff.XResolution",
    "tiff.YResolution": "tiff.YResolution",
    "tiff.ResolutionUnit": "tiff.ResolutionUnit",
}
"""Properties by which people find out the resolution of a slide that does not say it."""


@dataclass(frozen=True, slots=True)
class OpenSlideReader:
    """The `SlideReader` of every format that OpenSlide knows, but DICOM."""

    @property
    def suffixes(self) -> frozenset[str]:
        return _SUFFIXES

    @property
    def folder_suffixes(self) -> frozenset[str]:
        return frozenset()

    def takes(self, path: Path) -> bool:
        """By its ending; a file with another ending when OpenSlide recognises its first bytes."""
        return path.suffix.lower() in _SUFFIXES or openslide.OpenSlide.detect_format(path) is not None

    def open(self, path: Path) -> "OpenSlideFile":
        return OpenSlideFile(path)

    def patches(self, path: Path, plan: ReadPlan) -> "OpenSlidePatches":
        return OpenSlidePatches(path, plan)


class OpenSlideFile:
    """A `SlideFile` that OpenSlide has open."""

    def __init__(self, path: Path) -> None:
        self._path, self._slide = path, open_slide(path)
        try:
            require_rgb_tiff(path, self._slide.dimensions)
            require_rgb_properties(path, self._slide.properties)
        except SlideError:
            self._slide.close()
            raise
        self._background = background_of(self._slide)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._slide.close()

    def inspect(self, slide_id: str, mpp: float | None = None, mpp_source: str = "option") -> SlideInfo:
        properties = self._slide.properties
        own = properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y)
        width, height = self._slide.dimensions
        known = {name: properties.get(key) for name, key in _KNOWN.items()} | {"size": f"{width}x{height} px"}
        mpp, mpp_source, mpp_y = choose_mpp(slide_id, own, mpp, mpp_source, known)
        quickhash = properties.get(openslide.PROPERTY_NAME_QUICKHASH1)
        return SlideInfo(
            slide_id=slide_id,
            path=self._path,
            fingerprint=f"{QUICKHASH}{quickhash}" if quickhash else sha256_fingerprint(self._path),
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
            width_px0=width,
            height_px0=height,
            mpp=mpp,
            mpp_source=mpp_source,
            mpp_y=mpp_y,
            downsamples=tuple(float(d) for d in self._slide.level_downsamples),
            level_sizes_px=tuple(self._slide.level_dimensions),
            bounds_px0=_bounds_of(properties),
        )

    def region(
        self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int
    ) -> npt.NDArray[np.uint8]:
        return flatten(self._read((x_px0, y_px0), level, (width_px, height_px)), self._background)

    def scanned(self, x_px0: int, y_px0: int, level: int, width_px: int, height_px: int) -> Bools:
        found = self._read((x_px0, y_px0), level, (width_px, height_px))
        return np.asarray(found.getchannel("A")) > 0

    def _read(self, corner_px0: tuple[int, int], level: int, size_px: tuple[int, int]) -> Any:
        try:
            return self._slide.read_region(corner_px0, level, size_px)
        except openslide.OpenSlideError as error:
            raise ReadError(f"{self._path.name}: cannot be read ({first_words(error, self._path)})") from None


def _bounds_of(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of the scanned part; None when the slide does not say all four."""
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    try:
        x, y, width, height = (int(properties[name]) for name in names)
    except (KeyError, ValueError):
        return None
    return (x, y, width, height) if width > 0 and height > 0 else None


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


def flatten(region: Any, background: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """RGBA of OpenSlide to RGB (h, w, 3): transparent means never scanned and becomes `background`."""
    rgba = np.asarray(region)
    alpha = rgba[:, :, 3:4].astype(np.uint32)
    if int(alpha.min()) == 255:
        return np.ascontiguousarray(rgba[:, :, :3])
    mixed = rgba[:, :, :3] * alpha + np.array(background, np.uint32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def background_of(slide: openslide.OpenSlide) -> tuple[int, int, int]:
    """The colour of what was never scanned: the slide's own property, or white."""
    text = slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


class OpenSlidePatches:
    """The `PatchReader` of a slide. Pixels are OpenSlide's, even where `TileReader` decodes them.

    OpenSlide's errors latch: after one failure every later call on the handle fails. So a failed read
    is tried once more on a new handle, and a handle that failed is never used again.
    """

    def __init__(self, path: Path, plan: ReadPlan) -> None:
        self.plan = plan
        self._path = path
        self._tiles = TileReader.open(path, plan.level)
        self._slide: openslide.OpenSlide | None = None
        self._background = 255, 255, 255

    def read(self, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        """The patch at a level-0 position, uint8 (size_px, size_px, 3).

        Raises
        ------
        ReadError
            When two attempts failed. Never returns invented pixels.
        """
        try:
            return self._read(x_px0, y_px0)
        except (openslide.OpenSlideError, SlideError):
            self._drop_handle()
        try:
            return self._read(x_px0, y_px0)
        except (openslide.OpenSlideError, SlideError) as error:
            self._drop_handle()
            raise ReadError(
                f"{self._path.name} at {x_px0},{y_px0}: {first_words(error, self._path)}"
            ) from None

    def _read(self, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        size_px = self.plan.read_size_px
        pixels = None if self._tiles is None else self._tiles.read(x_px0, y_px0, *size_px)
        if pixels is None:
            pixels = self._by_openslide(x_px0, y_px0, size_px)
        return to_size(pixels, self.plan.size_px)

    def _by_openslide(self, x_px0: int, y_px0: int, size_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
        if self._slide is None:
            self._slide = open_slide(self._path)
            self._background = background_of(self._slide)
        return flatten(self._slide.read_region((x_px0, y_px0), self.plan.level, size_px), self._background)

    def _drop_handle(self) -> None:
        if self._slide is not None:
            self._slide.close()
            self._slide = None

    def close(self) -> None:
        """Close the file."""
        self._drop_handle()
        if self._tiles is not None:
            self._tiles.close()
            self._tiles = None
