"""The patch grid of a slide: which squares hold tissue, in Morton order."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.slides.contract import SlideFile
from pipeline.slides.slide import ReadPlan, SlideInfo
from pipeline.slides.thumbnail import read_overview
from pipeline.tile import tissue
from pipeline.tile.frames import frames_of, has_choice
from pipeline.tile.masks import load_user_mask
from pipeline.tile.options import TileOptions
from pipeline.tile.qc import PatchQc, SlideQc, judge_patches
from stores.errors import TissueError
from stores.format import manifest, recipe
from stores.format.qc import parse_limits

THUMBNAIL_MPP = 8.0
_WHOLE = 0.9999
"""Share of a pixel from which all of it was scanned: averages in float32 are not exact."""
GRID = "non-overlapping"


def morton_order(col: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The order in which grid cells follow a Morton (Z) curve."""
    code = np.zeros(len(col), np.int64)
    for bit in range(21):
        code |= ((col >> bit) & 1) << (2 * bit) | ((row >> bit) & 1) << (2 * bit + 1)
    return np.argsort(code, kind="stable")


def sample_of(
    fingerprint: str, x_px0: npt.NDArray[np.int32], y_px0: npt.NDArray[np.int32], keep: int
) -> npt.NDArray[np.bool_]:
    """Mask of the `keep` patches that stay: those with the smallest hash of slide and position."""
    keys = [
        hashlib.blake2b(f"{fingerprint} {x} {y}".encode(), digest_size=8).digest()
        for x, y in zip(x_px0.tolist(), y_px0.tolist(), strict=True)
    ]
    chosen = np.zeros(len(keys), bool)
    chosen[sorted(range(len(keys)), key=keys.__getitem__)[:keep]] = True
    return chosen


@dataclass(frozen=True, slots=True)
class Grid:
    """The patches of a slide, and the thumbnail and mask from which they were chosen."""

    patches: manifest.Patches
    thumbnail: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    mask_frame: str = ""
    """Where the coordinates of the user's mask began, when there was a choice."""
    qc: PatchQc | None = None
    """What ``--qc`` says of the patches with enough tissue."""
    left_out: npt.NDArray[np.int32] | None = None
    """Level-0 x and y of the patches that its limits left out, (n, 2)."""


def find_patches(
    file: SlideFile,
    info: SlideInfo,
    plan: ReadPlan,
    rule: tissue.TissueRule,
    options: TileOptions,
    qc: SlideQc | None = None,
) -> Grid:
    """Tissue mask of a slide and the patches with enough of it, in row order; none of them wholly transparent.

    Parameters
    ----------
    qc : SlideQc, optional
        What ``--qc`` says of the slide.

    Raises
    ------
    SlideError
        When the slide cannot be read, or its mask is missing or does not fit, or what ``--qc`` says of it.
    """
    overview = read_overview(file, info, THUMBNAIL_MPP)
    thumbnail, mask_frame = overview.pixels, ""
    size_px0 = (info.width_px0, info.height_px0)
    if options.masks is None:
        mask = tissue.tissue_mask(
            thumbnail, rule, thumbnail_mpp=info.width_px0 * info.mpp / thumbnail.shape[1]
        )
    else:
        frames = frames_of(info, options.mask_frame)
        found = load_user_mask(options.masks, info.slide_id, size_px0, frames, overview.scanned)
        if found is None:
            raise TissueError(
                f"{info.slide_id}: no mask {info.slide_id}.png, .tif or .geojson in the folder of --masks"
            )
        mask = found.pixels
        mask_frame = found.frame.name if has_choice(info) else ""
    wide, high = plan.sides_px0
    across, down = size_px0[0] // wide, size_px0[1] // high
    row, col = np.divmod(np.arange(down * across), max(across, 1))
    x_px0, y_px0 = (col * wide).astype(np.int32), (row * high).astype(np.int32)
    share = tissue.patch_tissue_fraction(mask, x_px0, y_px0, plan.sides_px0, size_px0)
    keep = share >= options.min_tissue
    keep[keep] = scanned_patches(file, plan, overview.scanned, x_px0[keep], y_px0[keep], size_px0)
    judged, left_out, candidates = None, None, np.flatnonzero(keep)
    if qc is not None:
        limits = parse_limits(options.qc_max, options.qc_min)
        places = x_px0[keep], y_px0[keep]
        judged = judge_patches(qc, limits, info, overview.scanned, options.qc_frame, *places, plan.sides_px0)
        left_out = np.stack(places, axis=1)[~judged.judged.keep]
        keep[candidates] = judged.judged.keep
    if options.max_patches is not None and keep.sum() > options.max_patches:
        keep[keep] = sample_of(info.fingerprint, x_px0[keep], y_px0[keep], options.max_patches)
    order = np.flatnonzero(keep)[morton_order(col[keep], row[keep])]
    of_qc = {}
    if judged is not None:
        at = np.searchsorted(candidates, order)
        of_qc = {name: values[at] for name, values in judged.values.items()}
    patches = manifest.Patches(x_px0[order], y_px0[order], share[order], qc=of_qc)
    return Grid(patches, thumbnail, mask, mask_frame, judged, left_out)


def scanned_patches(
    file: SlideFile,
    plan: ReadPlan,
    overview: npt.NDArray[np.float32],
    x_px0: npt.NDArray[np.int32],
    y_px0: npt.NDArray[np.int32],
    size_px0: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    """Which patches have a scanned pixel. Only those are read that the overview shows with a gap.

    Parameters
    ----------
    overview : float32 (h, w)
        How much of each pixel of the overview was scanned.
    """
    whole = overview > _WHOLE
    if whole.all():
        return np.ones(len(x_px0), np.bool_)
    found = tissue.patch_tissue_fraction(whole, x_px0, y_px0, plan.sides_px0, size_px0) > _WHOLE
    for i in np.flatnonzero(~found).tolist():
        corner = int(x_px0[i]), int(y_px0[i])
        found[i] = file.scanned(*corner, plan.level, *plan.read_size_px).any()
    return found


def patch_recipe(options: TileOptions) -> tuple[recipe.Patch, tissue.TissueRule]:
    """The part of the recipe that tiling decides, and the tissue rule in it."""
    rule = tissue.USER_MASK if options.masks is not None else tissue.CLASSICAL
    part = recipe.Patch(options.mpp, options.patch, GRID, options.min_tissue, rule.to_json())
    return part, rule
