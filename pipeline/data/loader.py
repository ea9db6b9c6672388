"""Batches of views and targets. Views are rebuilt as the teacher saw them, and mixed in a window.

The stream of views is endless: epoch after epoch in the order of the sampler, cut into batches. A batch may contain
views of two windows or two epochs. So a position in the stream is one number, the views that all processes have
consumed. A resumed run continues with the very next view, whatever the number of processes. Threads fill the next
window while the current one is used.
"""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.data.committed import BlockCache, Cache
from pipeline.data.joined import Joined, JoinedCache
from pipeline.data.memory import WindowMemory
from pipeline.data.pairs import Beside, Pairs
from pipeline.slides.pool import PatchPool, rows_at_once, started
from pipeline.slides.sources import Source
from pipeline.views.patch_views import rebuild_row
from pipeline.views.policy import Policy
from stores import sampler
from stores.errors import CorruptStore, ReadError
from stores.format import manifest, recipe
from stores.io.location import StoreLike
from stores.io.ranges import aligned, spread

_BLOCKS_BESIDE = 256
"""Blocks whose records are kept for pairs: rows are in order of content, so other tiles of a place are anywhere."""
CHECK_EVERY = 16  # --check-views sample checks one view of 16
SAMPLE_BLOCKS = 256
"""Blocks that a sample of views comes from, if they have enough: each one costs a record and the patches of its slide.

Runs record it, by its name in `SAMPLE`: one that goes on has to take the sample that it began with.
"""
_READERS_OF_A_URL = 16
"""Threads that read from a URL, of records and of patches each: most of the time is waiting."""
SAMPLE = f"blocks-{SAMPLE_BLOCKS}"
"""Names how a sample is taken. A run that does not name it took views from any number of blocks."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What one store keeps of the views of a batch; 0 where it has nothing."""

    targets: npt.NDArray[np.float16]
    """(B, dim), as in `Batch`, and so are the others."""
    tokens: npt.NDArray[np.float16]
    positions: npt.NDArray[np.int32]
    attention: npt.NDArray[np.float16]


_ARRAYS = tuple(field.name for field in fields(Stored))


@dataclass(frozen=True, slots=True)
class Paired:
    """What comes beside the views of a batch: of each, a view of another tile of the same place, where there is one."""

    views: npt.NDArray[np.uint8]
    """(B, crop_px, crop_px, 3); anything where there is none."""
    has: npt.NDArray[np.bool_]
    """(B,) whether there is one."""
    place: npt.NDArray[np.int32]
    """(B,) number of the place that the view shows; -1 where no other tile shows it."""

    def rows(self, which: Any, copied: Callable[[Any], Any] = lambda array: array) -> "Paired":
        """Those of some of the views."""
        return Paired(*(copied(getattr(self, field.name)[which]) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Batch:
    """Views and their targets, in the order of the stream."""

    epoch: int
    """The epoch of the first view, from 0."""
    views: npt.NDArray[np.uint8]
    """(B, crop_px, crop_px, 3)"""
    targets: npt.NDArray[np.float16]
    """(B, dim), raw as stored"""
    tokens: npt.NDArray[np.float16]
    """(B, t, width), patch tokens as stored; t is 0 unless tokens are requested."""
    positions: npt.NDArray[np.int32]
    """(B, t), positions of the tokens in the grid of patches of the view."""
    attention: npt.NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0), np.float16))
    """(B, grid * grid), the teacher's attention as stored; no columns unless it is requested."""
    others: tuple[Stored, ...] = ()
    """Where several stores are joined, those beside the first, whose targets stand above."""
    present: npt.NDArray[np.bool_] | None = None
    """(B, K), which of the K stores has the target of which view; None where there is one store."""
    paired: Paired | None = None
    """None unless pairs are asked for."""
    slide: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """(B,), number of the slide of each view among those of the split; empty outside of a stream."""

    @property
    def stored(self) -> tuple[Stored, ...]:
        """What each store keeps of the views."""
        return Stored(self.targets, self.tokens, self.positions, self.attention), *self.others

    def rows(self, which: Any, copied: Callable[[Any], Any] = lambda array: array) -> "Batch":
        """Some of the views."""
        found = batch_of(self.epoch, *(copied(array[which]) for array in self.arrays()))
        if len(self.slide):
            found = replace(found, slide=copied(self.slide[which]))
        return found if self.paired is None else replace(found, paired=self.paired.rows(which, copied))

    def arrays(self) -> list[npt.NDArray[Any]]:
        """All arrays but those of `paired` and `slide`, in the order of `batch_of`."""
        found: list[npt.NDArray[Any]] = [self.views]
        for of_store in self.stored:
            found += [getattr(of_store, name) for name in _ARRAYS]
        return found if self.present is None else [*found, self.present]


