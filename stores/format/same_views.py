"""What has to be equal for two stores to show the same views, and the checksums that prove it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import ViewMismatch
from stores.format.committed import read_records
from stores.format.recipe import CompleteRecipe, Patch, value_differences
from stores.io.location import StoreLike

NONE = -1
"""Stands where a view is not committed, or could not be read."""


def view_differences(a: CompleteRecipe, b: CompleteRecipe) -> list[tuple[str, Any, Any]]:
    """(name, value of a, value of b) of what makes all views of two stores differ. A policy's name does not."""

    def decisive(stored: CompleteRecipe) -> dict[str, Any]:
        policy = {name: value for name, value in stored.policy.items() if name != "name"}
        return {"policy": policy, "patch": {"mpp": stored.patch.mpp, "size_px": stored.patch.size_px}}

    return list(value_differences(decisive(a), decisive(b)))


def read_checksums(
    store: StoreLike, row: Mapping[str, Any], patch: Patch, n_seeds: int | None = None
) -> npt.NDArray[np.int64]:
    """The ``view_crc32`` of the views of a usable slide, int64 (n_seeds, n_patches); `NONE` where there is none.

    Parameters
    ----------
    n_seeds : int, optional
        All that the slide has by default.

    Raises
    ------
    CorruptStore
        When patches or a commit record break a promise.
    """
    records = list(read_records(store, row, patch))
    if n_seeds is None:
        n_seeds = max((commit.seeds.stop for commit, _ in records), default=0)
    found = np.full((n_seeds, row["n_patches"]), NONE, np.int64)
    for _, table in records:
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
            "or code; use the same versions (see reader in its recipe.json), or extract without that store"
        )


def view_name(slide_id: str, row: int, x_px0: int, y_px0: int, seed: int) -> str:
    """Slide, patch and seed of a view, for messages."""
    return f"slide {slide_id} row {row} ({x_px0},{y_px0}) seed {seed}"


def two_checksums(view: str, a: StoreLike, of_a: int, b: StoreLike, of_b: int) -> str:
    """What is said of a view that two stores have otherwise."""
    return f"{view}: {a} has crc32 {of_a:08x}, {b} has {of_b:08x}"
