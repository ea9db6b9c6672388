"""The views of one task through one encoder: batches are cut, kept in flight on the device, and put into their places.

Batches are cut inside a task and each is encoded by one thread alone, so that neither the number of threads nor where
a block runs, nor which other encoders see the same views, changes its bytes on a CPU.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.inference.loaded import OnDevice
from pipeline.inference.task import Task
from pipeline.runtime.work import Advance
from pipeline.views.patch_views import RowViews
from pipeline.views.policy import Policy
from stores.errors import FeatureError
from stores.format import features, manifest, recipe, tokens
from stores.format.same_views import require_equal, view_name


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of views as it is kept."""

    features: npt.NDArray[Any]
    """(B, dim)"""
    tokens: npt.NDArray[Any] | None = None
    """(B, t, width)"""
    attention: npt.NDArray[Any] | None = None
    """(B, grid * grid)"""


Encode = Callable[[OnDevice, npt.NDArray[np.uint8], npt.NDArray[np.int32] | None], Encoded]
"""Takes an encoder, views, and the positions of the tokens to keep, (B, t), or None; raises FeatureError when a value
cannot be kept."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How patches become views, and what is kept of them and of what the encoder makes of them."""

    policy: Policy
    encode: Encode
    dtype: type[np.floating[Any]]
    """Type of the features that `encode` returns."""
    pixels: bool = False
    """Whether the patches' pixels are kept too."""
    tokens: recipe.Tokens | None = None
    """Which patch tokens are kept too; None for none."""
    attention: recipe.Attention | None = None
    """Which attention is kept too; None for none."""


@dataclass(slots=True)
class EncodedBlock:
    """The results of a task, ready to be written."""

    features: npt.NDArray[Any]
    """(seeds, rows of the whole block, dim), in the type that is kept; NaN where there is none."""
    views: pa.Table
    pixels: npt.NDArray[np.uint8] | None
    reasons: Mapping[int, str]
    """Why rows could not be read."""
    positions: npt.NDArray[np.int32] | None = None
    """(seeds, rows of the whole block, t) of the tokens, which are written already; -1 where there are none."""
    attention: npt.NDArray[np.float16] | None = None
    """(seeds, rows of the whole block, grid * grid); NaN where there is none."""


class Sink(Protocol):
    """Writes the results of one task."""

    def tokens(self, seed: int, index: int, values: npt.NDArray[np.float16]) -> None:
        """Write a chunk of tokens as soon as it is full; `seed` counts from the task's first.

        Parameters
        ----------
        index : int
            Number of the chunk in the slide.
        values : float16 (rows of the chunk, t, width)
        """

    def commit(self, block: EncodedBlock) -> None:
        """Write the block, after all of its tokens; when this has returned, the task is done for good."""


