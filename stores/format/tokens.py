"""Patch tokens of the teacher, a few of each view: optional, in the rows and seeds of the features.

``features.zarr/<slide_id>/tokens``     float16 (seed, row, t, dim), chunk (1, chunk_rows, t, dim)
``features.zarr/<slide_id>/positions``  int32 (seed, row, t), chunk (1, block_rows, t): where in the view's grid of
                                        patches the tokens are, counted row by row from 0; ascending

The recipe says how many there are and how positions are drawn. Positions are stored too, because drawing them needs the
slide's fingerprint, which an export under pseudonyms does not have.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

LEAVES = ("positions", "tokens")
CHUNK_BYTES = 8 << 20
NO_POSITION = -1


def chunk_rows(n_rows: int, count: int, dim: int) -> int:
    """Rows of a chunk: the largest divisor of the block's rows whose tokens take at most 8 MB; at least one.

    >>> chunk_rows(10_000, 16, 1536), chunk_rows(10_000, 256, 1536), chunk_rows(1025, 16, 1536), chunk_rows(5, 4, 24)
    (128, 8, 136, 5)
    """
    size, most = block_rows(n_rows), CHUNK_BYTES // (2 * count * dim)
    return max((n for n in range(1, min(size, most) + 1) if size % n == 0), default=1)


def forms(n_rows: int, n_seeds: int, about: recipe.Tokens) -> dict[str, Form]:
    """The arrays of a slide's tokens, by the last part of their names."""
    count, dim = about.count, about.dim
    shape, rows = (n_seeds, n_rows, count), chunk_rows(n_rows, count, dim)
    return {
        "positions": Form(shape, (1, block_rows(n_rows), count), "int32", NO_POSITION),
        "tokens": Form((*shape, dim), (1, rows, count, dim), "float16", math.nan),
    }


def create_slide(store: Path, slide_id: str, n_rows: int, n_seeds: int, about: recipe.Tokens) -> None:
    """Make a slide's arrays of tokens, or add seeds to them.

    Raises
    ------
    CorruptStore
        When there are arrays of another shape.
    """
    for leaf, form in forms(n_rows, n_seeds, about).items():
        ensure_array(store, feature_array(slide_id, leaf), form, grows=True)


def write_positions(
    store: Path, slide_id: str, seed: int, block: int, positions: npt.NDArray[np.int32]
) -> None:
    """Write the positions of one (seed, block), int32 (rows of the block, t), and flush them."""
    name = feature_array(slide_id, "positions")
    spec = read_spec(store, name, 3, "int32")
    rows = block_range(spec.shape[1], block)
    if positions.shape != (len(rows), spec.shape[2]) or positions.dtype != np.int32:
        raise StoreError(f"{slide_id} block {block}: positions {positions.dtype} {positions.shape}")
    chunks.write_chunk(store, name, spec, (seed, block, 0), positions[None], NO_POSITION)


def write_chunk(store: Path, slide_id: str, seed: int, index: int, values: npt.NDArray[np.float16]) -> None:
    """Write the tokens of one (seed, chunk of rows), float16 (rows of the chunk, t, dim), and flush them."""
    name = feature_array(slide_id, "tokens")
    spec = read_spec(store, name, 4, "float16")
    start = index * spec.chunks[1]
    stop = min(start + spec.chunks[1], spec.shape[1])
    if values.shape != (stop - start, *spec.shape[2:]) or values.dtype != np.float16:
        raise StoreError(f"{slide_id} rows {start}-{stop - 1}: tokens {values.dtype} {values.shape}")
    chunks.write_chunk(store, name, spec, (seed, index, 0, 0), values[None], math.nan)


class ChunkBuffer:
    """Collects the tokens of a block in the order of its rows and writes them chunk by chunk.

    A block of 1,024 rows under 4 seeds with all 256 tokens takes 3.2 GB; this holds one chunk for each seed.

    Parameters
    ----------
    n_seeds : int
        Number of seeds in the block's task.
    rows : range
        Rows of the whole block.
    n_rows : int
        Number of rows of the whole slide.
    write
        Called with the place of a seed among those of the task, the chunk's index in the slide and float16 (rows of the
        chunk, t, dim); rows that were never put in are NaN.
    """

    def __init__(
        self,
        n_seeds: int,
        rows: range,
        n_rows: int,
        about: recipe.Tokens,
        write: Callable[[int, int, npt.NDArray[np.float16]], None],
    ) -> None:
        self._rows, self._size = rows, chunk_rows(n_rows, about.count, about.dim)
        self._shape = n_seeds, self._size, about.count, about.dim
        self._write = write
        self._index = -1
        self._held: npt.NDArray[np.float16] = np.empty(0, np.float16)

    def put(self, seed: int, row: int, values: npt.NDArray[np.float16]) -> None:
        """Add the tokens of a view, (t, dim). Rows come in ascending order, so chunks of earlier rows are complete."""
        index, offset = divmod(row, self._size)
        if index != self._index:
            self.flush()
            self._index, self._held = index, np.full(self._shape, np.nan, np.float16)
        self._held[seed, offset] = values

    def flush(self) -> None:
        """Write the chunks that are held."""
        if self._index >= 0:
            left = min(self._size, self._rows.stop - self._index * self._size)
            for seed, values in enumerate(self._held):
                self._write(seed, self._index, values[:left])
        self._index = -1


