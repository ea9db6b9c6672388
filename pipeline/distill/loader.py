"""Batches of (view, target): rebuilds views as the teacher saw them and mixes them in a window.

The stream of views is endless: epoch after epoch in the sampler's order, cut into batches that may straddle windows
and epochs. So a position in it is one number, ``views consumed``, and a resumed run goes on with the very next
view. Threads fill the next window while the current one trains.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline import views
from pipeline.patches import PatchPool, Reader, Source
from stores import features, manifest, sampler
from stores.errors import CorruptStore, ReadError, ViewMismatch
from stores.location import StoreLike

CHECK_EVERY = 16  # of the views, under --check-views sample
_CACHED_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """Views and their targets, in the order of the stream."""

    views: npt.NDArray[np.uint8]
    """(B, crop_px, crop_px, 3)"""
    targets: npt.NDArray[np.float16]
    """(B, dim), raw as stored"""
    epoch: int
    """The epoch of the first view, from 0."""


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """What decides the stream (all but the last two) and how it is made."""

    batch_size: int
    window: int
    views_per_read: int
    seed: int
    check_views: str
    threads: int


@dataclass(frozen=True, slots=True)
class CommittedBlock:
    """The manifest rows of one commit record, by (seed, row)."""

    columns: dict[str, npt.NDArray[Any]]
    index: dict[tuple[int, int], int]

    def params(self, at: int) -> views.ViewParams:
        """The drawn parameters of the view at a position."""
        return views.ViewParams(*(self.columns[name][at].item() for name in manifest.DRAWN_SCHEMA.names))


def read_commit(commit: manifest.Commit) -> CommittedBlock:
    """Everything that rebuilding the block's views needs."""
    names = ["row", "seed", "x_px0", "y_px0", "view_crc32", *manifest.DRAWN_SCHEMA.names]
    table = commit.read(names)
    crcs = table["view_crc32"].fill_null(0)
    columns = {name: table[name].to_numpy() for name in names if name != "view_crc32"} | {
        "crc": crcs.to_numpy()
    }
    keys = zip(columns["seed"].tolist(), columns["row"].tolist(), strict=True)
    return CommittedBlock(columns, {key: i for i, key in enumerate(keys)})


class BlockCache:
    """The last few commit records and feature chunks: runs of one block come back under other seeds."""

    def __init__(self, store: StoreLike) -> None:
        self.commit = functools.lru_cache(_CACHED_BLOCKS)(read_commit)
        self._open = functools.lru_cache(256)(functools.partial(features.open_features, store))
        self.chunk = functools.lru_cache(_CACHED_BLOCKS)(self._chunk)

    def _chunk(self, slide_id: str, seed: int, block: int) -> npt.NDArray[np.float16]:
        return self._open(slide_id).read_block(seed, block)

    def targets(self, run: sampler.Run, seed: int) -> npt.NDArray[np.float16]:
        """Targets of a run under one of its seeds, float16 (rows, dim); CorruptStore when one is not finite."""
        slide_id, block = run.commit.slide_id, run.commit.block
        chunk = self.chunk(slide_id, seed, block)
        start = features.block_range(self._open(slide_id).n_rows, block).start
        offsets = run.rows - start
        if offsets.min() < 0 or offsets.max() >= len(chunk):
            raise CorruptStore(
                f"{slide_id} block {block}: the manifest lists rows that the block does not have"
            )
        return features.require_finite(chunk[offsets], f"{slide_id} seed {seed} block {block}")


@dataclass(slots=True)
class Window:
    """Views and targets of a window, already shuffled."""

    views: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.float16]
    epoch: int


def rebuild_row(
    reader: Reader,
    block: CommittedBlock,
    slide_id: str,
    row: int,
    slots: Mapping[int, int],
    out: npt.NDArray[np.uint8],
    policy: views.Policy,
    check: frozenset[int],
) -> None:
    """Read a patch once, render it under each seed of `slots` into ``out[slot]``, check those in `check`.

    Raises
    ------
    ViewMismatch
        When a rendered view is not the one that the teacher saw.
    """
    first = block.index[next(iter(slots)), row]
    x_px0, y_px0 = int(block.columns["x_px0"][first]), int(block.columns["y_px0"][first])
    patch = reader.read(row, x_px0, y_px0)
    for seed, slot in slots.items():
        at = block.index[seed, row]
        out[slot] = views.render(patch, block.params(at), policy)
        if slot in check:
            found, stored = views.view_crc32(out[slot]), int(block.columns["crc"][at])
            if found != stored:
                raise ViewMismatch(
                    f"slide {slide_id} row {row} ({x_px0},{y_px0}) seed {seed}: the rebuilt view has crc32 "
                    f"{found:08x}, the teacher saw {stored:08x}: another slide file, decoder version or code; "
                    "use the store's own pixels, the same versions (see recipe.json), or extract again"
                )


