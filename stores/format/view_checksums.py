"""The checksums of a slide's views: what proves that two stores show the same pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import ViewMismatch
from stores.format import manifest
from stores.format.committed import read_records
from stores.format.recipe import Patch
from stores.io.location import StoreLike

NONE = -1
"""Stands where a view is not committed, or could not be read."""


def read_checksums(
    store: StoreLike, row: Mapping[str, Any], n_seeds: int, patch: Patch | None = None
) -> npt.NDArray[np.int64]:
    """The ``view_crc32`` of the views of a usable slide, int64 (n_seeds, n_patches); `NONE` where there is none.

    Raises
    ------
    CorruptStore
        When patches or a commit record break a promise.
    """
    found = np.full((n_seeds, row["n_patches"]), NONE, np.int64)
    for _, table in read_records(store, row, patch):
        seeds, rows = table["seed"].to_numpy(), table["row"].to_numpy()
        crc32 = table["view_crc32"].cast("int64").fill_null(NONE).to_numpy()
        wanted = seeds < n_seeds
        found[seeds[wanted], rows[wanted]] = crc32[wanted]
    return found


@dataclass(frozen=True, slots=True)
class Expected:
    """What another store says of the views of a task."""

    store: str
    """Its name, for messages."""
    crc32: npt.NDArray[np.int64]
    """(seeds, rows) of the task; `NONE` where that store has no such view."""


def require_equal(expected: int, found: int, view: str, store: str) -> None:
    """Raise ViewMismatch when both stores have a view and its checksums differ.

    Parameters
    ----------
    view
        Names slide, patch and seed.
    store
        The store that `expected` is from.
    """
    if NONE not in (expected, found) and expected != found:
        raise ViewMismatch(
            f"{view}: the view has crc32 {found:08x}, {store} has {expected:08x}: another slide file, decoder version "
            "or code; use the same versions (see reader in its recipe.json), or extract without --like"
        )


def view_name(slide_id: str, patches: manifest.Patches, row: int, seed: int) -> str:
    """Slide, patch and seed of a view, for messages."""
    return f"slide {slide_id} row {row} ({patches.x_px0[row]},{patches.y_px0[row]}) seed {seed}"