def batch_of(epoch: int, views: npt.NDArray[np.uint8], *stored: npt.NDArray[Any]) -> Batch:
    """A batch of views and of what a cache gave of them: arrays of each store; last, of several, which has which."""
    size = len(_ARRAYS)
    parts = [stored[at : at + size] for at in range(0, len(stored), size)]
    targets, tokens, positions, attention = parts[0]
    if len(parts) == 1:
        return Batch(epoch, views, targets, tokens, positions, attention)
    others = tuple(Stored(*part) for part in parts[1:-1])
    return Batch(epoch, views, targets, tokens, positions, attention, others, stored[-1])


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """What decides the order of views, which share of it is taken, and how views are read."""

    batch_size: int
    """Views of a batch, in one process."""
    window: int
    """Views in memory, over all processes."""
    views_per_read: int
    seed: int
    check_views: str
    threads: int
    rank: int = 0
    world: int = 1
    processes: bool = False
    """Read in processes instead of threads."""
    worker: int = 0
    """Number of this worker of a torch DataLoader. It makes the batches whose number is `worker` modulo `workers`."""
    workers: int = 1
    balance: str = "none"
    """What comes equally often in the stream: ``slide``, ``patient``, or ``none`` for each view once an epoch."""


class ViewLoader:
    """An endless stream of batches from `units`; a context manager that stops its threads."""

    def __init__(
        self,
        store: StoreLike,
        units: Sequence[sampler.Segment],
        sources: Mapping[str, Source],
        policy: Policy,
        options: LoaderOptions,
        start: int = 0,
        tokens: recipe.Tokens | None = None,
        groups: Sequence[Sequence[sampler.Segment]] = (),
        attention: recipe.Attention | None = None,
        joined: Joined | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        self._stream = sampler.Stream(units, options.seed, options.window, options.views_per_read, groups)
        self._policy, self._options, self._start = policy, options, start
        self._cache, self._source = _cache_and_source(store, sources, policy, tokens, attention, joined)
        self._pairs = pairs
        self._slides = slide_numbers(units)
        self._block = self._cache.commit
        if pairs is not None:
            self._block = functools.lru_cache(_BLOCKS_BESIDE)(self._cache.commit)
        self._pool = PatchPool(options.threads, options.processes)
        self._memory = WindowMemory()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="window")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)  # first, so that a window that is being filled fails at once
        self._ahead.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        size = self._options.batch_size
        held: Batch | None = None  # views of earlier windows that do not fill a batch yet
        for window in self._windows():
            at = 0
            if held is not None:
                at = size - len(held.views)
                held = _joined(held, window, at)
                if len(held.views) < size:
                    continue
                yield held
            end = at + (len(window.views) - at) // size * size
            for first in range(at, end, size):
                yield window.rows(slice(first, first + size))
            held = window.rows(slice(end, None), np.copy)

    def _windows(self) -> Iterator[Batch]:
        filled = self._filled()
        coming: Future[Batch] = self._ahead.submit(next, filled)
        while True:
            current, coming = coming, self._ahead.submit(next, filled)
            yield current.result()

    def _filled(self) -> Iterator[Batch]:
        """The views of each window with their targets, mixed; the next window begins before this one is full."""
        begun: collections.deque[_Begun] = collections.deque()
        places: collections.deque[list[int]] = collections.deque()
        running = started(self._jobs(begun, places), 2 * self._options.threads)
        while True:
            plan, beside, rendered = begun.popleft()
            stored: list[npt.NDArray[Any]] = []  # as `batch_of` takes them
            for at, values in self._cache.parts(plan):
                stored = stored or [np.empty((plan.n_views, *v.shape[1:]), v.dtype) for v in values]
                for array, part in zip(stored, values, strict=True):
                    array[at] = part
            if not stored:
                raise CorruptStore("a window without views")
            missing = plan.n_views + (0 if beside is None else int(beside.has.sum()))
            while missing:
                try:
                    rows = next(running).result()
                except ReadError as error:
                    raise ReadError(
                        f"{error}; extract-teacher could read it: is this the same file?"
                    ) from None
                for row in rows:
                    of_row = places.popleft()
                    missing -= len(of_row)
                    # threads have written their views already
                    for place, view in zip(of_row, row, strict=False):
                        rendered[place] = view
            batch = batch_of(plan.epoch, rendered[: plan.n_views], *stored)
            batch = replace(batch, slide=self._slide_of(plan))
            if beside is not None:
                others = Paired(rendered[plan.n_views :], beside.has, beside.place)
                batch = replace(batch, paired=others)
            yield batch

    def _slide_of(self, plan: sampler.Window) -> npt.NDArray[np.int32]:
        found = np.empty(plan.n_views, np.int32)
        for share in plan.shares:
            commit = share.segment.commit
            found[share.places] = self._slides[commit.root, commit.slide_id]
        return found

    def _jobs(
        self,
        begun: collections.deque["_Begun"],
        places: collections.deque[list[int]],
    ) -> Iterator[Future[Any]]:
        """One job for each group of neighbouring rows, window after window.

        Appends each window and the memory for its views to `begun`, and the places of the views of a row to `places`.
        """
        crop, work = self._policy.crop_px, functools.partial(rebuild_row, self._policy)
        for plan in self._plans():
            beside = None if self._pairs is None else self._pairs.beside(plan)
            size = plan.n_views if beside is None else 2 * plan.n_views
            rendered = self._memory.take((size, crop, crop, 3))
            begun.append((plan, beside, rendered))
            for share in [*plan.shares, *([] if beside is None else beside.shares)]:
                block, slide_id = self._block(share.segment.commit), share.segment.commit.slide_id
                listed = zip(share.rows.tolist(), share.seeds.tolist(), share.places.tolist(), strict=True)
                at_once = rows_at_once(len(share.segment.seeds))
                for _, together in itertools.groupby(listed, key=functools.partial(_group_of, at_once)):
                    calls: list[tuple[Any, ...]] = []
                    for row, group in itertools.groupby(together, key=lambda view: view[0]):
                        slots = {seed: place for _, seed, place in group}
                        checked = {seed: self._is_checked(place) for seed, place in slots.items()}
                        out = None if self._options.processes else [rendered[at] for at in slots.values()]
                        calls.append((slide_id, row, *block.request(row, checked), out))
                        places.append(list(slots.values()))
                    yield self._pool.submit_all(self._source(share.segment.commit), work, calls)

    def _plans(self) -> Iterator[sampler.Window]:
        """The part of each window that this process renders: with several workers, the views of its own batches."""
        seen = 0  # views of this rank in the windows before
        for plan in self._stream.windows(self._start, self._options.rank, self._options.world):
            mine = plan if self._options.workers == 1 else _dealt(plan, seen, self._options)
            seen += plan.n_views
            if mine.n_views:
                yield mine

    def _is_checked(self, place: int) -> bool:
        every = {"all": 1, "sample": CHECK_EVERY, "none": 0}[self._options.check_views]
        return every > 0 and place % every == 0


