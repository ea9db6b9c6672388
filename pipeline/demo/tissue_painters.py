"""Painters of the tissue types: texture and architecture, as densities of the two stains.

A painter fills a canvas with haematoxylin and eosin densities in arbitrary units. `pipeline.demo.synthetic_slides`
decides the rest: amounts, colours, gradients, optics. Lengths are pixels of 0.5 um.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Density = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
_SHIFT = 3  # OpenCV's fixed-point coordinates: 1/8 px


@dataclass(slots=True)
class Canvas:
    """Densities of both stains, uint8 (h, w) each."""

    h: Density
    e: Density


Painter = Callable[[np.random.Generator, tuple[int, int]], Canvas]


def noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: float) -> Density:
    """Smooth value noise, uint8 (h, w): random values `cell_px` apart, interpolated."""
    coarse = (int(shape[0] / cell_px) + 2, int(shape[1] / cell_px) + 2)
    values = rng.integers(0, 256, coarse, dtype=np.uint8)
    return np.asarray(cv2.resize(values, shape[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def _ground(
    rng: np.random.Generator, shape: tuple[int, int], level: float, amplitude: float, cell_px: float
) -> Density:
    """A background density: `level` plus noise of two sizes."""
    fine, coarse = noise(rng, shape, cell_px), noise(rng, shape, 4 * cell_px)
    mixed = cv2.addWeighted(fine, amplitude / 255, coarse, amplitude / 255, level - amplitude)
    return np.asarray(mixed, np.uint8)


def _scatter(rng: np.random.Generator, shape: tuple[int, int], spacing_px: float, jitter: float) -> Floats:
    """Points of a hexagonal grid, each moved by up to `jitter` spacings; (n, 2) as x, y, in random order."""
    rows, cols = int(shape[0] / (0.866 * spacing_px)) + 2, int(shape[1] / spacing_px) + 2
    row, col = np.divmod(np.arange(rows * cols), cols)
    points = np.stack([(col + row % 2 / 2) * spacing_px, row * 0.866 * spacing_px], axis=1)
    points += rng.uniform(-jitter, jitter, points.shape) * spacing_px
    return rng.permutation(points)


def _ellipses(
    canvas: Density, xy: Floats, axes: Floats, angle: Floats, value: Any, thickness: int = -1
) -> None:
    """Draw ellipses (n): centres and half axes in pixels, angles in degrees, values 0 to 255."""
    table = np.column_stack([np.rint(xy * 2**_SHIFT), np.rint(np.maximum(axes, 0.5) * 2**_SHIFT)]).astype(int)
    values = np.broadcast_to(np.clip(np.rint(value), 0, 255).astype(int), len(xy)).tolist()
    for (x, y, a, b), degrees, ink in zip(table.tolist(), angle.tolist(), values, strict=True):
        cv2.ellipse(canvas, (x, y), (a, b), degrees, 0, 360, ink, thickness, cv2.LINE_8, _SHIFT)


def _nuclei(
    rng: np.random.Generator,
    canvas: Canvas,
    xy: Floats,
    radius_px: tuple[float, float],
    aspect: tuple[float, float],
    ink: tuple[float, float],
    angle: Floats | None = None,
    vesicular: bool = False,
) -> None:
    """Nuclei take up haematoxylin and little eosin. Vesicular ones are pale, with a dark rim and nucleoli."""
    n = len(xy)
    radius = rng.uniform(*radius_px, n)
    axes = np.stack([radius, radius * rng.uniform(*aspect, n)], axis=1)
    angle = rng.uniform(0, 180, n) if angle is None else angle
    value = rng.uniform(*ink, n)
    _ellipses(canvas.e, xy, axes, angle, 30.0)
    if not vesicular:
        _ellipses(canvas.h, xy, axes, angle, value)
        return
    _ellipses(canvas.h, xy, axes, angle, 0.55 * value)
    _ellipses(canvas.h, xy, axes, angle, value, 1)
    dots = xy + rng.uniform(-0.35, 0.35, (n, 2)) * radius[:, None]
    _ellipses(canvas.h, dots, np.full((n, 2), 2.0), angle, 1.2 * value)


def _fibres(
    rng: np.random.Generator,
    canvas: Density,
    xy: Floats,
    angle: Floats,
    length_px: float,
    ink: tuple[int, int],
) -> None:
    """Wavy strokes through `xy` along `angle` (degrees), in eight steps of density."""
    along = np.linspace(-0.5, 0.5, 9) * length_px
    phase, wave = rng.uniform(0, 6.3, len(xy)), rng.uniform(1.0, 4.0, len(xy))
    across = wave[:, None] * np.sin(along / 11.0 + phase[:, None])
    cos, sin = np.cos(np.radians(angle))[:, None], np.sin(np.radians(angle))[:, None]
    x = xy[:, :1] + along * cos - across * sin
    y = xy[:, 1:] + along * sin + across * cos
    lines = np.rint(np.stack([x, y], axis=2) * 2**_SHIFT).astype(np.int32)
    for k, value in enumerate(rng.permutation(np.linspace(*ink, 8)).tolist()):
        cv2.polylines(canvas, list(lines[k::8]), False, int(value), 1 + k % 3, cv2.LINE_8, _SHIFT)


def _direction(rng: np.random.Generator, shape: tuple[int, int], xy: Floats) -> Floats:
    """A slowly turning direction in degrees at each point."""
    turn = noise(rng, shape, 300.0)
    x = np.clip(xy[:, 0], 0, shape[1] - 1).astype(int)
    y = np.clip(xy[:, 1], 0, shape[0] - 1).astype(int)
    return rng.uniform(0, 180) + (turn[y, x] / 255 - 0.5) * 120 + rng.normal(0, 6, len(xy))


def glands(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Rings of palisaded nuclei around an empty lumen, in loose stroma."""
    canvas = Canvas(_ground(rng, shape, 22, 10, 5), _ground(rng, shape, 60, 30, 7))
    between = _scatter(rng, shape, 34, 0.4)
    _nuclei(rng, canvas, between, (6, 9), (0.25, 0.4), (150, 210))
    centres = _scatter(rng, shape, 128, 0.1)
    n = len(centres)
    radius, aspect, angle = rng.uniform(42, 56, n), rng.uniform(0.7, 1.0, n), rng.uniform(0, 180, n)
    outer = np.stack([radius, radius * aspect], axis=1)
    _ellipses(canvas.e, centres, outer, angle, rng.uniform(85, 115, n))
    _ellipses(canvas.h, centres, outer, angle, 30.0)
    for (x, y), (a, b), degrees in zip(centres, outer, angle, strict=True):
        count = int(2 * np.pi * (a + b) / 2 * 0.8 / 10)
        turn = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.normal(0, 0.04, count)
        depth = rng.normal(0.78, 0.04, count)
        local = np.stack([a * depth * np.cos(turn), b * depth * np.sin(turn)], axis=1)
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        ring = local @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
        _nuclei(rng, canvas, ring, (6.5, 8.5), (0.5, 0.65), (150, 220), np.degrees(turn) + degrees)
    lumen = outer * rng.uniform(0.3, 0.52, n)[:, None]
    for density in (canvas.h, canvas.e):
        _ellipses(density, centres, lumen, angle, 3.0)
    return canvas


