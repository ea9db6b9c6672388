"""Which views, in which order, in which process: a pure function of (seed, epoch, rank, world), with no state to lose.

An epoch is cut into segments: neighbouring rows of one block under a few seeds. The segments are shuffled. A window
takes views from several places of that order, the lanes, and mixes them. Reading stays local, batches mix many slides,
and every view of an epoch comes exactly once, in exactly one process. Where groups are balanced, every group comes
equally often instead.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from stores.errors import StoreError
from stores.format import manifest
from stores.format.committed import listed_records, read_records, usable_slides
from stores.format.index import Index, read_index
from stores.format.recipe import Patch
from stores.io.location import StoreLike

SEGMENT_ROWS = 128
LANES = 8
STREAM = "lanes-1"
"""Names the order of views. A training is resumed only in the order that it began with."""
STREAMS = {"none": STREAM, "slide": f"{STREAM}-slide-1", "patient": f"{STREAM}-patient-1"}
"""The name of the order by what is balanced, see `balanced_segments`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Views that are read together: some rows of one block, each row under the same few seeds."""

    commit: manifest.Commit
    seeds: tuple[int, ...]
    rows: npt.NDArray[np.int32]
    """Ascending."""

    @property
    def n_views(self) -> int:
        return len(self.seeds) * len(self.rows)


@dataclass(frozen=True, slots=True)
class Listing:
    """What `find_units` reads whatever the split: read once for several. Made by `list_slides`."""

    slides: Mapping[str, dict[str, Any]]
    """The usable ones, by id."""
    index: Index | None


def list_slides(store: StoreLike, patch: Patch | None = None) -> Listing:
    """The usable slides of a store, and its index; errors and `patch` as in `find_units`."""
    index = read_index(store)
    return Listing(usable_slides(store, patch), index)


def find_units(
    store: StoreLike,
    split: str,
    n_seeds: int | None,
    patch: Patch | None = None,
    uneven: bool = False,
    listing: Listing | None = None,
) -> list[Segment]:
    """All committed views of a split under seeds 0 to `n_seeds` - 1; a unit is the segment of a whole commit record.

    Where the store has an index, no record is opened: what a record promises is checked when it is read.

    Sorted by slide, block and seeds. The order of the slides follows from their content (a hash of their views'
    checksums), not from their ids, so that a store under pseudonyms trains as the original does.

    Parameters
    ----------
    n_seeds : int, optional
        None means every seed that any block has.
    patch : Patch, optional
        Of the recipe, to check the patches against; None leaves that out.
    uneven : bool
        Whether a block may lack some of the seeds.
    listing : Listing, optional
        Of the store, where it was read already.

    Raises
    ------
    StoreError
        When a block of the split lacks one of the seeds, unless `uneven`.
    CorruptStore
        When slides table, patches or commit records break a promise (`stores.format.committed`), or the index does not
        fit.
    """
    units = []
    content: dict[str, bytes] = {}
    listing = listing or list_slides(store, patch)
    for slide_id, row in listing.slides.items():
        if row["split"] != split:
            continue
        found = _read(store, row, patch) if listing.index is None else _listed(store, row, listing.index)
        for commit, rows, of_record in found:
            if len(rows):
                # a row that cannot be read is bad under all seeds of its commit
                units.append(Segment(commit, tuple(commit.seeds), rows))
                content.setdefault(slide_id, of_record)
    units.sort(
        key=lambda u: (content[u.commit.slide_id], u.commit.slide_id, u.commit.block, u.commit.seeds.start)
    )
    wanted = range(n_seeds if n_seeds is not None else max((u.commit.seeds.stop for u in units), default=0))
    if not uneven:
        _require_seeds(units, wanted)
    chosen = [Segment(u.commit, tuple(s for s in u.seeds if s in wanted), u.rows) for u in units]
    return [unit for unit in chosen if unit.seeds]


Found = tuple[manifest.Commit, npt.NDArray[np.int32], bytes]
"""A record, its rows that are ok, and the hash of their checksums."""


def _read(store: StoreLike, row: Mapping[str, Any], patch: Patch | None) -> Iterator[Found]:
    """The records of a slide, each read and checked."""
    for commit, table in read_records(store, row, patch):
        ok = table.filter(pc.equal(table["status"], manifest.OK))
        yield commit, manifest.ok_rows(table, commit.seeds.start), manifest.content_of(ok["view_crc32"])


def _listed(store: StoreLike, row: Mapping[str, Any], index: Index) -> Iterator[Found]:
    """The records of a slide as the index has them; they are checked when they are read, see `Promises`."""
    for record in listed_records(store, row, index):
        assert record.commit.claim is not None
        yield record.commit, record.ok, bytes.fromhex(record.commit.claim.content)


def _require_seeds(units: Sequence[Segment], wanted: range) -> None:
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


def epoch_segments(units: Sequence[Segment], seed: int, epoch: int, views_per_read: int = 1) -> list[Segment]:
    """The segments of an epoch in their order.

    Parameters
    ----------
    views_per_read : int
        How many seeds of a row come from one decoding of its patch; they then share a window.
    """
    return _shuffled(units, views_per_read, seed, epoch)


def _shuffled(units: Sequence[Segment], views_per_read: int, *key: int | str) -> list[Segment]:
    segments = []
    for number, unit in enumerate(units):
        for start in range(0, len(unit.rows), SEGMENT_ROWS):
            rows = unit.rows[start : start + SEGMENT_ROWS]
            seeds = [unit.seeds[i] for i in permutation(len(unit.seeds), *key, "seeds", number, start)]
            for first in range(0, len(seeds), views_per_read):
                segments.append(Segment(unit.commit, tuple(seeds[first : first + views_per_read]), rows))
    # "runs" is what segments were called once; it is a part of the key that decides their order
    return [segments[i] for i in permutation(len(segments), *key, "runs")]


def balanced_segments(
    groups: Sequence[Sequence[Segment]], seed: int, epoch: int, views_per_read: int = 1
) -> list[Segment]:
    """The segments of an epoch that has as many views of every group as of any other, to one view.

    An epoch is as long as all views of all groups. Each group has an endless order of its own views, lap after lap: a
    lap holds each of them once. An epoch takes the next stretch of it. So a small group comes several times in an
    epoch, a large one only in part, and after whole laps each view of a group came equally often. Over epochs the
    groups' numbers of views never differ by more than one.

    Parameters
    ----------
    groups
        Units, each in one group. Their order decides that of the views.
    """
    total = sum(unit.n_views for group in groups for unit in group)
    segments = []
    for number, place in enumerate(permutation(len(groups), seed, "groups").tolist()):
        # floor((x + place) / n), summed over the places 0 to n - 1, is x: the shares of an epoch make it whole
        first, stop = ((at * total + place) // len(groups) for at in (epoch, epoch + 1))
        segments += _stretch(groups[number], first, stop, views_per_read, seed, "group", number)
    return [segments[i] for i in permutation(len(segments), seed, epoch, "balanced")]


def _stretch(
    units: Sequence[Segment], first: int, stop: int, views_per_read: int, *key: int | str
) -> list[Segment]:
    """The views `first` to `stop` of the endless order of a group."""
    size = sum(unit.n_views for unit in units)
    found = []
    for lap in range(first // size, -(-stop // size)):
        at = lap * size
        for segment in _shuffled(units, views_per_read, *key, lap):
            found += _cut(segment, first - at, stop - at)
            at += segment.n_views
    return found


def _cut(segment: Segment, first: int, stop: int) -> list[Segment]:
    """The views `first` to `stop` of a segment, as far as it has them, counted row by row."""
    first, stop, width = max(first, 0), min(stop, segment.n_views), len(segment.seeds)
    if first >= stop:
        return []
    whole = range(-(-first // width), stop // width)
    if whole.start > whole.stop:  # within one row
        parts = [(whole.stop, first % width, stop % width)]
    else:
        parts = [(whole.start - 1, first % width, width)] if first % width else []
        parts += [(whole.stop, 0, stop % width)] if stop % width else []
    cut = [Segment(segment.commit, segment.seeds[a:b], segment.rows[row : row + 1]) for row, a, b in parts]
    if whole:
        cut.append(Segment(segment.commit, segment.seeds, segment.rows[whole.start : whole.stop]))
    return cut


@dataclass(frozen=True, slots=True)
class Share:
    """What one process takes of one segment in one window; (n,) each."""

    segment: Segment
    rows: npt.NDArray[np.int32]
    """Ascending, each once for each of its seeds here."""
    seeds: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    """Positions of the views among the process's views of the window."""


