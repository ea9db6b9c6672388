"""The sampler: every view exactly once an epoch, in an order that only the seed and the epoch decide."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stores import sampler
from stores.errors import CorruptStore, StoreError
from stores.format import manifest
from tests.tools.manifest import views_table, write_slides


@st.composite
def units(draw: st.DrawFn) -> list[sampler.Segment]:
    found = []
    for slide in range(draw(st.integers(1, 4))):
        for block in range(draw(st.integers(1, 3))):
            for first in range(0, draw(st.integers(1, 2)) * 3, 3):
                rows = draw(st.lists(st.integers(0, 400), min_size=1, max_size=300, unique=True))
                seeds = range(first, first + draw(st.integers(1, 3)))
                commit = manifest.Commit(f"s{slide}", block, seeds, Path("x"))
                found.append(sampler.Segment(commit, tuple(seeds), np.array(sorted(rows), np.int32)))
    return found


def views_of(segments: list[sampler.Segment]) -> Counter[tuple[str, int, int, int]]:
    return Counter(
        (segment.commit.slide_id, segment.commit.block, seed, int(row))
        for segment in segments
        for seed in segment.seeds
        for row in segment.rows
    )


@settings(max_examples=60, deadline=None)
@given(units(), st.integers(0, 5), st.integers(0, 5), st.integers(1, 4))
def test_the_runs_of_an_epoch_hold_every_view_once(
    given_units: list[sampler.Segment], seed: int, epoch: int, together: int
) -> None:
    segments = sampler.epoch_segments(given_units, seed, epoch, together)
    expected = Counter(
        (u.commit.slide_id, u.commit.block, s, int(r)) for u in given_units for s in u.seeds for r in u.rows
    )
    assert views_of(segments) == expected
    assert all(
        len(segment.rows) <= sampler.SEGMENT_ROWS and len(segment.seeds) <= together for segment in segments
    )


def one_unit(n_rows: int = 1000, n_seeds: int = 4) -> sampler.Segment:
    commit = manifest.Commit("a", 0, range(n_seeds), Path("x"))
    return sampler.Segment(commit, tuple(range(n_seeds)), np.arange(n_rows, dtype=np.int32))


def places(seed: int, epoch: int) -> list[tuple[tuple[int, ...], int]]:
    return [
        (segment.seeds, int(segment.rows[0])) for segment in sampler.epoch_segments([one_unit()], seed, epoch)
    ]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert places(0, 0) == places(0, 0)
    assert len({tuple(places(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_epochs_differ_in_the_order_of_runs() -> None:
    orders = [
        [int(segment.rows[0]) for segment in sampler.epoch_segments([one_unit(n_seeds=1)], 0, epoch)]
        for epoch in range(4)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_rows_of_a_run_are_neighbours() -> None:
    assert all((np.diff(segment.rows) == 1).all() for segment in sampler.epoch_segments([one_unit()], 0, 0))


def test_golden_permutation() -> None:
    """Resumed runs and other machines depend on it."""
    assert sampler.permutation(8, 3, 1, "window", 2).tolist() == [7, 1, 3, 4, 0, 5, 2, 6]


@given(st.integers(0, 500), st.integers(0, 99))
def test_permutation_is_one(n: int, key: int) -> None:
    assert sorted(sampler.permutation(n, key).tolist()) == list(range(n))


def test_positions_are_uniform() -> None:
    """The first element over many keys: chi-square with 9 degrees of freedom, 99.99 % quantile 33.7."""
    firsts = Counter(int(sampler.permutation(10, key)[0]) for key in range(2000))
    assert sum((firsts[i] - 200) ** 2 / 200 for i in range(10)) < 33.7


def test_units_leave_out_bad_rows_and_other_splits(tmp_path: Path) -> None:
    write_slides(tmp_path, {"a": 6})
    manifest.write_commit(tmp_path, "a", 0, range(3), views_table("a", range(6), range(3), bad=(2, 4)))
    (unit,) = sampler.find_units(tmp_path, "train", None)
    assert unit.seeds == (0, 1, 2)
    assert unit.rows.tolist() == [0, 1, 3, 5]
    assert unit.n_views == 12
    assert sampler.find_units(tmp_path, "train", 2)[0].seeds == (0, 1)
    assert sampler.find_units(tmp_path, "val", None) == []


def test_a_foreign_commit_with_uneven_seeds_is_refused(tmp_path: Path) -> None:
    write_slides(tmp_path, {"a": 6})
    table = views_table("a", range(6), range(2))
    manifest.write_commit(tmp_path, "a", 0, range(2), table.slice(0, 11))
    with pytest.raises(CorruptStore, match=r"00000-s0000-0001\.parquet: its seeds list different rows"):
        sampler.find_units(tmp_path, "train", None)


def test_a_missing_seed_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_slides(tmp_path, {"a": 6, "b": 6})
    manifest.write_commit(tmp_path, "a", 0, range(2), views_table("a", range(6), range(2)))
    manifest.write_commit(tmp_path, "a", 0, range(2, 4), views_table("a", range(6), range(2, 4)))
    manifest.write_commit(tmp_path, "b", 0, range(2), views_table("b", range(6), range(2)))
    assert len(sampler.find_units(tmp_path, "train", 2)) == 2
    for seeds in (None, 3):
        with pytest.raises(
            StoreError, match=r"slide b block 0: the store has seeds 0 to 1, seed 2 is needed"
        ):
            sampler.find_units(tmp_path, "train", seeds)


def positions(
    stream: sampler.Stream, start: int, stop: int, rank: int, world: int
) -> list[tuple[object, ...]]:
    """The views of a process between two positions, in its order."""
    found: list[tuple[object, ...]] = []
    wanted = len(range(start + (rank - start) % world, stop, world))
    for window in stream.windows(start, rank, world):
        if len(found) >= wanted:
            break
        here: list[tuple[object, ...]] = [()] * window.n_views
        for share in window.shares:
            for row, seed, place in zip(share.rows, share.seeds, share.places, strict=True):
                assert here[place] == ()
                commit = share.segment.commit
                here[place] = (commit.slide_id, commit.block, int(seed), int(row), window.epoch)
        assert () not in here
        found += here
    return found[:wanted]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(units(), st.integers(0, 3), st.integers(1, 3), st.integers(1, 700), st.data())
def test_every_view_of_an_epoch_comes_once_in_one_process(
    given_units: list[sampler.Segment], seed: int, together: int, window: int, data: st.DataObject
) -> None:
    """Over slides, seeds, blocks, processes, epochs, and a point of resuming with other processes."""
    stream = sampler.Stream(given_units, seed, window, together)
    epoch = data.draw(st.integers(0, 3))
    first, last = epoch * stream.epoch_views, (epoch + 1) * stream.epoch_views
    resumed = data.draw(st.integers(first, last))
    seen: list[tuple[object, ...]] = []
    for start, stop in ((first, resumed), (resumed, last)):
        world = data.draw(st.integers(1, 9))
        for rank in range(world):
            seen += positions(stream, start, stop, rank, world)
    expected = Counter(
        (u.commit.slide_id, u.commit.block, s, int(r), epoch)
        for u in given_units
        for s in u.seeds
        for r in u.rows
    )
    assert Counter(seen) == expected


@settings(max_examples=20, deadline=None)
@given(units(), st.integers(1, 9), st.integers(0, 2000), st.integers(1, 500))
def test_processes_share_out_one_stream(
    given_units: list[sampler.Segment], world: int, start: int, window: int
) -> None:
    stream = sampler.Stream(given_units, 0, window)
    stop = start + 5 * world
    whole = positions(stream, start, stop, 0, 1)
    for rank in range(world):
        assert positions(stream, start, stop, rank, world) == whole[(rank - start) % world :: world]


def test_processes_that_divide_the_lanes_read_other_runs() -> None:
    """Each decodes its own neighbourhoods; a segment is cut only where a lane begins."""
    stream = sampler.Stream([one_unit(16_000, 2)], 0, 2048)
    segments = []
    for rank in range(4):
        mine: set[tuple[object, ...]] = set()
        for window in stream.windows(0, rank, 4):
            if window.epoch:
                break
            mine |= {(share.segment.seeds, int(share.segment.rows[0])) for share in window.shares}
        segments.append(mine)
    shared = sum(len(mine) for mine in segments) - len(set.union(*segments))
    assert shared < sampler.LANES
    assert len(set.union(*segments)) == 250


def test_a_batch_mixes_runs_and_a_window_is_bounded() -> None:
    stream = sampler.Stream([one_unit(16_000, 2)], 0, 2048)
    first = next(stream.windows())
    assert first.n_views == 2048
    assert 16 <= len(first.shares) <= 16 + 2 * sampler.LANES
    batch = {number for number, share in enumerate(first.shares) for place in share.places if place < 32}
    assert len(batch) >= sampler.LANES


def test_golden_stream() -> None:
    """Resumed runs depend on it; a change needs another `STREAM`."""
    stream = sampler.Stream([one_unit(300, 2)], 1, 64)
    assert sampler.STREAM == "lanes-1"
    assert [view[2:4] for view in positions(stream, 700, 706, 0, 1)] == [
        (1, 53),
        (1, 129),
        (1, 209),
        (0, 282),
        (0, 137),
        (0, 217),
    ]


def groups_of(given_units: list[sampler.Segment]) -> list[list[sampler.Segment]]:
    names = sorted({unit.commit.slide_id for unit in given_units})
    return [[unit for unit in given_units if unit.commit.slide_id == name] for name in names]


@settings(max_examples=30, deadline=None)
@given(units(), st.integers(0, 3), st.integers(1, 3))
def test_balanced_groups_come_equally_often_and_their_views_too(
    given_units: list[sampler.Segment], seed: int, together: int
) -> None:
    """Counted over epochs: groups differ by one view at most, and so do the views of a group."""
    groups = groups_of(given_units)
    total = sum(unit.n_views for unit in given_units)
    seen: Counter[tuple[str, int, int, int]] = Counter()
    for epoch in range(4):
        segments = sampler.balanced_segments(groups, seed, epoch, together)
        assert sum(segment.n_views for segment in segments) == total
        assert all(len(segment.rows) <= sampler.SEGMENT_ROWS for segment in segments)
        assert all(len(segment.seeds) <= together for segment in segments)
        seen += views_of(segments)
        counts = []
        for group in groups:
            counts.append(sum(seen[view] for view in views_of(group)))
            of_views = [seen[view] for view in views_of(group)]
            assert max(of_views) - min(of_views) <= 1
        assert max(counts) - min(counts) <= 1


def test_a_balanced_order_reads_neighbours_and_mixes_groups() -> None:
    commit = manifest.Commit("b", 0, range(4), Path("x"))
    small = sampler.Segment(commit, tuple(range(4)), np.arange(10, dtype=np.int32))
    large = one_unit(10_000, 4)
    segments = sampler.balanced_segments([[large], [small]], 0, 5)
    counts = Counter(segment.commit.slide_id for segment in segments for _ in range(segment.n_views))
    assert counts == {"a": 20_020, "b": 20_020}
    assert sum(segment.commit.slide_id == "a" for segment in segments) < 20_020 / sampler.SEGMENT_ROWS * 1.3
    assert all((np.diff(segment.rows) == 1).all() for segment in segments)
    first = [segment.commit.slide_id for segment in segments[:50]]
    assert segments != sampler.balanced_segments([[large], [small]], 0, 6)
    assert first.count("b") > 30


@settings(max_examples=20, deadline=None)
@given(units(), st.sampled_from([1, 2, 4]), st.integers(0, 2000), st.integers(1, 500), st.integers(1, 3))
def test_processes_share_out_one_balanced_stream_from_any_position(
    given_units: list[sampler.Segment], world: int, start: int, window: int, together: int
) -> None:
    stream = sampler.Stream(given_units, 0, window, together, groups_of(given_units))
    stop = start + 5 * world
    whole = positions(stream, start, stop, 0, 1)
    assert whole == positions(stream, 0, stop, 0, 1)[start:]
    for rank in range(world):
        assert positions(stream, start, stop, rank, world) == whole[(rank - start) % world :: world]


def test_golden_balanced_stream() -> None:
    """Resumed runs depend on it; a change needs another name in `STREAMS`."""
    commit = manifest.Commit("b", 0, range(2), Path("x"))
    small = sampler.Segment(commit, (0, 1), np.arange(40, dtype=np.int32))
    large = one_unit(300, 2)
    stream = sampler.Stream([large, small], 1, 64, 1, [[large], [small]])
    assert sampler.STREAMS == {"none": "lanes-1", "slide": "lanes-1-slide-1", "patient": "lanes-1-patient-1"}
    found = [(view[0], *view[2:4]) for view in positions(stream, 700, 706, 0, 1)]
    assert found == [("b", 1, 33), ("b", 0, 35), ("a", 1, 40), ("a", 1, 127), ("a", 1, 129), ("a", 1, 162)]
