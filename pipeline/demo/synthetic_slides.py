"""Synthetic H&E slides with known tissue types, for the demo and its teacher.

A slide is glass with one irregular piece of tissue, cut into regions of one tissue type each. The type shows in texture
and architecture only: every region's amounts of both stains are drawn independently of its type and its mean colour is
set to them, stain vectors and strength differ between slides, and both stains fade across each slide. Otherwise an
untrained network, which sees little but mean colour, would already agree with any teacher.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from pipeline.demo.tissue_painters import PAINTERS, Canvas, noise
from stores.errors import OptionError
from stores.io.files import replacing, write_text

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]
Floats32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

TISSUE_TYPES: tuple[str, ...] = tuple(PAINTERS)
NO_TISSUE = 255
LABEL_PX0 = 32
"""Side of a cell of a label map, in level-0 pixels."""

_MAP_PX = 8  # regions are laid out at this coarser step
_REGION_PX = (1024, 768)  # mean height and width of a region: 12 regions, two of each type, on 3072 x 3072
# H and E, red green blue: between Ruifrok & Johnston 2001 and Macenko 2009
_STAINS = np.array([[0.61, 0.71, 0.34], [0.13, 0.93, 0.30]])
_OD_STEPS = 512  # entries of the transmission table per unit of optical density
_OD_MAX = 4.0
_GREEN_PEN = np.array([2.2, 0.6, 1.5])  # optical density of a marker


@dataclass(frozen=True, slots=True)
class SyntheticSlide:
    """A slide that was written, and its ground truth."""

    path: Path
    labels: Labels
    """uint8 (height_px0 / 32, width_px0 / 32): index into `TISSUE_TYPES`, or `NO_TISSUE`."""


def paint_slide(
    seed: int, width_px: int = 3072, height_px: int = 3072, pen: bool = False
) -> tuple[Pixels, Labels]:
    """The pixels of a slide, uint8 (height, width, 3), and its label map. The same seed gives the same bytes."""
    for name, value in (("width_px", width_px), ("height_px", height_px)):
        if value < 512 or value % LABEL_PX0:
            raise OptionError(f"{name} {value}: allowed are multiples of {LABEL_PX0} from 512")
    rng = np.random.Generator(np.random.Philox(seed))
    shape = (height_px, width_px)
    regions, types = _layout(rng, shape)
    density = np.zeros((2, *shape), np.float32)
    for region, kind in enumerate(types):
        _paint_region(rng, density, regions, region, kind)
    pixels = _stain(rng, density)
    step = LABEL_PX0 // _MAP_PX
    cells = regions[step // 2 :: step, step // 2 :: step]
    labels = np.append(types, NO_TISSUE).astype(np.uint8)[cells]
    if pen:
        _draw_pen(rng, pixels, labels)
    return pixels, labels


def _layout(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Map of regions, (h / 8, w / 8), with -1 for glass, and the tissue type of each region."""
    small = (shape[0] // _MAP_PX, shape[1] // _MAP_PX)
    y, x = np.mgrid[0 : small[0], 0 : small[1]] * float(_MAP_PX)
    # boundaries of Voronoi cells, bent by noise
    bend = [(noise(rng, small, 160 / _MAP_PX) / 255 - 0.5) * 220 for _ in range(2)]
    rows, cols = (max(1, round(side / mean)) for side, mean in zip(shape, _REGION_PX, strict=True))
    row, col = np.divmod(np.arange(rows * cols), cols)
    seeds = np.stack([row, col], axis=1) + rng.uniform(0.2, 0.8, (rows * cols, 2))
    seeds *= (shape[0] / rows, shape[1] / cols)
    distance = [np.hypot(y + bend[0] - sy, x + bend[1] - sx) for sy, sx in seeds]
    regions = np.argmin(distance, axis=0)
    radius = np.hypot((y - shape[0] / 2) / (0.46 * shape[0]), (x - shape[1] / 2) / (0.46 * shape[1]))
    coarse, fine = (noise(rng, small, cell / _MAP_PX) / 255 - 0.5 for cell in (480, 90))
    edge = 0.25 * coarse + 0.04 * fine
    # a rounded rectangle fills more of the slide than an ellipse
    box = np.maximum(abs(y / shape[0] - 0.5), abs(x / shape[1] - 0.5)) / 0.46
    regions[np.maximum(0.85 * radius, box) + edge > 0.95] = -1
    kinds = np.resize(rng.permutation(len(TISSUE_TYPES)), rows * cols)
    return regions, rng.permutation(kinds).tolist()


def _paint_region(
    rng: np.random.Generator, density: Floats32, regions: npt.NDArray[np.int64], region: int, kind: int
) -> None:
    """Paint one region into `density` (2, h, w), with amounts of stain that do not depend on its type."""
    amounts = rng.uniform((0.18, 0.18), (0.42, 0.50))
    painter_rng = rng.spawn(1)[0]
    rows, cols = np.nonzero(regions == region)
    if len(rows) == 0:
        return
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in (rows, cols))
    full = tuple(slice(s.start * _MAP_PX, s.stop * _MAP_PX) for s in box)
    inside = (regions[box] == region).astype(np.uint8) * 255
    size = (full[1].stop - full[1].start, full[0].stop - full[0].start)
    mask = cv2.GaussianBlur(cv2.resize(inside, size, interpolation=cv2.INTER_LINEAR), (0, 0), 6) > 127
    canvas = PAINTERS[TISSUE_TYPES[kind]](painter_rng, mask.shape)
    scales = _scales(canvas, mask, amounts).astype(np.float32)
    for stain, ink in enumerate((canvas.h, canvas.e)):
        np.copyto(density[stain][full], ink * scales[stain], where=mask)