@dataclass(frozen=True, slots=True)
class SlideTokens:
    """A slide's tokens, open for reading by whole chunks."""

    store: StoreLike
    slide_id: str
    tokens: ArraySpec
    positions: ArraySpec
    about: recipe.Tokens

    @property
    def n_rows(self) -> int:
        return self.tokens.shape[1]

    @property
    def chunk_rows(self) -> int:
        return self.tokens.chunks[1]

    def read_chunk(self, seed: int, index: int) -> npt.NDArray[np.float16]:
        """float16 (rows of the chunk, t, dim). Rows that were never committed are NaN."""
        rows = range(index * self.chunk_rows, min((index + 1) * self.chunk_rows, self.n_rows))
        found = self._read("tokens", self.tokens, (seed, index, 0, 0), rows)
        return np.full((len(rows), *self.tokens.shape[2:]), np.nan, np.float16) if found is None else found

    def read_positions(self, seed: int, block: int) -> npt.NDArray[np.int32]:
        """int32 (rows of the block, t). Those of rows that were never committed are `NO_POSITION`."""
        rows = block_range(self.n_rows, block)
        found = self._read("positions", self.positions, (seed, block, 0), rows)
        return np.full((len(rows), self.about.count), NO_POSITION, np.int32) if found is None else found

    def _read(self, leaf: str, spec: ArraySpec, at: tuple[int, ...], rows: range) -> npt.NDArray[Any] | None:
        """The rows of a chunk of one seed, None where there is no such chunk."""
        name = feature_array(self.slide_id, leaf)
        try:
            chunk = chunks.read_chunk(self.store, name, spec, at)
        except StoreError as error:
            what = f"{self.slide_id} seed {at[0]} {leaf} of rows {rows.start}-{rows.stop - 1}"
            raise type(error)(f"{what}: {error}") from None
        return None if chunk is None else chunk[0, : len(rows)]

    def chunks_of(self, block: int) -> range:
        """The chunks that make up a block."""
        rows = block_range(self.n_rows, block)
        return range(rows.start // self.chunk_rows, math.ceil(rows.stop / self.chunk_rows))


def open_tokens(store: StoreLike, slide_id: str, about: recipe.Tokens) -> SlideTokens:
    """Open a slide's tokens for reading.

    Raises
    ------
    StoreError
        When there are none.
    CorruptStore
        When they are not what recipe and features say.
    """
    names = {leaf: feature_array(slide_id, leaf) for leaf in LEAVES}
    tokens = read_spec(store, names["tokens"], 4, "float16")
    positions = read_spec(store, names["positions"], 3, "int32")
    n_seeds, n_rows = features.open_features(store, slide_id).spec.shape[:2]
    count, dim = about.count, about.dim
    if tokens.shape != (n_seeds, n_rows, count, dim) or positions.shape != (n_seeds, n_rows, count):
        raise CorruptStore(
            f"{store}/{names['tokens']}: shapes {tokens.shape} and {positions.shape} (positions), expected "
            f"{(n_seeds, n_rows, count, dim)}"
        )
    expected = (1, chunk_rows(n_rows, count, dim), count, dim)
    if tokens.chunks != expected or positions.chunks != (1, block_rows(n_rows), count):
        raise CorruptStore(f"{store}/{names['tokens']}: chunks {tokens.chunks}, expected {expected}")
    return SlideTokens(store, slide_id, tokens, positions, about)


def require_positions(positions: npt.NDArray[np.int32], about: recipe.Tokens, what: str) -> None:
    """Raise CorruptStore unless the positions of each row are ascending and inside the grid."""
    inside = (positions >= 0) & (positions < about.grid**2)
    if not inside.all() or (np.diff(positions, axis=-1) <= 0).any():
        raise CorruptStore(
            f"{what}: token positions that are not ascending numbers from 0 to {about.grid**2 - 1}"
        )


def read_rows(
    opened: SlideTokens,
    chunk: Callable[[int, int], npt.NDArray[np.float16]],
    positions: npt.NDArray[np.int32],
    rows: npt.NDArray[np.int32],
    seed: int,
    block: int,
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int32]]:
    """Tokens float16 (rows, t, dim) and positions int32 (rows, t) of some committed rows of a block.

    Parameters
    ----------
    chunk
        `SlideTokens.read_chunk`, or the same with a cache.
    positions
        Those of the whole block.

    Raises
    ------
    CorruptStore
        When a token is not finite, or positions are wrong.
    """
    what = f"{opened.slide_id} seed {seed} block {block}"
    out = np.empty((len(rows), *opened.tokens.shape[2:]), np.float16)
    for index, places in _by_chunk(rows, opened.chunk_rows):
        out[places] = chunk(seed, index)[rows[places] - index * opened.chunk_rows]
    chosen = take_positions(opened, positions, rows, seed, block)
    return require_finite(out, f"tokens of {what}"), chosen


def take_positions(
    opened: SlideTokens, positions: npt.NDArray[np.int32], rows: npt.NDArray[np.int32], seed: int, block: int
) -> npt.NDArray[np.int32]:
    """Those of some committed rows, int32 (rows, t), out of those of the block; CorruptStore when they are wrong."""
    chosen = positions[rows - block_range(opened.n_rows, block).start]
    require_positions(chosen, opened.about, f"{opened.slide_id} seed {seed} block {block}")
    return chosen


def _by_chunk(rows: npt.NDArray[np.int32], size: int) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    for index in np.unique(rows // size).tolist():
        yield index, rows // size == index