def slide_numbers(units: Sequence[sampler.Segment]) -> dict[tuple[Path, str], int]:
    """A number for each slide, by the folder of its store's tables and its id; in the order of the units."""
    keys = dict.fromkeys((unit.commit.root, unit.commit.slide_id) for unit in units)
    return {key: number for number, key in enumerate(keys)}


_Begun = tuple[sampler.Window, Beside | None, npt.NDArray[np.uint8]]
"""A window that is being filled: its views, what comes beside them, and the memory for both."""


def _group_of(at_once: int, view: tuple[int, int, int]) -> int:
    return view[0] // at_once


def _dealt(plan: sampler.Window, seen: int, options: LoaderOptions) -> sampler.Window:
    """The views of a window that belong to the batches of one worker."""
    batch = (seen + np.arange(plan.n_views)) // options.batch_size
    mine = batch % options.workers == options.worker
    place = np.cumsum(mine) - 1  # among the worker's own
    shares = []
    for share in plan.shares:
        kept = mine[share.places]
        if kept.any():
            places = place[share.places[kept]]
            shares.append(sampler.Share(share.segment, share.rows[kept], share.seeds[kept], places))
    return sampler.Window(plan.epoch, int(mine.sum()), shares)


def _joined(held: Batch, window: Batch, take: int) -> Batch:
    taken = window.rows(slice(None, take))
    both = zip(held.arrays(), taken.arrays(), strict=True)
    found = batch_of(held.epoch if len(held.views) else window.epoch, *map(np.concatenate, both))
    found = replace(found, slide=np.concatenate([held.slide, taken.slide]))
    if held.paired is None or taken.paired is None:
        return found
    parts = (
        np.concatenate([getattr(of, field.name) for of in (held.paired, taken.paired)])
        for field in fields(Paired)
    )
    return replace(found, paired=Paired(*parts))


