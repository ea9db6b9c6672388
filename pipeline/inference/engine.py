"""A process's encoder with its threads: reads patches, renders views, encodes them. Stage one and ``embed`` run on it.

Patches are read and rendered by threads, ahead of the device; while one block is on the device the next is read and the
one before is written. Batches are cut inside a block and each is encoded by one thread alone, so that neither the
number of threads nor where a block runs changes its bytes on a CPU.
"""

import collections
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.inference.loaded import OnDevice
from pipeline.inference.task import Task
from pipeline.runtime import devices
from pipeline.runtime.work import Advance, step_aside
from pipeline.slides.pool import PatchPool, rows_at_once, started
from pipeline.views.patch_views import RowViews, draw_row
from pipeline.views.policy import Policy
from stores.errors import ClusterError, FeatureError
from stores.format import features, manifest, recipe, tokens
from stores.format.same_views import require_equal, view_name
from stores.io.ranges import aligned

_ENDED = "the run has ended; this block was left"


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


@dataclass(slots=True)
class Outcome:
    """What a worker returns for a block, whose results are in the store already."""

    views: int = 0
    bad_reads: list[str] = field(default_factory=list)
    device_seconds: float = 0.0
    wait_seconds: float = 0.0
    figures: dict[str, int] = field(default_factory=dict)


