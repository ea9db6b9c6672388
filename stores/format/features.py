"""Teacher features of a store: one Zarr group per slide, each chunk written whole, once, by one writer.

``features.zarr/<slide_id>/features``  float16 (seed, row, dim), chunk (1, block_rows, dim)
``features.zarr/<slide_id>/coords``    int32 (row, 2): x and y of the patch in level-0 pixels
``features.zarr/<slide_id>/stats``     float64 (seed, block, 2, dim): mean and variance of the ok rows

A compact copy has int8 features, with ``scales`` and ``standard`` beside them (see `stores.format.int8`). It reads the
same.

Every codec chain ends in crc32c and the fill value is NaN. So a flipped bit and a missing chunk are both errors here;
plain Zarr would return wrong numbers.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from stores.errors import CorruptStore, StoreError
from stores.format.arrays import (
    ensure_array,
    open_checked,
    read_selection,
    read_spec,
    read_whole,
)
from stores.format.chunks import read_chunk, write_chunk
from stores.format.encoding import Form
from stores.format.int8 import dequantise
from stores.format.layout import MAX_READ_BYTES, chunk_file, feature_array
from stores.format.manifest import MAX_BLOCK_ROWS, MAX_SEEDS
from stores.format.metadata import ArraySpec
from stores.format.statistics import all_finite, mean_and_variance
from stores.io.files import make_folder
from stores.io.location import StoreLike

ROW_QUANTUM = 32
FLOAT16_MAX = 65504.0


def block_rows(n_rows: int) -> int:
    """Rows of a block: the slide cut into equal blocks of at most 1024, a multiple of 32.

    A plain 1024 would store a slide of 1,025 patches as two full chunks, twice its size.

    >>> block_rows(1025), block_rows(10_000), block_rows(70), block_rows(5)
    (544, 1024, 96, 5)
    """
    if n_rows <= ROW_QUANTUM:
        return max(n_rows, 1)
    blocks = math.ceil(n_rows / MAX_BLOCK_ROWS)
    return math.ceil(n_rows / blocks / ROW_QUANTUM) * ROW_QUANTUM


def n_blocks(n_rows: int) -> int:
    """How many blocks a slide of `n_rows` patches has."""
    return math.ceil(n_rows / block_rows(n_rows))


def block_range(n_rows: int, block: int) -> range:
    """The rows of a block."""
    size = block_rows(n_rows)
    return range(block * size, min((block + 1) * size, n_rows))


def forms(n_rows: int, n_seeds: int, dim: int) -> dict[str, Form]:
    """The arrays of a slide as they are extracted, by the last part of their names."""
    size = block_rows(n_rows)
    return {
        "coords": Form((n_rows, 2), (n_rows, 2), "int32", 0),
        "stats": Form((n_seeds, n_blocks(n_rows), 2, dim), (1, 1, 2, dim), "float64", math.nan),
        "features": Form((n_seeds, n_rows, dim), (1, size, dim), "float16", math.nan),
    }


def create_slide(store: Path, slide_id: str, coords: npt.NDArray[np.int32], n_seeds: int, dim: int) -> None:
    """Make a slide's arrays, or add seeds to them; shapes are fixed before the first write.

    Parameters
    ----------
    coords : int32 (row, 2)
        Level-0 x and y of each patch.

    Raises
    ------
    CorruptStore
        When arrays exist that belong to other patches or another feature length.
    """
    for leaf, form in forms(len(coords), n_seeds, dim).items():
        ensure_array(store, feature_array(slide_id, leaf), form, grows=leaf != "coords")
    name = feature_array(slide_id, "coords")
    if not (store / chunk_file(name, (0, 0))).is_file():
        write_coords(store, slide_id, coords)
    elif not np.array_equal(read_coords(store, slide_id), coords):
        raise CorruptStore(f"{store / name}: other patches than the manifest lists")


def write_coords(store: Path, slide_id: str, coords: npt.NDArray[np.int32]) -> None:
    """Write the places of a slide's patches, int32 (row, 2), and flush them."""
    name = feature_array(slide_id, "coords")
    write_chunk(store, name, read_spec(store, name, 2, "int32"), (0, 0), coords, 0)


def write_block(store: Path, slide_id: str, seed: int, block: int, features: npt.NDArray[np.float16]) -> None:
    """As `write_seeds`, for one seed: float16 (rows of the block, dim)."""
    write_seeds(store, slide_id, range(seed, seed + 1), block, features[None])