def _cache_and_source(
    store: StoreLike,
    sources: Mapping[str, Source],
    policy: Policy,
    tokens: recipe.Tokens | None,
    attention: recipe.Attention | None,
    joined: Joined | None,
) -> tuple[Cache, Callable[[manifest.Commit], Source]]:
    """What reads the stored values, and what says where the pixels of a record come from."""
    if joined is not None:
        return JoinedCache(joined, policy), joined.source
    return BlockCache(store, tokens, policy, attention), lambda commit: sources[commit.slide_id]


def _spread_over(units: list[sampler.Segment], n_views: int, most: int | None) -> list[sampler.Segment]:
    """At most `most` of the units, evenly spread, or as many more as it takes to have `n_views` views of a seed."""
    while most is not None and most < len(units):
        kept = [units[at] for at in spread(len(units), most)]
        if sum(len(unit.rows) for unit in kept) >= n_views:
            return kept
        most *= 2
    return units


def load_views(
    store: StoreLike,
    units: Sequence[sampler.Segment],
    sources: Mapping[str, Source],
    policy: Policy,
    seed: int,
    n_views: int,
    threads: int,
    tokens: recipe.Tokens | None = None,
    attention: recipe.Attention | None = None,
    joined: Joined | None = None,
    pairs: Pairs | None = None,
    blocks: int | None = None,
) -> Batch:
    """At most `n_views` views of one seed, evenly spread over `units`; every view is compared with its checksum.

    So are those of `pairs`, which come beside them.

    Parameters
    ----------
    blocks
        From how many of the units, evenly spread; from more where these have too few views. None takes any number.
    """
    having = _spread_over([unit for unit in units if seed in unit.seeds], n_views, blocks)
    ends = np.cumsum([len(unit.rows) for unit in having], dtype=np.int64)
    keep = spread(int(ends[-1]) if having else 0, n_views)
    places = np.searchsorted(ends, keep, side="right").tolist()
    chosen = [
        (having[place].commit, int(having[place].rows[number - ends[place]]))  # from the end of its unit
        for number, place in zip(keep, places, strict=True)
    ]
    wanted: list[tuple[manifest.Commit, int] | None] = [*chosen]
    if pairs is not None:
        wanted += [pairs.other(commit, row, seed, epoch=0) for commit, row in chosen]
    out = np.zeros((len(wanted), policy.crop_px, policy.crop_px, 3), np.uint8)
    work = functools.partial(rebuild_row, policy)

    def begin(slots: range) -> tuple[list[tuple[int, Future[Any]]], list[list[npt.NDArray[Any]]]]:
        """Let some of the views be rendered, and read what is stored of those that were chosen."""
        cache, source = _cache_and_source(store, sources, policy, tokens, attention, joined)
        jobs, stored = [], []
        for slot in slots:
            if (one := wanted[slot]) is not None:
                commit, row = one
                at = cache.commit(commit).request(row, {seed: True})
                jobs.append((slot, pool.submit(source(commit), work, commit.slide_id, row, *at)))
                if slot < len(chosen):
                    stored.append(cache.stored(commit, np.array([row], np.int32), seed))
        return jobs, stored

    stored = []
    all_local = all(isinstance(one, Path) for one in ([store] if joined is None else joined.stores))
    readers = 1 if all_local else _READERS_OF_A_URL  # on a disk more gain nothing
    threads = threads if all_local else max(threads, _READERS_OF_A_URL)
    # each reads neighbours, so that hardly a block is read by two
    shares = aligned(range(len(wanted)), max(1, math.ceil(len(wanted) / readers)))
    # the pool is closed first, so that readers end at once after an error
    with ThreadPoolExecutor(readers, thread_name_prefix="records") as beside, PatchPool(threads) as pool:
        for jobs, of_share in beside.map(begin, shares):
            stored += of_share
            for slot, job in jobs:
                out[slot] = job.result()[0]
    if not stored:
        none = np.empty((0, 0), np.float16)
        return Batch(0, out, none, none[:, :, None], np.empty((0, 0), np.int32))
    n = len(chosen)
    batch = batch_of(0, out[:n], *(np.concatenate(part) for part in zip(*stored, strict=True)))
    if pairs is None:
        return batch
    has = np.array([one is not None for one in wanted[n:]])
    place = np.array([pairs.place(commit, row) for commit, row in chosen], np.int32)
    return replace(batch, paired=Paired(out[n:], has, place))