def tumour(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Sheets of large, pale, irregular nuclei with nucleoli."""
    canvas = Canvas(_ground(rng, shape, 26, 12, 6), _ground(rng, shape, 85, 35, 9))
    xy = _scatter(rng, shape, 26, 0.3)
    _nuclei(rng, canvas, xy, (7, 12.5), (0.65, 1.0), (130, 215), vesicular=True)
    return canvas


def stroma(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Bundles of wavy fibres with thin nuclei along them."""
    canvas = Canvas(_ground(rng, shape, 30, 10, 10), _ground(rng, shape, 60, 20, 10))
    xy = _scatter(rng, shape, 11, 0.5)
    _fibres(rng, canvas.e, xy, _direction(rng, shape, xy), 90, (15, 190))
    xy = _scatter(rng, shape, 46, 0.45)
    _nuclei(rng, canvas, xy, (9, 14), (0.17, 0.28), (150, 220), _direction(rng, shape, xy))
    return canvas


def lymphocytes(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Fields of small, round, dark nuclei with hardly any cytoplasm."""
    canvas = Canvas(_ground(rng, shape, 24, 8, 6), _ground(rng, shape, 70, 25, 7))
    xy = _scatter(rng, shape, 15.5, 0.28)
    _nuclei(rng, canvas, xy[: int(0.93 * len(xy))], (4.6, 6.2), (0.85, 1.0), (130, 200))
    return canvas


def adipose(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Round empty vacuoles in a pale ground, with a few pressed nuclei."""
    canvas = Canvas(_ground(rng, shape, 26, 12, 8), _ground(rng, shape, 80, 35, 8))
    _nuclei(rng, canvas, _scatter(rng, shape, 36, 0.45), (5, 8), (0.35, 0.9), (130, 210))
    xy = _scatter(rng, shape, 54, 0.16)
    axes = rng.uniform(10, 21, (len(xy), 1)) * np.column_stack(
        [np.ones(len(xy)), rng.uniform(0.8, 1, len(xy))]
    )
    angle = rng.uniform(0, 180, len(xy))
    for density in (canvas.h, canvas.e):
        _ellipses(density, xy, axes, angle, 3.0)
    return canvas


def necrosis(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Granular debris: fragments of nuclei of all sizes, smudged eosin, a few ghosts."""
    canvas = Canvas(_ground(rng, shape, 30, 25, 14), _ground(rng, shape, 90, 55, 3.5))
    _nuclei(rng, canvas, _scatter(rng, shape, 40, 0.5), (5, 8), (0.7, 1.0), (50, 80))
    _nuclei(rng, canvas, _scatter(rng, shape, 11, 0.5), (0.8, 2.8), (0.6, 1.0), (60, 240))
    return canvas


PAINTERS: dict[str, Painter] = {
    painter.__name__: painter for painter in (glands, tumour, stroma, lymphocytes, adipose, necrosis)
}