def _scales(canvas: Canvas, mask: npt.NDArray[np.bool_], amounts: Floats) -> Floats:
    """Factors of H and E under which the region is as dark in red and green as an even film of `amounts`."""
    some = mask[::4, ::4]
    sample = np.stack([ink[::4, ::4][some] for ink in (canvas.h, canvas.e)], axis=1).astype(np.float64)
    scales = amounts / sample.mean(axis=0)
    to_red_green = _STAINS[:, :2]
    for _ in range(6):
        seen = -np.log(np.exp(-(sample * scales) @ to_red_green).mean(axis=0)) @ np.linalg.inv(to_red_green)
        scales *= np.clip(amounts / np.maximum(seen, 1e-3), 0.5, 2.0)
    return scales


def _stain(rng: np.random.Generator, density: Floats32) -> Pixels:
    """Beer-Lambert: stain vectors and strength of the slide, gradients across it, glass, optics, sensor noise."""
    shape = density.shape[1:]
    vectors = _STAINS * rng.uniform(0.85, 1.15, (2, 3)) * rng.uniform(0.8, 1.25, (2, 1))
    glass = rng.uniform(0.0, 0.06, 3)
    for stain in range(2):
        low = rng.uniform(-0.45, 0.45, (4, 4)).astype(np.float32)
        density[stain] *= np.exp(cv2.resize(low, shape[::-1], interpolation=cv2.INTER_LINEAR))
    table = np.rint(255 * np.exp(-np.arange(int(_OD_MAX * _OD_STEPS) + 1) / _OD_STEPS)).astype(np.uint8)
    pixels = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        h, e = (vectors[:, channel] * _OD_STEPS).astype(np.float32)
        od = density[0] * h + density[1] * e + np.float32(glass[channel] * _OD_STEPS)
        pixels[..., channel] = table[np.minimum(od, _OD_MAX * _OD_STEPS).astype(np.uint16)]
    pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.6, 1.0)))
    grain = np.asarray(rng.integers(-3, 4, (*shape, 3), dtype=np.int8)).astype(np.int16)
    return np.asarray(cv2.add(pixels, grain, dtype=cv2.CV_8U), np.uint8)


def _draw_pen(rng: np.random.Generator, pixels: Pixels, labels: Labels) -> None:
    """A green marker's stroke down one side of the slide, over glass and the tissue's edge; no tissue there."""
    height, width = labels.shape
    y = np.linspace(0.15, 0.75, 12) * height
    x = 0.06 * width + rng.uniform(-0.01, 0.01, 12) * width
    line = [np.rint(np.stack([x, y], axis=1)).astype(np.int32)]
    stroke = np.zeros(labels.shape, np.uint8)
    cv2.polylines(stroke, line, False, 255, max(6, width // 14))
    labels[stroke > 0] = NO_TISSUE
    ink = cv2.resize(stroke, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    transmitted = np.rint(256 * np.exp(-_GREEN_PEN)).astype(np.uint16)
    rows, cols = np.nonzero(ink > 127)
    pixels[rows, cols] = (pixels[rows, cols] * transmitted) >> 8


def write_slide(
    path: Path,
    *,
    seed: int,
    width_px: int = 3072,
    height_px: int = 3072,
    mpp: float = 0.5,
    pen: bool = False,
) -> SyntheticSlide:
    """Paint a slide and write it as a tiled, pyramidal TIFF that OpenSlide opens as ``generic-tiff``.

    Levels of downsample 1, 4 and 16. The same seed gives the same file.
    """
    pixels, labels = paint_slide(seed, width_px, height_px, pen)
    per_cm = (round(1e7 / mpp), 1000)
    with replacing(path) as partial, tifffile.TiffWriter(partial) as tiff:
        for level in range(3):
            if level:
                size = (pixels.shape[1] // 4, pixels.shape[0] // 4)
                pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
            tiff.write(
                pixels,
                photometric="rgb",
                tile=(256, 256),
                compression="deflate",
                compressionargs={"level": 1},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),  # 1: a smaller version of the first image
                metadata=None,
                software=False,
            )
    return SyntheticSlide(path, labels)


def label_of_patch(
    labels: Labels, x_px0: int, y_px0: int, patch_px0: int = 256, min_share: float = 0.7
) -> int:
    """The tissue type that covers at least `min_share` of a patch, or -1 when the patch is mixed or outside."""
    x, y = x_px0 // LABEL_PX0, y_px0 // LABEL_PX0
    side = max(1, patch_px0 // LABEL_PX0)
    cells = labels[y : y + side, x : x + side]
    counts = np.bincount(cells[cells != NO_TISSUE], minlength=len(TISSUE_TYPES))
    best = int(counts.argmax())
    return best if counts[best] >= min_share * side * side else -1


def write_cohort(
    folder: Path, n_slides: int, seed: int, width_px: int = 3072, height_px: int = 3072
) -> list[SyntheticSlide]:
    """Write slides of as many patients and ``slides.csv`` (slide_id, patient_id, split); every third is held out.

    One slide carries a pen mark. Cohorts of up to 100 slides share nothing with those of another `seed`.
    """
    cohort, lines = [], ["slide_id,patient_id,split"]
    for i in range(n_slides):
        path, slide_seed = folder / f"slide-{i + 1}.tiff", 5000 + 100 * seed + i
        cohort.append(write_slide(path, seed=slide_seed, width_px=width_px, height_px=height_px, pen=i == 0))
        lines.append(f"{path.stem},patient-{i + 1},{'val' if i % 3 == 2 else 'train'}")
    write_text(folder / "slides.csv", "\n".join(lines) + "\n")
    return cohort