@dataclass(frozen=True, slots=True)
class Window:
    """Views that are in memory together, in one process."""

    epoch: int
    n_views: int
    shares: list[Share]


@dataclass(frozen=True, slots=True)
class Stream:
    """The endless order of views that a training sees; the same whatever the number of processes.

    The segments of an epoch, one after another, are cut into `LANES` lanes of equal length, and the stream takes a
    view from each in turn. So the view at a position comes from the lane ``position mod LANES``. When the number of
    processes divides `LANES`, each process reads only the segments of its own lanes. A window is a stretch of
    positions; inside it the views of each lane are shuffled.

    Parameters
    ----------
    window : int
        Views of a window, over all processes.
    views_per_read : int
        See `epoch_segments`.
    groups
        The units in groups, whose views come equally often, see `balanced_segments`; empty for each view once an epoch.
    """

    units: Sequence[Segment]
    seed: int
    window: int
    views_per_read: int = 1
    groups: Sequence[Sequence[Segment]] = ()

    @property
    def epoch_views(self) -> int:
        """Views of an epoch."""
        return sum(unit.n_views for unit in self.units)

    def segments(self, epoch: int) -> list[Segment]:
        """The segments of an epoch in their order."""
        if self.groups:
            return balanced_segments(self.groups, self.seed, epoch, self.views_per_read)
        return epoch_segments(self.units, self.seed, epoch, self.views_per_read)

    def windows(self, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Window]:
        """What a process takes of each window, from position `start` on.

        Of any ``world`` consecutive positions each process has one: those equal to `rank` modulo `world`.
        """
        epoch, skip = divmod(start, self.epoch_views)
        while True:
            segments = self.segments(epoch)
            ends = np.cumsum([segment.n_views for segment in segments])
            for number in range(skip // self.window, -(-self.epoch_views // self.window)):
                at, view = self._positions(epoch, number)
                mine = (at >= start) & (at % world == rank)
                if mine.any():
                    yield Window(epoch, int(mine.sum()), _shares(segments, ends, at[mine], view[mine]))
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
    segments: Sequence[Segment],
    ends: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
    view: npt.NDArray[np.int64],
) -> list[Share]:
    place = np.empty(len(at), np.int64)
    place[np.argsort(at)] = np.arange(len(at))
    by_view = np.argsort(view)
    view, place = view[by_view], place[by_view]
    of_segment = np.searchsorted(ends, view, side="right")
    shares = []
    for number in np.unique(of_segment).tolist():
        segment, chosen = segments[number], of_segment == number
        # row by row, so that the seeds of a row stay together
        row, seed = np.divmod(view[chosen] - (ends[number] - segment.n_views), len(segment.seeds))
        seeds = np.asarray(segment.seeds, np.int64)[seed]
        shares.append(Share(segment, segment.rows[row], seeds, place[chosen]))
    return shares


def permutation(n: int, *key: int | str) -> npt.NDArray[np.int64]:
    """A permutation of range(n) that `key` alone decides: the order of keyed Philox words.

    Sorting raw words keeps it independent of how a library's generator draws permutations.
    """
    words = np.random.Philox(key=int.from_bytes(_hash(repr(key).encode()), "little")).random_raw(n)
    return np.argsort(words, kind="stable")


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, person=b"g2l-sampler").digest()