class Engine:
    """A process's encoder with its threads.

    Parameters
    ----------
    threads : int
        That read and render; on a CPU as many encode.
    readers : str
        ``threads``, ``processes``, or ``auto``: processes unless the encoder is on the CPU.
    """

    def __init__(self, encoder: OnDevice, kept: Kept, threads: int, readers: str = "threads") -> None:
        self._encoder, self._kept = encoder, kept
        on_cpu = encoder.device.type == "cpu"
        self._readers = PatchPool(threads, readers == "processes" or (readers == "auto" and not on_cpu))
        # two threads keep a GPU busy: one waits for its features while the other sends the next batch
        self._encoders = threads if on_cpu else 2
        self._torch_threads = torch.get_num_threads()
        # how many threads torch takes is a setting of each thread
        self._device = ThreadPoolExecutor(
            self._encoders,
            "encode",
            initializer=torch.set_num_threads,
            initargs=(1 if on_cpu else self._torch_threads,),
        )
        self._threads = threads
        self._turn, self._writing = threading.Lock(), threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End blocks that are under way; when this has returned, none of them writes any more."""
        self._closed = True
        with self._writing:
            pass
        self._readers.close()
        self._device.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    def run(self, task: Task, patches: manifest.Patches, sink: Sink, advance: Advance) -> Outcome:
        """Read, encode and write a block; blocks take turns on the device, and read ahead while they wait.

        Parameters
        ----------
        patches
            All patches of the slide.
        """
        try:
            return self._run(task, patches, _OpenSink(self, sink), advance)
        except Exception as error:
            if self._closed:  # threads were stopped under it
                raise ClusterError(_ENDED) from error
            raise

    def _run(self, task: Task, patches: manifest.Patches, sink: Sink, advance: Advance) -> Outcome:
        outcome = Outcome()
        rows = self._read(task, patches)
        with self._turn:
            step_aside()
            began = time.monotonic()
            block = self._encode(task, patches, rows, outcome, sink, advance)
            outcome.device_seconds = time.monotonic() - began
        sink.commit(block)
        outcome.figures = devices.peak_memory(self._encoder.device)
        return outcome

    def _read(self, task: Task, patches: manifest.Patches) -> Iterator[RowViews]:
        """The task's rows in order; the first ones are under way when this returns."""
        kept = self._kept
        place = functools.partial(draw_row, kept.policy, task.seeds, kept.pixels, kept.tokens)
        at_once = rows_at_once(len(task.seeds))
        jobs = (
            self._readers.submit_all(
                task.source,
                place,
                [
                    (
                        patches.key(row, task.fingerprint),
                        row,
                        int(patches.x_px0[row]),
                        int(patches.y_px0[row]),
                    )
                    for row in rows
                ],
            )
            for rows in aligned(task.rows, at_once)
        )
        ahead = max(2 * self._threads, -(-4 * self._encoder.batch_size // (at_once * len(task.seeds))))
        coming = started(jobs, ahead)
        return (views for job in coming for views in job.result())

    def _encode(
        self,
        task: Task,
        patches: manifest.Patches,
        rows: Iterator[RowViews],
        outcome: Outcome,
        sink: Sink,
        advance: Advance,
    ) -> EncodedBlock:
        """Pull the task's rows through the encoder, a few batches in flight on the device."""
        whole = features.block_range(task.n_patches, task.block)
        shape = len(task.seeds), len(whole), self._encoder.identity.dim
        result = np.full(shape, np.nan, self._kept.dtype)
        pixels = None
        if self._kept.pixels:
            side = self._kept.policy.patch_px
            pixels = np.zeros((len(whole), side, side, 3), np.uint8)
        positions, buffer = self._room_for_tokens(task, sink)
        attention = None
        if self._kept.attention is not None:
            attention = np.full((*shape[:2], self._kept.attention.grid**2), np.nan, np.float16)
        records: list[tuple[Any, ...]] = []
        reasons: dict[int, str] = {}
        batch: list[tuple[int, int, npt.NDArray[np.uint8]]] = []
        flight: collections.deque[tuple[list[tuple[int, int]], Future[Any]]] = collections.deque()

        def land() -> None:
            places, job = flight.popleft()
            try:
                got = job.result()
            except FeatureError as error:
                seed, offset = places[0]
                where = f"{task.source.slide_id} from row {whole.start + offset} seed {task.seeds[seed]}"
                raise FeatureError(f"{where}: {error}") from None
            for i, (seed, offset) in enumerate(places):
                result[seed, offset] = got.features[i]
                if attention is not None and got.attention is not None:
                    attention[seed, offset] = got.attention[i]
                if buffer is not None and got.tokens is not None:
                    buffer.put(seed, whole.start + offset, got.tokens[i])
            advance(len(places))

        def launch() -> None:
            self.require_open()
            stacked = np.stack([view for _, _, view in batch])
            places = [(seed, offset) for seed, offset, _ in batch]
            chosen = None
            if positions is not None:
                chosen = positions[tuple(np.transpose(places))]
            flight.append((places, self._device.submit(self._kept.encode, self._encoder, stacked, chosen)))
            batch.clear()
            if len(flight) > self._encoders:
                land()

        for row in task.rows:
            began = time.monotonic()
            got = next(rows)
            outcome.wait_seconds += time.monotonic() - began
            offset = row - whole.start
            if got.error:
                reasons[row] = got.error
                outcome.bad_reads.append(f"{task.source.slide_id} row {row}: {got.error}")
                advance(len(task.seeds))
            if pixels is not None and got.patch is not None:
                pixels[offset] = got.patch
            if positions is not None and got.positions is not None:
                positions[:, offset] = got.positions
            for i, (seed, param) in enumerate(zip(task.seeds, got.params, strict=True)):
                crc = None if got.error else got.crcs[i]
                if task.expected is not None and crc is not None:
                    place = int(patches.x_px0[row]), int(patches.y_px0[row])
                    view = view_name(task.source.slide_id, row, *place, seed)
                    wanted = int(task.expected.crc32[i, row - task.rows.start])
                    require_equal(wanted, crc, view, task.expected.store)
                records.append((row, seed, crc, param))
                if not got.error:
                    batch.append((i, offset, got.views[i]))
                    if len(batch) == self._encoder.batch_size:
                        launch()
        if batch:
            launch()
        while flight:
            land()
        if buffer is not None:
            buffer.flush()
        outcome.views = len(records)
        views = views_table(task, patches, records)
        return EncodedBlock(result, views, pixels, reasons, positions, attention)

    def _room_for_tokens(
        self, task: Task, sink: Sink
    ) -> tuple[npt.NDArray[np.int32] | None, tokens.ChunkBuffer | None]:
        """Positions for the whole block, none yet, and where its tokens gather until a chunk is full."""
        about = self._kept.tokens
        if about is None:
            return None, None
        whole = features.block_range(task.n_patches, task.block)
        positions = np.full((len(task.seeds), len(whole), about.count), tokens.NO_POSITION, np.int32)
        buffer = tokens.ChunkBuffer(len(task.seeds), whole, task.n_patches, about, sink.tokens)
        return positions, buffer

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold `close` back while something is written; ClusterError when the engine is closed."""
        with self._writing:
            self.require_open()
            yield

    def require_open(self) -> None:
        """Raise ClusterError when the engine is closed."""
        if self._closed:
            raise ClusterError(_ENDED)


@dataclass(frozen=True, slots=True)
class _OpenSink:
    """A sink that writes nothing once its engine is closed."""

    engine: Engine
    sink: Sink

    def tokens(self, seed: int, index: int, values: npt.NDArray[np.float16]) -> None:
        with self.engine.writing():
            self.sink.tokens(seed, index, values)

    def commit(self, block: EncodedBlock) -> None:
        with self.engine.writing():
            self.sink.commit(block)


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
