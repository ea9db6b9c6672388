"""Which views, in which order: a pure function of (seed, epoch), with no state to lose.

An epoch is cut into runs of neighbouring rows of one block under a few seeds, the runs are shuffled, consecutive
runs form a window, and the views of a window are shuffled among themselves. Reading stays local, batches mix
many slides, and every view of an epoch comes exactly once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from stores import manifest
from stores.errors import CorruptStore, StoreError
from stores.location import StoreLike

RUN_ROWS = 128


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


def windows(runs: Sequence[Run], window_views: int) -> Iterator[list[Run]]:
    """Consecutive runs, closed as soon as a window holds at least `window_views` views."""
    window: list[Run] = []
    for run in runs:
        window.append(run)
        if sum(r.n_views for r in window) >= window_views:
            yield window
            window = []
    if window:
        yield window


def permutation(n: int, *key: int | str) -> npt.NDArray[np.int64]:
    """A permutation of range(n) that `key` alone decides: the order of keyed Philox words.

    Sorting raw words keeps it independent of how a library's generator draws permutations.
    """
    words = np.random.Philox(key=int.from_bytes(_hash(repr(key).encode()), "little")).random_raw(n)
    return np.argsort(words, kind="stable")


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, person=b"g2l-sampler").digest()
