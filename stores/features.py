"""Teacher features of a store: one Zarr group per slide, each chunk written whole, once, by one writer.

``features.zarr/<slide_id>/features``  float16 (seed, row, dim), chunk (1, block_rows, dim)
``features.zarr/<slide_id>/coords``    int32 (row, 2): x and y of the patch in level-0 pixels
``features.zarr/<slide_id>/stats``     float64 (seed, block, 2, dim): mean and variance of the ok rows

Every codec chain ends in crc32c and the fill value is NaN: a flipped bit and a missing chunk are both errors
here, where plain Zarr would return wrong numbers in silence.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec

from stores.errors import CorruptStore, StoreError
from stores.files import first_line, fsync_path
from stores.manifest import check_slide_id

MAX_BLOCK_ROWS = 1024
ROW_QUANTUM = 32
FLOAT16_MAX = 65504.0
_ALLOWED_CODECS = {"bytes", "crc32c", "zstd", "blosc"}
_MAX_CHUNK_BYTES = 256 << 20


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


def features_root(store: Path) -> Path:
    """The Zarr group that holds a group per slide."""
    return store / "features.zarr"


def open_checked(root: Path, path: str, ndim: int, dtype: str, mode: Any = "r") -> zarr.Array[Any]:
    """Open an array that may come from another lab: dimensions, dtype, codecs and chunk size first.

    Raises
    ------
    StoreError
        When there is no such array.
    CorruptStore
        When it is not what the format says.
    """
    where = f"{root / path}"
    try:
        array = zarr.open_array(root, path=path, mode=mode, zarr_format=3)
    except FileNotFoundError:
        raise StoreError(f"{where}: no such array; is the store complete?") from None
    except Exception as error:  # zarr has no base class for what bad metadata raises
        raise CorruptStore(f"{where}: unreadable array metadata ({first_line(error)})") from None
    if array.ndim != ndim or array.dtype != np.dtype(dtype) or 0 in array.chunks:
        raise CorruptStore(
            f"{where}: {array.dtype} with {array.ndim} dimensions, expected {dtype} with {ndim}"
        )
    metadata: Any = array.metadata.to_dict()
    foreign = {codec["name"] for codec in metadata["codecs"]} - _ALLOWED_CODECS
    if foreign:
        raise CorruptStore(f"{where}: codec {min(foreign)!r}; allowed: {', '.join(sorted(_ALLOWED_CODECS))}")
    if math.prod(array.chunks) * array.dtype.itemsize > _MAX_CHUNK_BYTES:
        raise CorruptStore(f"{where}: chunks of {array.chunks} exceed {_MAX_CHUNK_BYTES >> 20} MiB")
    return array


def chunk_file(array: zarr.Array[Any], root: Path, index: tuple[int, ...]) -> Path:
    """The file that holds a chunk of a local array."""
    return root / array.path / array.metadata.encode_chunk_key(index)


def flush_chunk(array: zarr.Array[Any], root: Path, index: tuple[int, ...]) -> None:
    """Force a written chunk to the disk: Zarr renames it into place but does not fsync."""
    path = chunk_file(array, root, index)
    fsync_path(path)
    fsync_path(path.parent)


def create_array(
    root: Path,
    path: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    fill: float,
    *codecs: Any,
) -> zarr.Array[Any]:
    """Create an array whose codec chain ends in crc32c."""
    group = zarr.open_group(root, mode="a", zarr_format=3)
    return group.create_array(
        path,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        filters=None,
        compressors=[*codecs, Crc32cCodec()],
    )


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
    root = features_root(store)
    name = check_slide_id(slide_id)
    rows = len(coords)
    if not (root / name / "features" / "zarr.json").is_file():
        array = create_array(root, f"{name}/coords", coords.shape, coords.shape, "int32", 0)
        array[:] = coords
        flush_chunk(array, root, (0, 0))
        size = block_rows(rows)
        stats_shape = (n_seeds, n_blocks(rows), 2, dim)
        create_array(root, f"{name}/stats", stats_shape, (1, 1, 2, dim), "float64", math.nan)
        create_array(root, f"{name}/features", (n_seeds, rows, dim), (1, size, dim), "float16", math.nan)
        return
    if not np.array_equal(read_coords(store, slide_id), coords):
        raise CorruptStore(f"{root / name}/coords: other patches than the manifest lists")
    for leaf, ndim, dtype in (("stats", 4, "float64"), ("features", 3, "float16")):
        array = open_checked(root, f"{name}/{leaf}", ndim, dtype, mode="r+")
        if array.shape[-1] != dim:
            raise CorruptStore(f"{root / array.path}: features of length {array.shape[-1]}, expected {dim}")
        if array.shape[0] < n_seeds:
            array.resize((n_seeds, *array.shape[1:]))


def write_block(store: Path, slide_id: str, seed: int, block: int, features: npt.NDArray[np.float16]) -> None:
    """Write the chunk of one (seed, block) and its statistics, and flush both to the disk.

    Parameters
    ----------
    features : float16 (rows of the block, dim)
        NaN in the rows that could not be read; everything else finite.
    """
    root = features_root(store)
    array = open_checked(root, f"{check_slide_id(slide_id)}/features", 3, "float16", mode="r+")
    rows = block_range(array.shape[1], block)
    if features.shape != (len(rows), array.shape[2]) or features.dtype != np.float16:
        expected = (len(rows), array.shape[2])
        raise StoreError(
            f"{slide_id} block {block}: got {features.dtype} {features.shape}, expected float16 {expected}"
        )
    array[seed, rows.start : rows.stop] = features
    flush_chunk(array, root, (seed, block, 0))
    stats = open_checked(root, f"{slide_id}/stats", 4, "float64", mode="r+")
    stats[seed, block] = _mean_and_variance(features)
    flush_chunk(stats, root, (seed, block, 0, 0))


def _mean_and_variance(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    wide = features.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a block without one readable row: NaN
        return np.stack([np.nanmean(wide, axis=0), np.nanvar(wide, axis=0)])


def read_coords(store: Path, slide_id: str) -> npt.NDArray[np.int32]:
    """Level-0 x and y of each patch of a slide, int32 (row, 2)."""
    array = open_checked(features_root(store), f"{check_slide_id(slide_id)}/coords", 2, "int32")
    if array.shape[1] != 2:
        raise CorruptStore(
            f"{features_root(store) / slide_id}/coords: shape {array.shape}, expected (rows, 2)"
        )
    return read_selection(array, (slice(None),), f"{slide_id} coords")


def read_selection(array: zarr.Array[Any], selection: tuple[Any, ...], what: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(array[selection])
    except Exception as error:  # codecs raise ValueError, RuntimeError, OSError ... on damaged bytes
        raise CorruptStore(f"{what}: damaged chunk ({first_line(error)})") from error


@dataclass(frozen=True, slots=True)
class SlideFeatures:
    """A slide's features, open for reading by whole blocks."""

    slide_id: str
    array: zarr.Array[Any]

    @property
    def n_seeds(self) -> int:
        return int(self.array.shape[0])

    @property
    def n_rows(self) -> int:
        return int(self.array.shape[1])

    @property
    def dim(self) -> int:
        return int(self.array.shape[2])

    def read_block(self, seed: int, block: int) -> npt.NDArray[np.float16]:
        """float16 (rows of the block, dim). Rows that were never committed are NaN; see `require_finite`."""
        rows = block_range(self.n_rows, block)
        if not 0 <= seed < self.n_seeds or not rows:
            raise StoreError(
                f"{self.slide_id}: no seed {seed} block {block}; the store has {self.n_seeds} seeds "
                f"of {n_blocks(self.n_rows)} blocks"
            )
        what = f"{self.slide_id} seed {seed} rows {rows.start}-{rows.stop - 1}"
        return read_selection(self.array, (seed, slice(rows.start, rows.stop)), what)


