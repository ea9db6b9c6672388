"""One block of stage one: read, render, encode, write. A process has one `Station` for all of its blocks.

Patches are read and rendered by threads, ahead of the device; while one block is on the device the next is read and the
one before is written. Batches are cut inside a block and each is encoded by one thread alone, so that neither the
number of threads nor where a block runs changes its bytes on a CPU.
"""

import collections
import functools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pyarrow as pa
import torch

from pipeline import cluster, devices, views
from pipeline import slides as slide_files
from pipeline.options import ExtractOptions
from pipeline.patches import PatchPool, started
from pipeline.rows import RowViews, draw_row
from pipeline.tasks import Task
from pipeline.teacher import Teacher, load_teacher
from stores import disk, features, manifest, pixels, recipe
from stores.errors import ClusterError, CorruptStore, FeatureError

_ENDED = "the run has ended; this block was left"


@dataclass(slots=True)
class Block:
    """The results of a task, ready to be written."""

    features: npt.NDArray[np.float16]
    """(seeds, rows of the whole block, dim); NaN where there is none."""
    views: pa.Table
    pixels: npt.NDArray[np.uint8] | None


@dataclass(slots=True)
class Outcome:
    """What a worker tells of a block; the block itself is in the store."""

    views: int = 0
    bad_reads: list[str] = field(default_factory=list)
    device_seconds: float = 0.0
    wait_seconds: float = 0.0
    figures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs to know beside its task."""

    job: str
    store: Path
    """Absolute: workers may stand in another folder."""
    options: ExtractOptions
    processes: int | None
    """That share a machine's CPUs, see `cluster.threads_of`."""


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What the process that plans has to know of the teacher, which it does not load itself."""

    identity: recipe.Teacher
    dtype_reason: str
    device: str
    licence: str


def reader_identity() -> recipe.Reader:
    """The software in this process that decides pixels."""
    return recipe.Reader(
        openslide=openslide.__library_version__,
        opencv=cv2.__version__,
        resampling=slide_files.RESAMPLING,
        rendering=views.RENDERING,
        colour="as stored",
    )


def describe_teacher(job: str, options: ExtractOptions) -> TeacherFacts:
    """Load the teacher where the work will be, or find it loaded, and say what it is."""
    teacher = _teacher(job, options)
    return TeacherFacts(teacher.identity, teacher.dtype_reason, str(teacher.device), teacher.encoder.licence)


@dataclass(frozen=True, slots=True)
class _Loaded:
    teacher: Teacher

    def close(self) -> None: ...


def _teacher(job: str, options: ExtractOptions) -> Teacher:
    def load() -> _Loaded:
        return _Loaded(load_teacher(cluster.with_number(options, torch.cuda.device_count())))

    loaded: _Loaded = cluster.station(job, ("teacher", options), load)
    return loaded.teacher


def extract_block(setup: Setup, task: Task, advance: cluster.Advance) -> Outcome:
    """Do a task from reading to its commit record; the work of `pipeline.extract`."""
    station: Station = cluster.station(setup.job, ("extract", setup), functools.partial(_open_station, setup))
    return station.run(task, advance)


def _open_station(setup: Setup) -> "Station":
    stored = recipe.load(setup.store)
    teacher = _teacher(setup.job, setup.options)
    assert stored.policy is not None  # the recipe is settled before any task is made
    here = recipe.Recipe(stored.patch, teacher.identity, stored.policy, reader_identity())
    recipe.require_same(stored, here, str(setup.store))
    policy = views.Policy.from_json(stored.policy)
    options = setup.options
    threads = cluster.threads_of(options.threads, setup.processes)
    return Station(setup.store, teacher, policy, options.pixels, threads, options.readers)


class Station:
    """A process's teacher with its threads.

    Parameters
    ----------
    keep : bool
        Whether the patches' pixels are written too.
    threads : int
        That read and render; on a CPU as many encode.
    readers : str
        ``threads``, ``processes``, or ``auto``: processes unless the teacher is on the CPU.
    """

    def __init__(
        self,
        store: Path,
        teacher: Teacher,
        policy: views.Policy,
        keep: bool,
        threads: int,
        readers: str = "threads",
    ) -> None:
        self._store, self._teacher, self._policy, self._keep = store, teacher, policy, keep
        on_cpu = teacher.device.type == "cpu"
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
        self._ahead = 2 * threads + 4 * teacher.batch_size
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

    def run(self, task: Task, advance: cluster.Advance) -> Outcome:
        """Read, encode and write a block; blocks take turns on the device, and read ahead while they wait."""
        try:
            return self._run(task, advance)
        except Exception as error:
            if self._closed:  # threads were stopped under it
                raise ClusterError(_ENDED) from error
            raise

    def _run(self, task: Task, advance: cluster.Advance) -> Outcome:
        outcome = Outcome()
        patches = manifest.read_patches(self._store, task.source.slide_id)
        if len(patches) != task.n_patches:
            raise CorruptStore(
                f"{manifest.patches_path(self._store, task.source.slide_id)}: {len(patches)} patches, "
                f"the slides table has {task.n_patches}"
            )
        rows = self.read(task, patches)
        with self._turn:
            cluster.step_aside()
            began = time.monotonic()
            block = self.encode(task, patches, rows, outcome, advance)
            outcome.device_seconds = time.monotonic() - began
        with self._writing:
            self._require_open()
            write_block(self._store, task, block)
        outcome.figures = devices.peak_memory(self._teacher.device)
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
        """Pull the task's rows through the teacher, a few batches in flight on the device."""
        whole = features.block_range(task.n_patches, task.block)
        result = np.full((len(task.seeds), len(whole), self._teacher.identity.dim), np.nan, np.float16)
        kept = None
        if self._keep:
            kept = np.zeros((len(whole), self._policy.patch_px, self._policy.patch_px, 3), np.uint8)
        records: list[tuple[Any, ...]] = []
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
            flight.append((places, self._device.submit(self._teacher.encode, stacked)))
            batch.clear()
            if len(flight) > self._encoders:
                land()

        for row in task.rows:
            began = time.monotonic()
            got = next(rows).result()
            outcome.wait_seconds += time.monotonic() - began
            offset = row - whole.start
            if got.error:
                outcome.bad_reads.append(f"{task.source.slide_id} row {row}: {got.error}")
                advance(len(task.seeds))
            if kept is not None and got.patch is not None:
                kept[offset] = got.patch
            for i, (seed, param) in enumerate(zip(task.seeds, got.params, strict=True)):
                crc = None if got.error else got.crcs[i]
                records.append((row, seed, crc, param))
                if not got.error:
                    batch.append((i, offset, got.views[i]))
                    if len(batch) == self._teacher.batch_size:
                        launch()
        if batch:
            launch()
        while flight:
            land()
        outcome.views = len(records)
        return Block(result, _views_table(task, patches, records), kept)

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


def write_block(store: Path, task: Task, block: Block) -> None:
    """Write chunks, flush them, then publish the commit record: in this order a kill loses nothing.

    Raises
    ------
    DiskFull
        When there is no room for the block; what was committed before is kept.
    """
    slide_id = task.source.slide_id
    size = block.features.nbytes + (0 if block.pixels is None else block.pixels.nbytes)
    disk.require_free(store, size, f"{task}")
    for i, seed in enumerate(task.seeds):
        features.write_block(store, slide_id, seed, task.block, block.features[i])
    if block.pixels is not None:
        start = features.block_range(task.n_patches, task.block).start
        pixels.write_rows(store, slide_id, start, block.pixels)
    manifest.write_commit(store, slide_id, task.block, task.seeds, block.views)
