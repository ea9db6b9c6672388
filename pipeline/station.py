"""A process's encoder with its threads: reads patches, renders views, encodes them. Stage one and ``embed`` run on it.

Patches are read and rendered by threads, ahead of the device; while one block is on the device the next is read and the
one before is written. Batches are cut inside a block and each is encoded by one thread alone, so that neither the
number of threads nor where a block runs changes its bytes on a CPU.
"""

import collections
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline import cluster, devices, views
from pipeline.on_device import OnDevice
from pipeline.patches import PatchPool, started
from pipeline.rows import RowViews, draw_row
from pipeline.tasks import Task
from stores import features, manifest
from stores.errors import ClusterError, FeatureError

_ENDED = "the run has ended; this block was left"
Encode = Callable[[npt.NDArray[np.uint8]], npt.NDArray[Any]]
"""Features of views, as they are kept; FeatureError when they cannot be."""


@dataclass(slots=True)
class Block:
    """The results of a task, ready to be written."""

    features: npt.NDArray[Any]
    """(seeds, rows of the whole block, dim), in the type that is kept; NaN where there is none."""
    views: pa.Table
    pixels: npt.NDArray[np.uint8] | None
    reasons: Mapping[int, str]
    """Why rows could not be read."""


@dataclass(slots=True)
class Outcome:
    """What a worker tells of a block; the block itself is in the store."""

    views: int = 0
    bad_reads: list[str] = field(default_factory=list)
    device_seconds: float = 0.0
    wait_seconds: float = 0.0
    figures: dict[str, int] = field(default_factory=dict)


class Station:
    """A process's encoder with its threads.

    Parameters
    ----------
    encode
        What `encoder` makes of a batch of views, as it is to be kept, in `dtype`.
    keep : bool
        Whether the patches' pixels are written too.
    threads : int
        That read and render; on a CPU as many encode.
    readers : str
        ``threads``, ``processes``, or ``auto``: processes unless the encoder is on the CPU.
    """

    def __init__(
        self,
        encoder: OnDevice,
        encode: Encode,
        dtype: type[np.floating[Any]],
        policy: views.Policy,
        keep: bool,
        threads: int,
        readers: str = "threads",
    ) -> None:
        self._encoder, self._policy, self._keep = encoder, policy, keep
        self._encode, self._dtype = encode, dtype
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
        self._ahead = 2 * threads + 4 * encoder.batch_size
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

    def run(
        self, task: Task, patches: manifest.Patches, write: Callable[[Block], None], advance: cluster.Advance
    ) -> Outcome:
        """Read, encode and write a block; blocks take turns on the device, and read ahead while they wait.

        Parameters
        ----------
        patches
            Of the whole slide.
        write
            Called with the block when it is whole.
        """
        try:
            return self._run(task, patches, write, advance)
        except Exception as error:
            if self._closed:  # threads were stopped under it
                raise ClusterError(_ENDED) from error
            raise

    def _run(
        self, task: Task, patches: manifest.Patches, write: Callable[[Block], None], advance: cluster.Advance
    ) -> Outcome:
        outcome = Outcome()
        rows = self.read(task, patches)
        with self._turn:
            cluster.step_aside()
            began = time.monotonic()
            block = self.encode(task, patches, rows, outcome, advance)
            outcome.device_seconds = time.monotonic() - began
        with self._writing:
            self._require_open()
            write(block)
        outcome.figures = devices.peak_memory(self._encoder.device)
        return outcome

    def read(self, task: Task, patches: manifest.Patches) -> Iterator[Future[RowViews]]:
        """Futures of the task's rows in order; the first ones are under way when this returns."""
        place = functools.partial(draw_row, self._policy, task.fingerprint, task.seeds, self._keep)
        jobs = (
            self._readers.submit(task.source, place, row, int(patches.x_px0[row]), int(patches.y_px0[row]))
            for row in task.rows
        )
        return started(jobs, max(1, self._ahead // len(task.seeds)))

    def encode(
        self,
        task: Task,
        patches: manifest.Patches,
        rows: Iterator[Future[RowViews]],
        outcome: Outcome,
        advance: cluster.Advance,
    ) -> Block:
        """Pull the task's rows through the encoder, a few batches in flight on the device."""
        whole = features.block_range(task.n_patches, task.block)
        shape = len(task.seeds), len(whole), self._encoder.identity.dim
        result = np.full(shape, np.nan, self._dtype)
        kept = None
        if self._keep:
            kept = np.zeros((len(whole), self._policy.patch_px, self._policy.patch_px, 3), np.uint8)
        records: list[tuple[Any, ...]] = []
        reasons: dict[int, str] = {}
        batch: list[tuple[int, int, npt.NDArray[np.uint8]]] = []
        flight: collections.deque[tuple[list[tuple[int, int]], Future[Any]]] = collections.deque()

        def land() -> None:
            places, job = flight.popleft()
            try:
                values = job.result()
            except FeatureError as error:
                seed, offset = places[0]
                where = f"{task.source.slide_id} from row {whole.start + offset} seed {task.seeds[seed]}"
                raise FeatureError(f"{where}: {error}") from None
            for (seed, offset), value in zip(places, values, strict=True):
                result[seed, offset] = value
            advance(len(places))

        def launch() -> None:
            self._require_open()
            stacked = np.stack([view for _, _, view in batch])
            places = [(seed, offset) for seed, offset, _ in batch]
            flight.append((places, self._device.submit(self._encode, stacked)))
            batch.clear()
            if len(flight) > self._encoders:
                land()

        for row in task.rows:
            began = time.monotonic()
            got = next(rows).result()
            outcome.wait_seconds += time.monotonic() - began
            offset = row - whole.start
            if got.error:
                reasons[row] = got.error
                outcome.bad_reads.append(f"{task.source.slide_id} row {row}: {got.error}")
                advance(len(task.seeds))
            if kept is not None and got.patch is not None:
                kept[offset] = got.patch
            for i, (seed, param) in enumerate(zip(task.seeds, got.params, strict=True)):
                crc = None if got.error else got.crcs[i]
                records.append((row, seed, crc, param))
                if not got.error:
                    batch.append((i, offset, got.views[i]))
                    if len(batch) == self._encoder.batch_size:
                        launch()
        if batch:
            launch()
        while flight:
            land()
        outcome.views = len(records)
        return Block(result, _views_table(task, patches, records), kept, reasons)

    def _require_open(self) -> None:
        if self._closed:
            raise ClusterError(_ENDED)


def _views_table(task: Task, patches: manifest.Patches, records: list[tuple[Any, ...]]) -> pa.Table:
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