def open_features(store: Path, slide_id: str) -> SlideFeatures:
    """Open a slide's features for reading."""
    array = open_checked(features_root(store), f"{check_slide_id(slide_id)}/features", 3, "float16")
    if array.chunks[:2] != (1, block_rows(array.shape[1])):
        raise CorruptStore(
            f"{features_root(store) / slide_id}/features: chunks {array.chunks}, "
            f"expected (1, {block_rows(array.shape[1])}, {array.shape[2]})"
        )
    return SlideFeatures(slide_id, array)


def require_finite(features: npt.NDArray[np.float16], what: str) -> npt.NDArray[np.float16]:
    """Return `features`; committed rows that hold NaN mean a lost chunk, hence CorruptStore."""
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=-1)).sum())
        raise CorruptStore(
            f"{what}: {bad} committed rows have no finite features; a chunk is missing or damaged"
        )
    return features


def read_stats(store: Path, slide_id: str) -> npt.NDArray[np.float64]:
    """Mean and variance per (seed, block), float64 (seed, block, 2, dim); NaN where not committed."""
    array = open_checked(features_root(store), f"{check_slide_id(slide_id)}/stats", 4, "float64")
    return read_selection(array, (slice(None),), f"{slide_id} stats")


@dataclass(slots=True)
class RunningStats:
    """Per-dimension mean and variance, combined block by block (Chan, Golub & LeVeque 1979)."""

    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0  # sum of squared deviations

    def add(self, count: int, mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> None:
        """Take in a block of `count` rows with its own mean and variance, (dim,) each."""
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + variance * count + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        """Population variance, (dim,)."""
        return np.asarray(self.squares / max(self.count, 1))