def write_seeds(
    store: Path, slide_id: str, seeds: range, block: int, features: npt.NDArray[np.float16]
) -> None:
    """Write a block: for each seed its chunk and its statistics, each flushed to the disk.

    Parameters
    ----------
    features : float16 (seeds, rows of the block, dim)
        NaN in the rows that could not be read; everything else finite.
    """
    names = [feature_array(slide_id, leaf) for leaf in ("features", "stats")]
    spec, stats_spec = read_spec(store, names[0], 3, "float16"), read_spec(store, names[1], 4, "float64")
    expected = (len(seeds), len(block_range(spec.shape[1], block)), spec.shape[2])
    if seeds.start < 0 or seeds.stop > spec.shape[0]:
        raise StoreError(
            f"{slide_id} block {block}: seeds {seeds.start} to {seeds.stop - 1}, the store has {spec.shape[0]}"
        )
    if features.shape != expected or features.dtype != np.float16:
        raise StoreError(
            f"{slide_id} block {block}: got {features.dtype} {features.shape}, expected float16 {expected}"
        )
    places = ((names[0], (block, 0)), (names[1], (block, 0, 0)))
    files = (store / chunk_file(name, (seed, *at)) for seed in seeds for name, at in places)
    make_folder(*(file.parent for file in files))
    for seed, values in zip(seeds, features, strict=True):
        write_chunk(store, names[0], spec, (seed, block, 0), values[None], math.nan)
        found = mean_and_variance(values)[None, None]
        write_chunk(store, names[1], stats_spec, (seed, block, 0, 0), found, math.nan)


def write_stats(store: Path, slide_id: str, seed: int, block: int, features: npt.NDArray[np.float16]) -> None:
    """Write mean and variance of one (seed, block), and flush them."""
    name = feature_array(slide_id, "stats")
    spec = read_spec(store, name, 4, "float64")
    write_chunk(store, name, spec, (seed, block, 0, 0), mean_and_variance(features)[None, None], math.nan)


def read_coords(store: StoreLike, slide_id: str) -> npt.NDArray[np.int32]:
    """Level-0 x and y of each patch of a slide, int32 (row, 2)."""
    name = feature_array(slide_id, "coords")
    spec = read_spec(store, name, 2, "int32")
    if spec.shape[1] != 2 or spec.chunks != spec.shape or spec.compressor is not None:
        raise CorruptStore(
            f"{store}/{name}: shape {spec.shape} in chunks {spec.chunks}, expected (rows, 2) in one chunk"
        )
    found = read_chunk(store, name, spec, (0, 0))
    if found is None:
        raise CorruptStore(f"{store}/{chunk_file(name, (0, 0))}: is missing")
    return found


@dataclass(frozen=True, slots=True)
class SlideFeatures:
    """A slide's features, open for reading by whole blocks."""

    slide_id: str
    store: StoreLike
    spec: ArraySpec
    scales: zarr.Array[Any] | None = None
    """float32 (seed, row) of a compact copy."""
    standard: npt.NDArray[np.float32] | None = None
    """float32 (2, dim) of a compact copy."""

    @property
    def n_seeds(self) -> int:
        return self.spec.shape[0]

    @property
    def n_rows(self) -> int:
        return self.spec.shape[1]

    @property
    def dim(self) -> int:
        return self.spec.shape[2]

    def read_block(
        self, seed: int, block: int, memory: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.float16]:
        """float16 (rows of the block, dim), read-only. Rows that were never committed are NaN; see `require_finite`.

        `memory` is that of `stores.format.chunks.read_chunk`.
        """
        rows = block_range(self.n_rows, block)
        if not 0 <= seed < self.n_seeds or not rows:
            raise StoreError(
                f"{self.slide_id}: no seed {seed} block {block}; the store has {self.n_seeds} seeds "
                f"of {n_blocks(self.n_rows)} blocks"
            )
        what = f"{self.slide_id} seed {seed} rows {rows.start}-{rows.stop - 1}"
        name = feature_array(self.slide_id, "features")
        try:
            chunk = read_chunk(self.store, name, self.spec, (seed, block, 0), memory)
        except StoreError as error:
            raise type(error)(f"{what}: damaged chunk ({error})") from None
        if chunk is None:
            return np.full((len(rows), self.dim), np.nan, np.float16)
        values = chunk[0, : len(rows)]
        if self.scales is None or self.standard is None:
            return values
        scales = read_selection(self.scales, (seed, slice(rows.start, rows.stop)), f"{what} scales")
        return dequantise(values, scales, self.standard)

    def rounding(self, seed: int, block: int) -> npt.NDArray[np.float32] | float:
        """How far values of a block may be from those that were extracted, float32 (dim,); 0 unless compact."""
        if self.scales is None or self.standard is None:
            return 0.0
        rows = block_range(self.n_rows, block)
        what = f"{self.slide_id} seed {seed} rows {rows.start}-{rows.stop - 1} scales"
        scales = read_selection(self.scales, (seed, slice(rows.start, rows.stop)), what)
        largest = np.max(scales, initial=0, where=np.isfinite(scales))
        mean, std = np.abs(self.standard)
        # half a step of int8, and that of float16
        return np.asarray(largest * np.where(std > 0, std, 1) * (0.5 + 127 * 2**-11) + mean * 2**-11)


