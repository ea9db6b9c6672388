"""Regions of a slide in GeoJSON, from an untrusted file: read within limits, and drawn as a mask of the slide."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.tile.frames import Frame
from stores.errors import StoreError, TissueError
from stores.io.files import first_line, read_json

MAX_JSON_BYTES = 64 * 2**20
_SPILL = 0.01  # of the longer side: what is drawn by hand runs a little over the edge


class MisfitError(TissueError):
    """A file does not fit a frame; it may fit another."""


def read_features(path: Path) -> list[Any]:
    """The features of a GeoJSON file, unchecked."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise TissueError(
            f"{path}: {path.stat().st_size:,} bytes; at most {MAX_JSON_BYTES >> 20} MiB of JSON: export it at a lower "
            "resolution (8 um per pixel is enough)"
        )
    try:
        content = read_json(path, MAX_JSON_BYTES)
    except StoreError as error:
        raise TissueError(f"{first_line(error)}; export it again") from None
    if isinstance(content, dict):
        content = content.get("features") if content.get("type") == "FeatureCollection" else [content]
    if not isinstance(content, list):
        raise TissueError(f"{path}: no GeoJSON FeatureCollection; in QuPath: File, Export objects as GeoJSON")
    return content


def class_of(feature: Any) -> str | None:
    """The class of a region: as QuPath writes it (``classification.name``), GrandQC (``classification``) or LazySlide
    (``class``); None where it has none."""
    properties = feature.get("properties") if isinstance(feature, dict) else None
    found = None
    for key in ("classification", "class"):
        if found is None and isinstance(properties, dict):
            found = properties.get(key)
    if isinstance(found, dict):
        found = found.get("name")
    return found if isinstance(found, str) else None


def draw_feature(
    canvas: npt.NDArray[np.uint8],
    feature: Any,
    frame: Frame,
    size_px0: tuple[int, int],
    where: str,
    inside: int = 1,
) -> None:
    """Draw the polygons of a region of a frame on `canvas`, uint8 (h, w) of the whole slide, where it is smaller.

    Pixels inside become `inside`, and those under an outline 1. With 2 inside, what an outline crosses counts half, so
    that the area of many regions is right on average.

    Parameters
    ----------
    where
        Its place, for messages.

    Raises
    ------
    TissueError
        When it is not made of polygons; MisfitError when they lie outside of the frame.
    """
    scale = np.array(canvas.shape[::-1]) / size_px0
    for polygon in _polygons_of(feature, where):
        _fill(canvas, [_ring(ring, frame, scale, where) for ring in polygon], where, inside)


def _polygons_of(feature: Any, where: str) -> list[list[Any]]:
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if not isinstance(geometry, dict) or kind not in ("Polygon", "MultiPolygon"):
        raise TissueError(
            f"{where}: geometry {kind!r:.40}; allowed: Polygon, MultiPolygon; leave others out of the export"
        )
    coordinates = geometry.get("coordinates")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
        raise TissueError(f"{where}: {kind} without rings of coordinates; export it again")
    return polygons


def _ring(ring: Any, frame: Frame, scale: npt.NDArray[np.float64], where: str) -> npt.NDArray[np.int32]:
    """Corners of a ring in 1/16 pixels of the mask, int32 (n, 2); `scale` is pixels of the mask per level-0 pixel."""
    try:
        corners = np.array([corner[:2] for corner in ring], np.float64)
    except (LookupError, TypeError, ValueError, OverflowError):
        corners = np.empty(0)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise TissueError(f"{where}: a ring is a list of three or more [x, y] numbers; found {ring!r:.60}")
    beyond = np.maximum(-corners, corners - frame.size_px0).max(axis=1)
    if beyond.max() > _SPILL * max(frame.size_px0):
        x, y = corners[beyond.argmax()]
        raise MisfitError(
            f"{where}: corner ({x:.6g}, {y:.6g}) lies outside of the {frame}; "
            "coordinates are level-0 pixels: is it the file of this slide?"
        )
    at = (corners + frame.corner_px0) * scale
    return np.rint((at - 0.5) * 16).astype(np.int32)  # fillPoly: pixel centres are whole numbers


def _fill(canvas: npt.NDArray[np.uint8], rings: list[npt.NDArray[np.int32]], where: str, inside: int) -> None:
    """Add a polygon, its outline first and then its holes, to `canvas`. Works in its bounding box only."""
    outline, *holes = rings
    low, high = outline.min(axis=0), outline.max(axis=0)
    for hole in holes:
        if (hole.min(axis=0) < low).any() or (hole.max(axis=0) > high).any():
            raise TissueError(f"{where}: a hole lies outside of its polygon; repair or redraw it")
    x, y = np.maximum(low // 16, 0)
    x_end, y_end = np.minimum(high // 16 + 2, canvas.shape[::-1])
    if x >= x_end or y >= y_end:
        return
    box = np.zeros((y_end - y, x_end - x), np.uint8)
    placed = [ring - np.array([x, y], np.int32) * 16 for ring in rings]
    for value, ring in zip([inside, *(0 for _ in holes)], placed, strict=True):
        cv2.fillPoly(box, [ring], value, shift=4)
    if inside > 1:
        cv2.polylines(box, placed, True, 1, shift=4)
    part = canvas[y:y_end, x:x_end]
    np.maximum(part, box, out=part)
