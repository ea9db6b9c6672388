"""A process's encoders with their threads: patches are read, views rendered and encoded. Stage one and ``embed`` run
on it.

Patches are read and rendered by threads, ahead of the device; while one block is on the device the next is read and the
one before is written. A view is rendered once for all encoders that are to see it.
"""

import contextlib
import functools
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.inference.encoding import EncodedBlock, Kept, Sink, TaskEncoding
from pipeline.inference.loaded import OnDevice
from pipeline.inference.task import Task
from pipeline.runtime import devices
from pipeline.runtime.work import Advance, ends_the_run, portable, step_aside
from pipeline.slides.pool import PatchPool, rows_at_once, started
from pipeline.views.patch_views import RowViews, draw_row
from stores.errors import ClusterError
from stores.format import manifest
from stores.io.ranges import aligned

_ENDED = "the run has ended; this block was left"


@dataclass(frozen=True, slots=True)
class Channel:
    """One of the encoders, and what is kept of its work."""

    encoder: OnDevice
    kept: Kept
    """The policy of all channels is the same."""


@dataclass(frozen=True, slots=True)
class Part:
    """A task for one of the encoders."""

    channel: int
    task: Task
    sink: Sink
    """Writes its results."""


@dataclass(slots=True)
class Outcome:
    """What a worker returns for a task, whose results are in the store already, or why they are not."""

    views: int = 0
    bad_reads: list[str] = field(default_factory=list)
    device_seconds: float = 0.0
    wait_seconds: float = 0.0
    figures: dict[str, int] = field(default_factory=dict)
    failure: Exception | None = None
    """Why its encoder or its store failed, when tasks of other encoders saw the same views."""
    trace: str = ""