class ViewLoader:
    """An endless stream of batches over `units`; a context manager that stops its threads."""

    def __init__(
        self,
        store: StoreLike,
        units: Sequence[sampler.Run],
        sources: Mapping[str, Source],
        policy: views.Policy,
        options: LoaderOptions,
        start: int = 0,
    ) -> None:
        self.epoch_views = sum(unit.n_views for unit in units)
        self._units, self._sources, self._policy, self._options = units, sources, policy, options
        self._start = start
        self._cache = BlockCache(store)
        self._pool = PatchPool(options.threads)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="window")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)  # first: a window in the making then fails at once instead of finishing
        self._ahead.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        size = self._options.batch_size
        held: Window | None = None  # less than a batch, left over from the windows before
        for window in self._windows():
            at = 0
            if held is not None:
                at = size - len(held.views)
                held = _joined(held, window, at)
                if len(held.views) < size:
                    continue
                yield Batch(held.views, held.targets, held.epoch)
            end = at + (len(window.views) - at) // size * size
            for first in range(at, end, size):
                yield Batch(
                    window.views[first : first + size], window.targets[first : first + size], window.epoch
                )
            held = Window(window.views[end:].copy(), window.targets[end:].copy(), window.epoch)

    def _windows(self) -> Iterator[Window]:
        plans = self._plans()
        coming: Future[Window] = self._ahead.submit(self._fill, *next(plans))
        for plan in plans:
            current, coming = coming, self._ahead.submit(self._fill, *plan)
            yield current.result()

    def _plans(self) -> Iterator[tuple[list[sampler.Run], int, int, int]]:
        """(runs, epoch, number of the window, views of it to skip), from the start position on, endlessly."""
        epoch, skip = divmod(self._start, self.epoch_views)
        while True:
            runs = sampler.epoch_runs(self._units, self._options.seed, epoch, self._options.views_per_read)
            for number, window in enumerate(sampler.windows(runs, self._options.window)):
                n_views = sum(run.n_views for run in window)
                if skip < n_views:
                    yield window, epoch, number, skip
                skip = max(0, skip - n_views)
            epoch += 1

    def _fill(self, runs: Sequence[sampler.Run], epoch: int, number: int, skip: int) -> Window:
        n_views = sum(run.n_views for run in runs)
        order = sampler.permutation(n_views, self._options.seed, epoch, "window", number)
        place = np.empty(n_views, np.int64)
        place[order] = np.arange(n_views)  # where the i-th view of the runs stands in the stream
        crop = self._policy.crop_px
        rendered = np.empty((n_views, crop, crop, 3), np.uint8)
        targets: npt.NDArray[np.float16] | None = None
        jobs, at = [], 0
        for run in runs:
            block = self._cache.commit(run.commit)
            slots = place[at : at + run.n_views].reshape(len(run.seeds), len(run.rows))
            at += run.n_views
            for seed, row_slots in zip(run.seeds, slots, strict=True):
                values = self._cache.targets(run, seed)
                if targets is None:
                    targets = np.empty((n_views, values.shape[1]), np.float16)
                targets[row_slots] = values
            for i, row in enumerate(run.rows.tolist()):
                wanted = {s: int(slots[j, i]) for j, s in enumerate(run.seeds) if slots[j, i] >= skip}
                if wanted:
                    source = self._sources[run.commit.slide_id]
                    args = (
                        block,
                        source.slide_id,
                        row,
                        wanted,
                        rendered,
                        self._policy,
                        self._checked(wanted),
                    )
                    jobs.append(self._pool.submit(source, rebuild_row, *args))
        for job in jobs:
            try:
                job.result()
            except ReadError as error:
                raise ReadError(f"{error}; stage one could read it: is this the same file?") from None
        if targets is None:
            raise CorruptStore("a window without views")
        return Window(rendered[skip:], targets[skip:], epoch)

    def _checked(self, slots: Mapping[int, int]) -> frozenset[int]:
        every = {"all": 1, "sample": CHECK_EVERY}.get(self._options.check_views)
        return frozenset(slot for slot in slots.values() if every and slot % every == 0)


def _joined(held: Window, window: Window, take: int) -> Window:
    return Window(
        np.concatenate([held.views, window.views[:take]]),
        np.concatenate([held.targets, window.targets[:take]]),
        held.epoch if len(held.views) else window.epoch,
    )


def load_views(
    store: StoreLike,
    units: Sequence[sampler.Run],
    sources: Mapping[str, Source],
    policy: views.Policy,
    seed: int,
    n_views: int,
    threads: int,
) -> Batch:
    """At most `n_views` views of one seed, evenly spread over `units`, all checked against the manifest."""
    picked = [(unit, row) for unit in units if seed in unit.seeds for row in unit.rows.tolist()]
    keep = np.unique(np.linspace(0, len(picked) - 1, min(n_views, len(picked))).round().astype(int))
    cache = BlockCache(store)
    out = np.empty((len(keep), policy.crop_px, policy.crop_px, 3), np.uint8)
    targets: list[npt.NDArray[np.float16]] = []
    with PatchPool(threads) as pool:
        jobs = []
        for slot, number in enumerate(keep.tolist()):
            unit, row = picked[number]
            run = sampler.Run(unit.commit, (seed,), np.array([row]))
            targets.append(cache.targets(run, seed)[0])
            slide_id = unit.commit.slide_id
            args = (cache.commit(unit.commit), slide_id, row, {seed: slot}, out, policy, frozenset([slot]))
            jobs.append(pool.submit(sources[slide_id], rebuild_row, *args))
        for job in jobs:
            job.result()
    return Batch(out, np.stack(targets) if targets else np.empty((0, 0), np.float16), 0)
