"""One patch under several seeds: drawn for stage one, rebuilt for stage two. Runs in the workers of a `PatchPool`.

Imports nothing heavy: a process that reads patches starts in a second and has no torch in its memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.slides.sources import Reader
from pipeline.views import draw
from pipeline.views.draw import ViewParams
from pipeline.views.policy import Policy
from pipeline.views.render import render, view_crc32
from stores.errors import ReadError, ViewMismatch
from stores.format.recipe import Tokens
from stores.format.same_views import view_name


@dataclass(frozen=True, slots=True)
class RowViews:
    """A patch rendered under every seed of a task, or the reason why it could not be read."""

    views: list[npt.NDArray[np.uint8]]
    """(crop_px, crop_px, 3) for each seed; empty when it could not be read."""
    params: list[ViewParams]
    crcs: list[int]
    patch: npt.NDArray[np.uint8] | None
    positions: tuple[npt.NDArray[np.int32], ...] = ()
    """(seeds, t) for each grid of tokens: which of them are kept of each view."""
    error: str = ""


def draw_row(
    policy: Policy,
    seeds: Sequence[int],
    keep: bool,
    tokens: Sequence[Tokens],
    reader: Reader,
    key: str,
    row: int,
    x_px0: int,
    y_px0: int,
) -> RowViews:
    """Read a patch once and render it as each seed draws it.

    Parameters
    ----------
    tokens
        Each grid of which tokens are kept: teachers that are shown the same view differ in theirs.
    key
        What keys its draws, with its position: `stores.format.manifest.Patches.key`.
    """
    params = [draw.draw(policy, key, x_px0, y_px0, seed) for seed in seeds]
    try:
        patch = reader.read(row, x_px0, y_px0)
    except ReadError as error:
        return RowViews([], params, [], None, error=str(error))
    rendered = [render(patch, param, policy) for param in params]
    crcs = [view_crc32(view) for view in rendered]
    positions = tuple(
        np.stack(
            [draw.draw_tokens(policy, key, x_px0, y_px0, seed, kept.count, kept.grid**2) for seed in seeds]
        )
        for kept in tokens
    )
    return RowViews(rendered, params, crcs, patch if keep else None, positions)


@dataclass(frozen=True, slots=True)
class StoredView:
    """What the manifest says of a view."""

    seed: int
    params: ViewParams
    crc32: int | None
    """To compare with; None leaves it unchecked."""


def rebuild_row(
    policy: Policy,
    reader: Reader,
    slide_id: str,
    row: int,
    x_px0: int,
    y_px0: int,
    wanted: Sequence[StoredView],
    out: Sequence[npt.NDArray[np.uint8]] | None = None,
) -> list[npt.NDArray[np.uint8]]:
    """Read a patch once and render it as the manifest says, uint8 (crop_px, crop_px, 3) for each one wanted.

    Parameters
    ----------
    out
        Where the views are to be written; nothing is returned then.

    Raises
    ------
    ViewMismatch
        When a rendered view is not the one that the teacher saw.
    """
    patch = reader.read(row, x_px0, y_px0)
    made = []
    for i, stored in enumerate(wanted):
        view = render(patch, stored.params, policy)
        if out is None:
            made.append(view)
        else:
            np.copyto(out[i], view)
        found = None if stored.crc32 is None else view_crc32(view)
        if found != stored.crc32:
            named = view_name(slide_id, row, x_px0, y_px0, stored.seed)
            raise ViewMismatch(
                f"{named}: the rebuilt view has crc32 {found:08x}, the teacher saw {stored.crc32:08x}: another slide "
                "file, decoder version or code; use the store's own pixels, the same versions (see recipe.json), or "
                "extract again"
            )
    return made
