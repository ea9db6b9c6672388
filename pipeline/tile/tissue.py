"""Which parts of a slide are tissue: a classical rule on a thumbnail, or a mask that the user made.

The classical rule works in optical density, whose ratios between channels do not depend on how strong a stain
or how blurred a stroke is. Densities are integers from a 256-entry table and all comparisons are between
integers, so that two machines find the same mask. Written for H&E; for other stains, give masks.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from skimage.filters import apply_hysteresis_threshold, threshold_otsu

from stores.errors import OptionError

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TissueRule:
    """Everything that decides a mask. Densities in 1/1000 (natural logarithm), ratios in percent."""

    kind: Literal["classical", "mask", "none"] = "classical"
    """``mask``: the user's file decides. ``none``: the whole slide is tissue."""
    version: int = 1
    """Changes with any change of the code that changes a mask."""
    smooth_um: float = 12.0
    """Sigma of the Gaussian blur before anything else."""
    colour_min: int = 50
    colour_max: int = 70
    """Window of Otsu's threshold on the colour of stain: green density above the smaller of red and blue.
    Below lies the noise of glass (99.9 % below 39); above, Otsu would part nuclei from pale stroma."""
    cold_ratio: int = 120
    """Red over green density of a green or blue pen. In seven pictures 99 % of tissue is below 97."""
    cold_density: int = 200
    """Red density from which that counts."""
    warm_ratio: int = 78
    """Blue over green density of a black or a saturated red pen. Tissue: 99 % below 77, median 42 to 64."""
    warm_density: int = 1000
    """Green density that such a stroke reaches somewhere: blood and folds have its colour in thin layers."""
    warm_thin_density: int = 300
    """Green density of the rest of such a stroke."""
    red_ratio: int = 30
    """Red over green density below which a pixel is bright red: eosin, blood or a light red pen."""
    light_ratio: int = 70
    """Blue over green density of a light red pen; eosin has a median of 42 to 67."""
    light_density: int = 1300
    """Green density of a light red pen; 99 % of the tissue that is bright red stays below 1200."""
    fade_cold_ratio: int = 95
    fade_warm_ratio: int = 72
    fade_light_ratio: int = 66
    """The three ratios where a stroke fades out or lies over tissue."""
    fade_um: float = 400.0
    """How far from a stroke it may fade."""
    halo_um: float = 24.0
    """Width around pens that is always dropped."""
    stroke_radius_um: float = 40.0
    """Half the width of the thinnest stroke."""
    light_radius_um: float = 100.0
    """The same for a light red pen, which is wider than a vessel full of blood."""
    close_um: float = 24.0
    """Half the gap that is bridged between strands."""
    hole_um2: float = 20_000.0
    """Smaller holes are filled: fat cells and capillaries, not lumina."""
    open_um: float = 16.0
    """Half the width of the thinnest strand that stays; coloured fringes of edges and hairs are thinner."""
    object_um2: float = 30_000.0
    """Smaller pieces are dust; a patch of 256 px at 0.5 mpp has 16,384."""

    def __post_init__(self) -> None:
        if self.kind not in ("classical", "mask", "none"):
            raise OptionError(f"tissue rule {self.kind!r}; allowed: classical, mask, none")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for the recipe; thresholds only where they decide something."""
        return asdict(self) if self.kind == "classical" else {"kind": self.kind, "version": self.version}


CLASSICAL = TissueRule()
USER_MASK = TissueRule(kind="mask")

# The offset of 10 stands for a scanner's flare and noise: without it the ratios of black pixels are random.
_DENSITY = np.maximum(np.rint(1000 * np.log(255 / (np.arange(256) + 10.0))), 0).astype(np.int32)


def tissue_mask(
    thumbnail: npt.NDArray[np.uint8], rule: TissueRule = CLASSICAL, *, thumbnail_mpp: float
) -> Bools:
    """Find the tissue of an H&E slide: without pen marks, glass, edges of the cover slip and dust.

    Parameters
    ----------
    thumbnail : uint8 (h, w, 3)
        RGB, about 8 um per pixel; a finer one costs time, a coarser one loses small pieces.
    thumbnail_mpp : float
        Micrometres per pixel of the thumbnail.

    Returns
    -------
    bool (h, w)
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise ValueError(f"expected uint8 (h, w, 3), not {thumbnail.dtype} {thumbnail.shape}")
    if rule.kind == "mask":
        raise ValueError("a user's mask comes from load_user_mask")
    if rule.kind == "none":
        return np.ones(thumbnail.shape[:2], np.bool_)
    density = _density(thumbnail, rule.smooth_um / thumbnail_mpp)
    pen = _pen(density, rule, thumbnail_mpp)
    colour = density[..., 1] - np.minimum(density[..., 0], density[..., 2])
    tissue = (colour > _colour_threshold(colour[~pen], rule)) & ~pen
    tissue = ~_dilate(~_dilate(tissue, rule.close_um / thumbnail_mpp), rule.close_um / thumbnail_mpp)
    tissue = ~_drop_small(~tissue, rule.hole_um2 / thumbnail_mpp**2) & ~pen
    tissue = _open(tissue, rule.open_um / thumbnail_mpp)
    return _drop_small(tissue, rule.object_um2 / thumbnail_mpp**2)