class TaskEncoding:
    """A task under way: takes its rows in order, and has the block when the last batch has landed.

    Parameters
    ----------
    patches
        All patches of the slide.
    device : Executor
        The threads that encode.
    in_flight : int
        Batches that are on the device, or wait for it, before the oldest is waited for.
    """

    def __init__(
        self,
        task: Task,
        patches: manifest.Patches,
        encoder: OnDevice,
        kept: Kept,
        sink: Sink,
        device: Executor,
        in_flight: int,
        advance: Advance,
    ) -> None:
        self._task, self._patches, self._encoder, self._kept = task, patches, encoder, kept
        self._device, self._in_flight, self._advance = device, in_flight, advance
        self._whole = features.block_range(task.n_patches, task.block)
        shape = len(task.seeds), len(self._whole)
        self._result = np.full((*shape, encoder.identity.dim), np.nan, kept.dtype)
        self._pixels = self._positions = self._buffer = self._attention = None
        if kept.pixels:
            side = kept.policy.patch_px
            self._pixels = np.zeros((len(self._whole), side, side, 3), np.uint8)
        if kept.tokens is not None:
            self._positions = np.full((*shape, kept.tokens.count), tokens.NO_POSITION, np.int32)
            self._buffer = tokens.ChunkBuffer(
                len(task.seeds), self._whole, task.n_patches, kept.tokens, sink.tokens
            )
        if kept.attention is not None:
            self._attention = np.full((*shape, kept.attention.grid**2), np.nan, np.float16)
        self._records: list[tuple[Any, ...]] = []
        self._reasons: dict[int, str] = {}
        self._batch: list[tuple[int, int, npt.NDArray[np.uint8]]] = []
        self._flight: collections.deque[tuple[list[tuple[int, int]], Future[Any]]] = collections.deque()

    @property
    def reasons(self) -> Mapping[int, str]:
        """Why rows could not be read, as far as they were taken."""
        return self._reasons

    def take(self, row: int, got: RowViews, at: Sequence[int], grid: int) -> None:
        """Add a row.

        Parameters
        ----------
        at
            Where the task's seeds are among those of `got`.
        grid : int
            Which positions of `got` are those of the tokens that are kept, where some are.
        """
        task, offset = self._task, row - self._whole.start
        if got.error:
            self._reasons[row] = got.error
            self._advance(len(task.seeds))
        if self._pixels is not None and got.patch is not None:
            self._pixels[offset] = got.patch
        if self._positions is not None and got.positions:
            self._positions[:, offset] = got.positions[grid][list(at)]
        for i, (seed, j) in enumerate(zip(task.seeds, at, strict=True)):
            crc = None if got.error else got.crcs[j]
            if crc is not None:
                self._compare(row, i, crc)
            self._records.append((row, seed, crc, got.params[j]))
            if not got.error:
                self._batch.append((i, offset, got.views[j]))
                if len(self._batch) == self._encoder.batch_size:
                    self._launch()

    def finish(self) -> EncodedBlock:
        """Wait for the last batches."""
        if self._batch:
            self._launch()
        while self._flight:
            self._land()
        if self._buffer is not None:
            self._buffer.flush()
        views = views_table(self._task, self._patches, self._records)
        return EncodedBlock(
            self._result, views, self._pixels, self._reasons, self._positions, self._attention
        )

    def _compare(self, row: int, i: int, crc: int) -> None:
        """Raise ViewMismatch when another store has another checksum of the view."""
        task = self._task
        for expected in task.expected:
            place = int(self._patches.x_px0[row]), int(self._patches.y_px0[row])
            view = view_name(task.source.slide_id, row, *place, task.seeds[i])
            require_equal(int(expected.crc32[i, row - task.rows.start]), crc, view, expected.store)

    def _launch(self) -> None:
        stacked = np.stack([view for _, _, view in self._batch])
        places = [(i, offset) for i, offset, _ in self._batch]
        chosen = None
        if self._positions is not None:
            chosen = self._positions[tuple(np.transpose(places))]
        self._flight.append((places, self._device.submit(self._kept.encode, self._encoder, stacked, chosen)))
        self._batch.clear()
        if len(self._flight) > self._in_flight:
            self._land()

    def _land(self) -> None:
        places, job = self._flight.popleft()
        task, start = self._task, self._whole.start
        try:
            got: Encoded = job.result()
        except FeatureError as error:
            i, offset = places[0]
            where = f"{task.source.slide_id} from row {start + offset} seed {task.seeds[i]}"
            raise FeatureError(f"{where}: {error}") from None
        for number, (i, offset) in enumerate(places):
            self._result[i, offset] = got.features[number]
            if self._attention is not None and got.attention is not None:
                self._attention[i, offset] = got.attention[number]
            if self._buffer is not None and got.tokens is not None:
                self._buffer.put(i, start + offset, got.tokens[number])
        self._advance(len(places))


def views_table(task: Task, patches: manifest.Patches, records: list[tuple[Any, ...]]) -> pa.Table:
    """The commit record's rows, ordered by seed, then row."""
    ordered = sorted(records, key=lambda record: (record[1], record[0]))
    rows = np.array([record[0] for record in ordered])
    n = len(ordered)
    columns: dict[str, Any] = {
        "slide_id": [task.source.slide_id] * n,
        "row": rows,
        "x_px0": patches.x_px0[rows],
        "y_px0": patches.y_px0[rows],
        "seed": [record[1] for record in ordered],
        "split": [task.split] * n,
        "tissue": patches.tissue[rows],
        "status": [manifest.BAD_READ if record[2] is None else manifest.OK for record in ordered],
        "view_crc32": [record[2] for record in ordered],
    }
    for name in manifest.DRAWN_SCHEMA.names:
        columns[name] = [getattr(record[3], name) for record in ordered]
    return pa.table(columns, schema=manifest.VIEWS_SCHEMA)
