"""Tissue masks and annotations of users: images and GeoJSON, checked before memory is allocated."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.slides.image_file import TooManyPixels, open_image
from pipeline.tile.frames import Frame, choose_frame
from pipeline.tile.geojson import MAX_JSON_BYTES, MisfitError, class_of, draw_feature, read_features
from pipeline.tile.tissue import Bools
from stores.errors import OptionError, StoreError, TissueError
from stores.format.manifest import check_slide_id
from stores.io.files import first_line

_MAX_IMAGE_BYTES = 1 << 30
MAX_MASK_PX = 80_000_000
_JSON_SUFFIXES = (".geojson", ".json")
_IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
_IMAGE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I")


@dataclass(frozen=True, slots=True)
class UserMask:
    """A mask that a user made."""

    pixels: Bools
    """bool (h, w) of the whole slide."""
    frame: Frame
    """Where its coordinates began."""


def load_user_mask(
    folder: Path,
    slide_id: str,
    size_px0: tuple[int, int],
    frames: Sequence[Frame],
    scanned: npt.NDArray[np.float32],
) -> UserMask | None:
    """Load the mask that a user made of a slide, from an untrusted file named by the slide's id.

    ``<slide_id>.geojson`` or ``.json``: polygons in level-0 pixels from QuPath, less its class ``Ignore*``.
    ``<slide_id>.png``, ``.tif`` or ``.tiff``: an image of the whole frame in any size; what is not black is tissue.

    Parameters
    ----------
    size_px0 : (int, int)
        Width and height of the slide at level 0.
    frames
        Where its coordinates can begin (`frames.frames_of`).
    scanned : float32 (h, w)
        How much of each pixel of the mask to return was scanned.

    Returns
    -------
    UserMask, or None when there is no file.

    Raises
    ------
    TissueError
        When there are two files, or one that is damaged, too large, empty or of another aspect ratio, that has
        coordinates outside of the slide, where nothing was scanned, or that fits more than one frame.
    """
    check_slide_id(slide_id)
    if not folder.is_dir():
        raise OptionError(f"--masks {folder}: no such folder")
    found = [path for end in _JSON_SUFFIXES + _IMAGE_SUFFIXES if (path := folder / (slide_id + end)).exists()]
    if not found:
        return None
    if len(found) > 1:
        raise TissueError(f"{found[0]}: there is also {found[1].name}; keep the one that decides")
    path = found[0]
    shape = (scanned.shape[0], scanned.shape[1])
    if path.suffix in _JSON_SUFFIXES:
        draw = functools.partial(_draw_polygons, path, read_features(path))
    else:
        draw = functools.partial(_draw_image, path, _read_image(path, frames))
    masks: list[tuple[Frame, Bools]] = []
    misfits: list[MisfitError] = []
    for frame in frames:
        try:
            masks.append((frame, draw(frame, size_px0, shape)))
        except MisfitError as error:
            misfits.append(error)
    if not masks:
        raise misfits[0]
    if not any(mask.any() for _, mask in masks):
        raise TissueError(f"{path}: no tissue in it; mark some, or take the slide out of the inputs")
    frame, pixels = choose_frame(path, masks, scanned)
    return UserMask(pixels, frame)


def _too_large(path: Path, size: str) -> TissueError:
    return TissueError(
        f"{path}: {size}; at most {MAX_MASK_PX:,} pixels or {MAX_JSON_BYTES >> 20} MiB of JSON: "
        "export it at a lower resolution (8 um per pixel is enough)"
    )


def _read_image(path: Path, frames: Sequence[Frame]) -> Bools:
    """What is not black in an image file, at the file's own size."""
    try:
        with open_image(path, ("PNG", "TIFF"), _MAX_IMAGE_BYTES, MAX_MASK_PX) as image:
            _check_image(path, image, frames)
            if image.mode in ("P", "LA", "RGBA"):  # what is seen counts, not the palette's index
                colours = np.asarray(image.convert("RGBA"))
                return (colours[..., :3].max(axis=2) > 0) & (colours[..., 3] > 0)
            pixels = np.asarray(image)
    except TissueError:
        raise
    except StoreError as error:
        raise TissueError(str(error)) from None
    except TooManyPixels as error:
        raise _too_large(path, str(error)) from None
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise TissueError(f"{path}: not a readable PNG or TIFF ({first_line(error)}); save again") from None
    return (pixels if pixels.ndim == 2 else pixels.max(axis=2)) != 0


def _check_image(path: Path, image: Image.Image, frames: Sequence[Frame]) -> None:
    """Raise TissueError unless the header fits a mask of this slide; no memory is allocated yet."""
    width, height = image.size
    if image.mode not in _IMAGE_MODES:
        raise TissueError(f"{path}: pixels of type {image.mode}; save as 8-bit grey, no tissue in black")
    if not any(_same_ratio(image.size, frame) for frame in frames):
        whole = " or the ".join(map(str, frames))
        raise TissueError(
            f"{path}: {width}x{height} has another aspect ratio than the {whole}; "
            "the mask has to cover all of it, unrotated"
        )


def _same_ratio(size: tuple[int, int], frame: Frame) -> bool:
    (width, height), (width_px0, height_px0) = size, frame.size_px0
    # One pixel of rounding on each side, or 2 %, whichever is more.
    return abs(width * height_px0 - height * width_px0) <= max(
        width_px0 + height_px0, 0.02 * width * height_px0
    )


def _draw_image(
    path: Path, pixels: Bools, frame: Frame, size_px0: tuple[int, int], shape: tuple[int, int]
) -> Bools:
    """An image of a frame as a mask of the whole slide; its edges fall on whole pixels of the mask."""
    if not _same_ratio((pixels.shape[1], pixels.shape[0]), frame):
        raise MisfitError(f"{path}: another aspect ratio than the {frame}")
    left, top = (
        round(a * n / whole) for a, n, whole in zip(frame.corner_px0, shape[::-1], size_px0, strict=True)
    )
    end_px0 = frame.corner_px0[0] + frame.size_px0[0], frame.corner_px0[1] + frame.size_px0[1]
    right, bottom = (round(a * n / whole) for a, n, whole in zip(end_px0, shape[::-1], size_px0, strict=True))
    placed = _resize(pixels, (max(1, bottom - top), max(1, right - left)))
    mask = np.zeros(shape, np.bool_)
    part = mask[top:bottom, left:right]
    part[:] = placed[: part.shape[0], : part.shape[1]]
    return mask


def _resize(mask: Bools, shape: tuple[int, int]) -> Bools:
    """Area mean of at least a half when it shrinks, the nearest pixel when it grows."""
    shrinks = shape[0] <= mask.shape[0] and shape[1] <= mask.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    resized = cv2.resize(mask.astype(np.uint8) * 254, shape[::-1], interpolation=how)
    return resized >= 127


def _draw_polygons(
    path: Path, content: list[Any], frame: Frame, size_px0: tuple[int, int], shape: tuple[int, int]
) -> Bools:
    """Rasterise polygons of a frame: their union, less those of QuPath's class ``Ignore*``."""
    tissue, ignored = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for number, feature in enumerate(content):
        canvas = ignored if class_of(feature) == "Ignore*" else tissue
        draw_feature(canvas, feature, frame, size_px0, f"{path}: feature {number}")
    return tissue > ignored