def _density(thumbnail: npt.NDArray[np.uint8], sigma_px: float) -> npt.NDArray[np.int32]:
    """Optical density of the smoothed thumbnail relative to its glass, int32 (h, w, 3) in 1/1000."""
    density = _DENSITY[cv2.GaussianBlur(thumbnail, (0, 0), sigma_px)]
    colour = density[..., 1] - np.minimum(density[..., 0], density[..., 2])
    glass = (density.max(axis=2) < 200) & (colour < 80)
    if np.count_nonzero(glass) >= 0.01 * glass.size:
        # The brightest tenth: pale tissue can look like tinted glass, but glass is brighter than it.
        density -= np.percentile(density[glass], 10, axis=0, method="lower").astype(np.int32)
    return np.maximum(density, 0)


def _colour_threshold(colour: npt.NDArray[np.int32], rule: TissueRule) -> int:
    found = threshold_otsu(np.clip(colour, 0, 500)) if colour.size else 0
    return int(np.clip(found, rule.colour_min, rule.colour_max))


def _pen(density: npt.NDArray[np.int32], rule: TissueRule, mpp: float) -> Bools:
    """Where a pen was: strokes in colours that stains do not have, then what they fade into."""
    red, green, blue = 100 * density[..., 0], density[..., 1], 100 * density[..., 2]
    cold = (red > rule.cold_ratio * green) & (red > 100 * rule.cold_density)
    warm = np.where(blue > rule.warm_ratio * green, green, 0)
    warm = apply_hysteresis_threshold(warm, rule.warm_thin_density, rule.warm_density)
    bright_red = red < rule.red_ratio * green
    light = bright_red & (blue > rule.light_ratio * green) & (green > rule.light_density)
    light = _open(light, rule.light_radius_um / mpp)
    strokes = _open(cold | warm, rule.stroke_radius_um / mpp) | light
    faded = (red > rule.fade_cold_ratio * green) | (blue > rule.fade_warm_ratio * green)
    faded &= _dilate(strokes, rule.fade_um / mpp)
    faded |= bright_red & (blue > rule.fade_light_ratio * green) & _dilate(light, rule.fade_um / mpp)
    return _dilate(strokes | faded, rule.halo_um / mpp)


def _dilate(mask: Bools, radius_px: float) -> Bools:
    """Every pixel within a distance of the mask; the cost does not grow with the radius."""
    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= radius_px


def _open(mask: Bools, radius_px: float) -> Bools:
    return _dilate(~_dilate(~mask, radius_px), radius_px) & mask


def _drop_small(mask: Bools, area_px: float) -> Bools:
    """Without the pieces below an area. skimage renamed the limit between the versions we allow."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= area_px
    keep[0] = False
    return keep[labels]


def patch_tissue_fraction(
    mask: Bools | npt.NDArray[np.uint8],
    x_px0: npt.NDArray[np.integer[Any]],
    y_px0: npt.NDArray[np.integer[Any]],
    sides_px0: tuple[int, int],
    size_px0: tuple[int, int],
    whole: int = 1,
) -> npt.NDArray[np.float32]:
    """Share of tissue in patches: each pixel of the mask counts as far as a patch covers it.

    Parameters
    ----------
    mask : bool or uint8 (h, w)
        Mask of the whole slide; its pixels are rectangles of ``w0 / w`` by ``h0 / h`` level-0 pixels.
    x_px0, y_px0 : int (n,)
        Upper left corners.
    sides_px0 : (int, int)
        Width and height of a patch.
    size_px0 : (int, int)
        Width and height of the slide. What a patch covers beyond it is not tissue.
    whole : int
        Value of a pixel of the mask that counts wholly.

    Returns
    -------
    float32 (n,)
    """
    # The integral of a mask of rectangles is bilinear inside each of them, so interpolating it is exact.
    integral = cv2.integral(mask.astype(np.uint8))
    h, w = mask.shape
    x, y = x_px0.astype(np.int64), y_px0.astype(np.int64)

    def below(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        (i, u), (j, v) = _cell(x, size_px0[0], w), _cell(y, size_px0[1], h)
        top = integral[j, i] * (1 - u) + integral[j, i + 1] * u
        bottom = integral[j + 1, i] * (1 - u) + integral[j + 1, i + 1] * u
        return top * (1 - v) + bottom * v

    x_end, y_end = x + sides_px0[0], y + sides_px0[1]
    covered = below(x_end, y_end) - below(x, y_end) - below(x_end, y) + below(x, y)
    area = (sides_px0[0] * w / size_px0[0]) * (sides_px0[1] * h / size_px0[1])
    return np.clip(covered / (area * whole), 0, 1).astype(np.float32)


def _cell(
    at_px0: npt.NDArray[np.int64], size: int, cells: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Which of `cells` equal cells a coordinate is in and how far (0 to 1), split in integers."""
    scaled = np.clip(at_px0, 0, size) * cells
    cell = np.minimum(scaled // size, cells - 1)
    return cell, (scaled - cell * size) / size
