"""Which views, in which order, in which process: a pure function of (seed, epoch, rank, world), with no state to lose.

An epoch is cut into runs of neighbouring rows of one block under a few seeds and the runs are shuffled. A window draws
on runs from several places of that order, the lanes, and mixes their views. Reading stays local, batches mix many
slides, and every view of an epoch comes exactly once, in exactly one process.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from stores.errors import CorruptStore, StoreError
from stores.format import manifest
from stores.io.location import StoreLike

RUN_ROWS = 128
LANES = 8
STREAM = "lanes-1"
"""Names the order of views; a run goes on only in the order that it was begun in."""


@dataclass(frozen=True, slots=True)
class Run:
    """Views that are read together: some rows of one block, each under the same few seeds."""

    commit: manifest.Commit
    seeds: tuple[int, ...]
    rows: npt.NDArray[np.int32]
    """Ascending."""

    @property
    def n_views(self) -> int:
        return len(self.seeds) * len(self.rows)


def find_units(store: StoreLike, split: str, n_seeds: int | None) -> list[Run]:
    """All committed views of a split under seeds 0 to `n_seeds` - 1; a unit is the run of a whole commit record.

    Sorted by slide, block and seeds. Slides come in the order of what they show (a hash of their views' checksums), so
    that a store under pseudonyms trains as the original does.

    Raises
    ------
    StoreError
        When a block of the split lacks one of the seeds. None asks for every seed that any block has.
    CorruptStore
        When the seeds of a commit record do not have the same rows.
    """
    units = []
    content: dict[str, bytes] = {}
    for commit in manifest.commits(store):
        table = commit.read(["row", "seed", "status", "split", "view_crc32"])
        table = table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["status"], manifest.OK)))
        if table.num_rows:
            # a row that cannot be read is bad under all seeds of its commit
            rows = np.sort(manifest.ok_rows(table, commit.seeds.start))
            if any(not np.array_equal(rows, np.sort(manifest.ok_rows(table, s))) for s in commit.seeds):
                raise CorruptStore(f"{commit.path}: its seeds list different rows as {manifest.OK}")
            units.append(Run(commit, tuple(commit.seeds), rows))
            content.setdefault(commit.slide_id, _hash(table["view_crc32"].to_numpy().astype("<u4").tobytes()))
    units.sort(
        key=lambda u: (content[u.commit.slide_id], u.commit.slide_id, u.commit.block, u.commit.seeds.start)
    )
    wanted = range(n_seeds if n_seeds is not None else max((u.commit.seeds.stop for u in units), default=0))
    _require_seeds(units, wanted)
    chosen = [Run(u.commit, tuple(s for s in u.seeds if s in wanted), u.rows) for u in units]
    return [unit for unit in chosen if unit.seeds]


def _require_seeds(units: Sequence[Run], wanted: range) -> None:
    have: dict[tuple[str, int], set[int]] = {}
    for unit in units:
        have.setdefault((unit.commit.slide_id, unit.commit.block), set()).update(unit.seeds)
    for (slide_id, block), seeds in have.items():
        missing = sorted(set(wanted) - seeds)
        if missing:
            raise StoreError(
                f"slide {slide_id} block {block}: the store has seeds 0 to {max(seeds)}, seed {missing[0]} is needed; "
                f"run extract-teacher --seeds {len(wanted)}, or distill with --seeds {max(seeds) + 1}"
            )


def epoch_runs(units: Sequence[Run], seed: int, epoch: int, views_per_read: int = 1) -> list[Run]:
    """The runs of an epoch in their order.

    Parameters
    ----------
    views_per_read : int
        How many seeds of a row come from one decoding of its patch; they then share a window.
    """
    runs = []
    for number, unit in enumerate(units):
        for start in range(0, len(unit.rows), RUN_ROWS):
            rows = unit.rows[start : start + RUN_ROWS]
            seeds = [unit.seeds[i] for i in permutation(len(unit.seeds), seed, epoch, "seeds", number, start)]
            for first in range(0, len(seeds), views_per_read):
                runs.append(Run(unit.commit, tuple(seeds[first : first + views_per_read]), rows))
    return [runs[i] for i in permutation(len(runs), seed, epoch, "runs")]


@dataclass(frozen=True, slots=True)
class Share:
    """What one process takes of one run in one window; (n,) each."""

    run: Run
    rows: npt.NDArray[np.int32]
    """Ascending, each once for each of its seeds here."""
    seeds: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    """Where the views stand among the process's views of the window."""


@dataclass(frozen=True, slots=True)
class Window:
    """Views that are in memory together, in one process."""

    epoch: int
    n_views: int
    shares: list[Share]


@dataclass(frozen=True, slots=True)
class Stream:
    """The endless order of views that a training sees; the same whatever the number of processes.

    The runs of an epoch, one after another, are cut into `LANES` lanes of equal length, and the stream takes a view
    from each in turn. So the view at a position comes from the lane ``position mod LANES``, and when the number of
    processes divides `LANES` each process reads the runs of its own lanes alone. A window is a stretch of positions;
    inside it the views of each lane are shuffled.

    Parameters
    ----------
    window : int
        Views of a window, over all processes.
    views_per_read : int
        See `epoch_runs`.
    """

    units: Sequence[Run]
    seed: int
    window: int
    views_per_read: int = 1

    @property
    def epoch_views(self) -> int:
        """Views of an epoch."""
        return sum(unit.n_views for unit in self.units)

    def windows(self, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Window]:
        """What a process takes of each window, from position `start` on.

        Of any ``world`` consecutive positions each process has one: those equal to `rank` modulo `world`.
        """
        epoch, skip = divmod(start, self.epoch_views)
        while True:
            runs = epoch_runs(self.units, self.seed, epoch, self.views_per_read)
            ends = np.cumsum([run.n_views for run in runs])
            for number in range(skip // self.window, -(-self.epoch_views // self.window)):
                at, view = self._positions(epoch, number)
                mine = (at >= start) & (at % world == rank)
                if mine.any():
                    yield Window(epoch, int(mine.sum()), _shares(runs, ends, at[mine], view[mine]))
            epoch, skip = epoch + 1, 0

    def _positions(self, epoch: int, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Positions in the stream that a window covers, and the number in the epoch of the view at each; unsorted."""
        base, total = epoch * self.epoch_views, self.epoch_views
        first, stop = number * self.window, min((number + 1) * self.window, total)
        found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        lane_start = 0
        for lane in range(LANES):
            offset = (lane - base) % LANES  # of the lane's first position in the epoch
            here = range(-(-(first - offset) // LANES), -(-(stop - offset) // LANES))
            here = range(max(here.start, 0), here.stop)
            order = permutation(len(here), self.seed, epoch, "window", number, lane)
            found.append(
                (base + offset + LANES * np.asarray(here, np.int64), lane_start + here.start + order)
            )
            lane_start += max(0, -(-(total - offset) // LANES))
        at, view = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return at, view


def _shares(
    runs: Sequence[Run],
    ends: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
    view: npt.NDArray[np.int64],
) -> list[Share]:
    place = np.empty(len(at), np.int64)
    place[np.argsort(at)] = np.arange(len(at))
    by_view = np.argsort(view)
    view, place = view[by_view], place[by_view]
    of_run = np.searchsorted(ends, view, side="right")
    shares = []
    for number in np.unique(of_run).tolist():
        run, chosen = runs[number], of_run == number
        # row by row, so that the seeds of a row stay together
        row, seed = np.divmod(view[chosen] - (ends[number] - run.n_views), len(run.seeds))
        shares.append(Share(run, run.rows[row], np.asarray(run.seeds, np.int64)[seed], place[chosen]))
    return shares


def permutation(n: int, *key: int | str) -> npt.NDArray[np.int64]:
    """A permutation of range(n) that `key` alone decides: the order of keyed Philox words.

    Sorting raw words keeps it independent of how a library's generator draws permutations.
    """
    words = np.random.Philox(key=int.from_bytes(_hash(repr(key).encode()), "little")).random_raw(n)
    return np.argsort(words, kind="stable")


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, person=b"g2l-sampler").digest()
