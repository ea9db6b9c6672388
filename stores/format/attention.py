"""The teacher's attention: how much its class token looks at each patch of a view. Optional, beside the features.

``features.zarr/<slide_id>/attention``  float16 (seed, row, grid * grid), chunk (1, block_rows, grid * grid)

Values are probabilities as the teacher's last block has them, mean over its heads, patches row by row. Their sum is at
most 1: class token and registers have the rest. With a grid of 16 a view takes 512 bytes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stores.errors import CorruptStore, StoreError
from stores.format import chunks, features, recipe
from stores.format.arrays import ensure_array, read_spec
from stores.format.encoding import Form
from stores.format.features import block_range, block_rows, require_finite
from stores.format.layout import feature_array
from stores.format.metadata import ArraySpec
from stores.io.location import StoreLike

LEAF = "attention"


def form(n_rows: int, n_seeds: int, about: recipe.Attention) -> Form:
    """The array of a slide."""
    count = about.grid**2
    return Form((n_seeds, n_rows, count), (1, block_rows(n_rows), count), "float16", math.nan)


def create_slide(store: Path, slide_id: str, n_rows: int, n_seeds: int, about: recipe.Attention) -> None:
    """Make a slide's array, or add seeds to it; CorruptStore when there is one of another shape."""
    ensure_array(store, feature_array(slide_id, LEAF), form(n_rows, n_seeds, about), grows=True)


def write_block(store: Path, slide_id: str, seed: int, block: int, values: npt.NDArray[np.float16]) -> None:
    """Write one (seed, block), float16 (rows of the block, grid * grid), and flush it."""
    name = feature_array(slide_id, LEAF)
    spec = read_spec(store, name, 3, "float16")
    rows = block_range(spec.shape[1], block)
    if values.shape != (len(rows), spec.shape[2]) or values.dtype != np.float16:
        raise StoreError(f"{slide_id} block {block}: attention {values.dtype} {values.shape}")
    chunks.write_chunk(store, name, spec, (seed, block, 0), values[None], math.nan)


@dataclass(frozen=True, slots=True)
class SlideAttention:
    """A slide's attention, open for reading by whole blocks."""

    slide_id: str
    store: StoreLike
    spec: ArraySpec

    def first_row(self, block: int) -> int:
        """Number of the first row of a block."""
        return block_range(self.spec.shape[1], block).start

    def read_block(self, seed: int, block: int) -> npt.NDArray[np.float16]:
        """float16 (rows of the block, grid * grid), read-only. Rows that were never committed are NaN."""
        rows = block_range(self.spec.shape[1], block)
        what = f"{self.slide_id} seed {seed} attention of rows {rows.start}-{rows.stop - 1}"
        name = feature_array(self.slide_id, LEAF)
        try:
            found = chunks.read_chunk(self.store, name, self.spec, (seed, block, 0))
        except StoreError as error:
            raise type(error)(f"{what}: damaged chunk ({error})") from None
        if found is None:
            return np.full((len(rows), self.spec.shape[2]), np.nan, np.float16)
        return np.asarray(found[0, : len(rows)], np.float16)


def open_attention(store: StoreLike, slide_id: str, about: recipe.Attention) -> SlideAttention:
    """Open a slide's attention for reading.

    Raises
    ------
    StoreError
        When there is none.
    CorruptStore
        When it is not what recipe and features say.
    """
    name = feature_array(slide_id, LEAF)
    spec = read_spec(store, name, 3, "float16")
    n_seeds, n_rows = features.open_features(store, slide_id).spec.shape[:2]
    expected = form(n_rows, n_seeds, about)
    if (spec.shape, spec.chunks) != (expected.shape, expected.chunks):
        raise CorruptStore(
            f"{store}/{name}: shape {spec.shape} in chunks {spec.chunks}, expected {expected.shape} in "
            f"{expected.chunks}"
        )
    return SlideAttention(slide_id, store, spec)


def take_rows(
    values: npt.NDArray[np.float16], rows: npt.NDArray[np.int32], first: int, what: str
) -> npt.NDArray[np.float16]:
    """Committed rows of a block that begins at row `first`, float16 (rows, grid * grid).

    Raises
    ------
    CorruptStore
        When a value is not finite, or they are no probabilities.
    """
    found = require_finite(values[rows - first], f"attention of {what}")
    # the sum of so many numbers of 11 bits each
    if (found < 0).any() or (found.astype(np.float32).sum(axis=1) > 1.01).any():
        raise CorruptStore(f"{what}: attention that is no probability")
    return found