class Engine:
    """A process's encoders with their threads.

    Parameters
    ----------
    channels
        The encoders; one or several.
    threads : int
        That read and render; as many encode on a CPU.
    readers : str
        ``threads``, ``processes``, or ``auto``: processes unless the encoders are on the CPU.
    """

    def __init__(self, channels: Sequence[Channel], threads: int, readers: str = "threads") -> None:
        self._channels = channels
        where = {channel.encoder.device for channel in channels}
        on_gpu = any(device.type != "cpu" for device in where)
        self._readers = PatchPool(threads, readers == "processes" or (readers == "auto" and on_gpu))
        self._torch_threads = torch.get_num_threads()
        self._threads = threads
        self._devices = {device: self._encoding_threads(device) for device in where}
        self._turn, self._writing = threading.Lock(), threading.Lock()
        self._closed = False

    def _encoding_threads(self, device: torch.device) -> ThreadPoolExecutor:
        # how many threads torch takes is a setting of each thread
        torch_threads = 1 if device.type == "cpu" else self._torch_threads
        return ThreadPoolExecutor(
            self._in_flight(device), "encode", initializer=torch.set_num_threads, initargs=(torch_threads,)
        )

    def _in_flight(self, device: torch.device) -> int:
        # two threads keep a GPU busy: one waits for its features while the other sends the next batch
        return self._threads if device.type == "cpu" else 2

    def close(self) -> None:
        """End blocks that are under way; when this has returned, none of them writes any more."""
        self._closed = True
        with self._writing:
            pass
        self._readers.close()
        for threads in self._devices.values():
            threads.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    def run(self, task: Task, patches: manifest.Patches, sink: Sink, advance: Advance) -> Outcome:
        """Read, encode and write a block with the first encoder; raises when that fails."""
        (outcome,) = self.run_all([Part(0, task, sink)], patches, advance)
        if outcome.failure is not None:
            raise outcome.failure
        return outcome

    def run_all(self, parts: Sequence[Part], patches: manifest.Patches, advance: Advance) -> list[Outcome]:
        """Read a block, encode it for each part, and write the results of each.

        Blocks take turns on the device, and read ahead while they wait. A part that fails leaves the others alone; what
        ends a run is raised.

        Parameters
        ----------
        parts
            Tasks of the same block of the same slide; their seeds may differ.
        patches
            All patches of the slide.
        """
        try:
            return self._run(parts, patches, advance)
        except Exception as error:
            if self._closed:  # threads were stopped under it
                raise ClusterError(_ENDED) from error
            raise

    def _run(self, parts: Sequence[Part], patches: manifest.Patches, advance: Advance) -> list[Outcome]:
        seeds = sorted({seed for part in parts for seed in part.task.seeds})
        grids = dict.fromkeys(self._channels[part.channel].kept.tokens for part in parts)
        grids.pop(None, None)
        rows = self._read(parts, patches, seeds, list(grids))
        with self._turn:
            step_aside()
            began = time.monotonic()
            running = [self._begin(part, patches, seeds, list(grids), advance) for part in parts]
            waited = self._feed(running, rows)
            took = time.monotonic() - began
        for each in running:
            each.commit()
        figures: dict[str, int] = {}
        for device in self._devices:
            for name, value in devices.peak_memory(device).items():
                figures[name] = max(value, figures.get(name, 0))
        return [each.outcome(took, waited, figures) for each in running]

    def _read(
        self, parts: Sequence[Part], patches: manifest.Patches, seeds: Sequence[int], grids: Sequence[Any]
    ) -> Iterator[RowViews]:
        """The rows of the parts in order; the first ones are under way when this returns."""
        task, channels = parts[0].task, [self._channels[part.channel] for part in parts]
        pixels = any(channel.kept.pixels for channel in channels)
        place = functools.partial(draw_row, channels[0].kept.policy, tuple(seeds), pixels, tuple(grids))
        at_once = rows_at_once(len(seeds))
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
        batch_size = max(channel.encoder.batch_size for channel in channels)
        ahead = max(2 * self._threads, -(-4 * batch_size // (at_once * len(seeds))))
        coming = started(jobs, ahead)
        return (views for job in coming for views in job.result())

    def _begin(
        self,
        part: Part,
        patches: manifest.Patches,
        seeds: Sequence[int],
        grids: Sequence[Any],
        advance: Advance,
    ) -> "_Running":
        channel, sink = self._channels[part.channel], _OpenSink(self, part.sink)
        device = channel.encoder.device
        encoding = TaskEncoding(
            *(part.task, patches, channel.encoder, channel.kept, sink),
            *(self._devices[device], self._in_flight(device), advance),
        )
        at = [seeds.index(seed) for seed in part.task.seeds]
        grid = 0 if channel.kept.tokens is None else grids.index(channel.kept.tokens)
        return _Running(self, part.task, sink, encoding, at, grid)

    def _feed(self, running: Sequence["_Running"], rows: Iterator[RowViews]) -> float:
        """Pull rows through the encoders until all have their blocks, or failed; returns the seconds without a row."""
        waited = 0.0
        for row in running[0].task.rows:
            began = time.monotonic()
            got = next(rows)
            waited += time.monotonic() - began
            self.require_open()
            for each in running:
                each.take(row, got)
            if all(each.failure is not None for each in running):
                break
        for each in running:
            each.finish()
        return waited

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


@dataclass(slots=True)
class _Running:
    """A part under way; once it has failed it takes nothing more."""

    engine: Engine
    task: Task
    sink: Sink
    encoding: TaskEncoding
    at: Sequence[int]
    """Where its seeds are among those that are rendered."""
    grid: int
    """Which of the grids of tokens is its own."""
    block: EncodedBlock | None = None
    failure: Exception | None = None
    trace: str = ""

    def take(self, row: int, got: RowViews) -> None:
        self._try(lambda: self.encoding.take(row, got, self.at, self.grid))

    def finish(self) -> None:
        def finish() -> None:
            self.block = self.encoding.finish()

        self._try(finish)

    def commit(self) -> None:
        def commit() -> None:
            if self.block is not None:
                self.sink.commit(self.block)

        self._try(commit)

    def _try(self, work: Callable[[], None]) -> None:
        if self.failure is not None:
            return
        try:
            work()
        except Exception as error:
            self.engine.require_open()
            if ends_the_run(portable(error)):
                raise
            self.failure, self.trace = error, traceback.format_exc()

    def outcome(self, took: float, waited: float, figures: dict[str, int]) -> Outcome:
        if self.failure is not None:
            return Outcome(failure=self.failure, trace=self.trace)
        slide_id = self.task.source.slide_id
        bad_reads = [f"{slide_id} row {row}: {why}" for row, why in self.encoding.reasons.items()]
        return Outcome(self.task.n_views, bad_reads, took, waited, figures)