def open_features(store: StoreLike, slide_id: str) -> SlideFeatures:
    """Open a slide's features for reading, also those of a compact copy."""
    name = feature_array(slide_id, "features")
    spec = read_spec(store, name, 3, ("float16", "int8"))
    n_seeds, n_rows, dim = spec.shape
    if n_seeds > MAX_SEEDS:
        raise CorruptStore(f"{store}/{name}: {n_seeds} seeds, at most {MAX_SEEDS}")
    if spec.chunks != (1, block_rows(n_rows), dim):
        raise CorruptStore(f"{store}/{name}: chunks {spec.chunks}, expected (1, {block_rows(n_rows)}, {dim})")
    if spec.dtype == np.float16:
        return SlideFeatures(slide_id, store, spec)
    scales = open_checked(store, feature_array(slide_id, "scales"), 2, "float32")
    standard = open_checked(store, feature_array(slide_id, "standard"), 2, "float32")
    for leaf, found, expected in (("scales", scales, (n_seeds, n_rows)), ("standard", standard, (2, dim))):
        if found.shape != expected:
            raise CorruptStore(
                f"{store}/{feature_array(slide_id, leaf)}: shape {found.shape}, expected {expected}"
            )
    return SlideFeatures(slide_id, store, spec, scales, read_whole(standard, f"{slide_id} standard"))


def require_finite(features: npt.NDArray[np.float16], what: str) -> npt.NDArray[np.float16]:
    """Return `features`, or raise CorruptStore: NaN in committed rows means that a chunk is lost."""
    if not all_finite(features):
        bad = int((~np.isfinite(features).all(axis=-1)).sum())
        raise CorruptStore(
            f"{what}: {bad} committed rows have no finite features; a chunk is missing or damaged"
        )
    return features


def require_slide(
    store: StoreLike, slide_id: str, coords: npt.NDArray[np.int32], n_seeds: int, dim: int
) -> None:
    """Raise CorruptStore unless the arrays of a slide are those of its patches, seeds and feature length.

    Parameters
    ----------
    coords : int32 (row, 2)
        Level-0 x and y of each patch, as the manifest says.
    n_seeds : int
        Seeds that commit records list.
    """
    name = feature_array(slide_id, "features")
    seeds, *shape = open_features(store, slide_id).spec.shape
    if shape != [len(coords), dim] or seeds < n_seeds:
        raise CorruptStore(
            f"{store}/{name}: shape {(seeds, *shape)}, expected ({n_seeds} or more seeds, {len(coords)}, {dim})"
        )
    if not np.array_equal(read_coords(store, slide_id), coords):
        raise CorruptStore(
            f"{store}/{feature_array(slide_id, 'coords')}: other patches than the manifest lists"
        )


def read_stats(store: StoreLike, slide_id: str) -> npt.NDArray[np.float64]:
    """Mean and variance per (seed, block), float64 (seed, block, 2, dim); NaN where not committed."""
    name = feature_array(slide_id, "stats")
    spec = read_spec(store, name, 4, "float64")
    n_seeds, blocks = spec.shape[:2]
    if n_seeds > MAX_SEEDS or spec.chunks != (1, 1, *spec.shape[2:]) or spec.array_bytes > MAX_READ_BYTES:
        raise CorruptStore(f"{store}/{name}: shape {spec.shape} in chunks {spec.chunks}")
    found = np.full(spec.shape, np.nan)
    for seed in range(n_seeds):
        for block in range(blocks):
            # not by way of Zarr, which takes 0.2 ms for a chunk that is not there
            chunk = read_chunk(store, name, spec, (seed, block, 0, 0))
            if chunk is not None:
                found[seed, block] = chunk[0, 0]
    return found


def read_block_stats(store: StoreLike, slide_id: str, seed: int, block: int) -> npt.NDArray[np.float64]:
    """Mean and variance of one (seed, block), float64 (2, dim); CorruptStore when there are none."""
    name = feature_array(slide_id, "stats")
    spec = read_spec(store, name, 4, "float64")
    if spec.chunks != (1, 1, 2, spec.shape[3]) or spec.shape[2] != 2:
        raise CorruptStore(f"{store}/{name}: shape {spec.shape} in chunks {spec.chunks}")
    found = read_chunk(store, name, spec, (seed, block, 0, 0))
    if found is None:
        raise CorruptStore(
            f"{store}/{chunk_file(name, (seed, block, 0, 0))}: is missing; run `g2l store reindex`"
        )
    return np.asarray(found[0, 0])


def stats_of_block(
    stats: npt.NDArray[np.float64], slide_id: str, seed: int, block: int, dim: int | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and variance of a committed block, (dim,) each, out of those of its slide as `read_stats` returns them.

    Raises
    ------
    CorruptStore
        When there are none, of another length than `dim`, or impossible for float16 features.
    """
    where = f"{slide_id} seed {seed} block {block}: its statistics"
    if seed >= stats.shape[0] or block >= stats.shape[1] or stats.shape[2] != 2 or not stats.shape[3]:
        raise CorruptStore(f"{where} do not exist: the array has the shape {stats.shape}")
    mean, variance = stats[seed, block]
    if dim is not None and len(mean) != dim:
        raise CorruptStore(f"{where} have {len(mean)} dimensions, those of other slides {dim}")
    possible = (np.abs(mean) <= FLOAT16_MAX) & (variance >= 0) & (variance <= FLOAT16_MAX**2)
    if not possible.all():
        raise CorruptStore(f"{where} are missing or damaged; run `g2l store reindex`")
    return mean, variance
