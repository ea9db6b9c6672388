"""Views of other tiles of a place come beside the views of a training, whose order does not change."""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.data.join import Member, open_joined
from pipeline.data.loader import Batch, LoaderOptions
from pipeline.data.pairs import Pairs, find_pairs
from pipeline.data.split import Split, open_split
from pipeline.runtime.progress import Silent
from stores import sampler
from stores.errors import StoreError
from stores.format import manifest
from stores.format.recipe import load_complete

OPTIONS = LoaderOptions(batch_size=8, window=48, views_per_read=2, seed=5, check_views="all", threads=1)


def opened(paired: Path, pairs: bool = True) -> Split:
    split = open_split(paired, load_complete(paired), "train", None)
    return replace(split, pairs=find_pairs([paired], split.units)) if pairs else split


def batches(split: Split, options: LoaderOptions, n: int, start: int = 0) -> list[Batch]:
    with split.loader(options, start) as loader:
        return [batch.rows(slice(None), np.copy) for batch in itertools.islice(loader, n)]


def beside(found: Sequence[Batch]) -> bytes:
    """Everything of some batches, views that stand beside nothing left out."""
    parts: list[npt.NDArray[Any]] = []
    for batch in found:
        assert batch.paired is not None
        parts += [batch.views, batch.targets, batch.paired.has, batch.paired.place]
        parts += [batch.paired.views[batch.paired.has]]
    return b"".join(part.tobytes() for part in parts)


def shown(paired: Path, split: Split) -> Iterator[tuple[str, str, int, bytes]]:
    """Pair, scanner, seed and pixels of every view of the training split."""
    for unit in split.units:
        table = manifest.read_further(paired, unit.commit.slide_id, ("pair", "site"))
        for seed in unit.seeds:
            part = replace(split, units=[sampler.Segment(unit.commit, (seed,), unit.rows)])
            views = part.sample(seed, 10_000, 1).views
            for row, pixels in zip(unit.rows.tolist(), views, strict=True):
                yield table["pair"][row].as_py(), str(table["site"][row]), seed, pixels.tobytes()


def test_beside_each_view_comes_one_of_another_scanner_under_the_seed_of_the_same_number(
    paired: Path,
) -> None:
    plain, split = opened(paired, pairs=False), opened(paired)
    n = plain.n_views // OPTIONS.batch_size
    found, without = batches(split, OPTIONS, n), batches(plain, OPTIONS, n)
    assert [b.views.tobytes() for b in found] == [b.views.tobytes() for b in without]
    assert [b.targets.tobytes() for b in found] == [b.targets.tobytes() for b in without]
    known: dict[bytes, list[tuple[str, str, int]]] = {}
    for pair, site, seed, pixels in shown(paired, plain):
        known.setdefault(pixels, []).append((pair, site, seed))  # a seed may draw what seed 0 shows
    numbers: dict[str, set[int]] = {}
    alone = 0
    for batch in found:
        assert batch.paired is not None
        for view, other, has, place in zip(
            batch.views, batch.paired.views, batch.paired.has, batch.paired.place, strict=True
        ):
            mine = known[view.tobytes()]
            pair, site, _ = mine[0]
            numbers.setdefault(pair, set()).add(int(place))
            if has:
                others = known[other.tobytes()]
                assert others[0][0] == pair
                assert others[0][1] != site
                assert {seed for *_, seed in mine} & {seed for *_, seed in others}
            else:
                alone += 1
                assert place == -1
    # three training places that one scanner shows, under three seeds; a batch is cut off
    assert 6 <= alone <= 3 * 3
    assert all(len(found) == 1 for found in numbers.values())
    assert Counter(next(iter(found)) for found in numbers.values() if found != {-1}).most_common(1)[0][1] == 1


def test_batches_follow_from_the_position_alone(paired: Path) -> None:
    split = opened(paired)
    whole = batches(split, OPTIONS, 40)  # more than one epoch
    assert whole[0].epoch < whole[-1].epoch
    assert beside(batches(split, OPTIONS, 12, start=28 * 8)) == beside(whole[28:])
    ranks = [batches(split, replace(OPTIONS, batch_size=4, rank=r, world=2), 40) for r in range(2)]
    for at, batch in enumerate(whole):
        of_ranks = [of[at] for of in ranks]
        assert batch.paired is not None
        for rank, mine in enumerate(of_ranks):
            assert mine.paired is not None
            assert np.array_equal(mine.paired.has, batch.paired.has[rank::2])
            assert np.array_equal(mine.paired.place, batch.paired.place[rank::2])
            has = mine.paired.has
            assert np.array_equal(mine.paired.views[has], batch.paired.views[rank::2][has])
    workers = [batches(split, replace(OPTIONS, worker=w, workers=2), 10) for w in range(2)]
    dealt = [workers[number % 2][number // 2] for number in range(20)]
    assert beside(dealt) == beside(whole[:20])


def test_of_three_scanners_each_other_one_comes_in_turn(paired: Path) -> None:
    split = opened(paired)
    pairs = split.pairs
    assert pairs is not None
    unit = split.units[0]
    row = next(int(row) for row in unit.rows if pairs.place(unit.commit, int(row)) >= 0)
    for seed in unit.seeds:
        others = [pairs.other(unit.commit, row, seed, epoch) for epoch in range(4)]
        assert len({(other[0].path, other[1]) for other in others if other is not None}) == 2
        assert others[:2] == others[2:]
    by_epoch = {
        (found[0].path, found[1])
        for unit in split.units
        for row in unit.rows.tolist()
        if (found := pairs.other(unit.commit, row, 1, 0)) is not None
    }
    assert len(by_epoch) == pairs.n_patches  # each view stands beside one other


def test_balance_and_held_out_views_have_them_too(paired: Path) -> None:
    split = opened(paired)
    found = batches(split, replace(OPTIONS, balance="slide"), 30)
    assert all(batch.paired is not None and batch.paired.has.any() for batch in found)
    held_out = open_split(paired, load_complete(paired), "val", 1)
    held_out = replace(held_out, pairs=find_pairs([paired], held_out.units))
    batch = held_out.sample(0, 100, 1)
    assert batch.paired is not None
    assert batch.paired.has.mean() > 0.8
    places = batch.paired.place[batch.paired.has]
    assert set(Counter(places.tolist()).values()) == {3}


def test_views_that_the_split_lacks_stand_beside_none(paired: Path) -> None:
    plain = opened(paired, pairs=False)
    of_a = {s["slide_id"] for s in manifest.read_slides(paired) if s["site"] == "a"}
    units = [unit for unit in plain.units if unit.commit.slide_id in of_a]
    assert len(find_pairs([paired], units)) == 0
    some = [
        unit if unit.commit.slide_id in of_a else sampler.Segment(unit.commit, (1,), unit.rows[::2])
        for unit in plain.units
    ]
    pairs = find_pairs([paired], some)
    for unit in some:
        for row in unit.rows.tolist():
            assert pairs.other(unit.commit, row, 0, 0) is None
    assert len(pairs)


def test_a_pair_in_two_splits_is_refused(paired: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(paired, tmp_path / "store"))
    table = manifest.read_further(store, "c-val", ("tile", "file", "pair", "patient_id", "site"))
    other = manifest.read_further(store, "a-train", ("pair", "patient_id"))
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns["pair"][0], columns["patient_id"][0] = other["pair"][0].as_py(), other["patient_id"][0].as_py()
    patches = manifest.read_patches(store, "c-val")
    manifest.write_patches(store, "c-val", patches.x_px0, patches.y_px0, patches.tissue, columns)
    with pytest.raises(StoreError, match=r"pair n\d+ is in split train \(group a-train\) and in split val"):
        find_pairs([store], opened(paired, pairs=False).units)


def test_pairs_of_joined_stores(paired: Path, tmp_path: Path) -> None:
    """A copy of a store adds no tile to a place, and views beside come from where the view's own do."""
    copy = Path(shutil.copytree(paired, tmp_path / "copy"))
    members = [Member(store, load_complete(store)) for store in (paired, copy)]
    joined, _ = open_joined(members, {"train": None, "val": 1}, "any", [], ("val",), Silent())
    pairs = find_pairs([paired, copy], joined.units)
    alone = opened(paired)
    assert alone.pairs is not None
    assert (len(pairs), pairs.n_patches) == (len(alone.pairs), alone.pairs.n_patches)
    assert beside(batches(replace(joined, pairs=pairs), OPTIONS, 4)) == beside(batches(alone, OPTIONS, 4))
    assert isinstance(pairs, Pairs)


def test_a_pair_of_one_patient_is_none_of_another(paired: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(paired, tmp_path / "store"))
    table = manifest.read_further(store, "c-train", ("tile", "file", "pair", "patient_id", "site"))
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns["patient_id"] = ["another"] * table.num_rows
    patches = manifest.read_patches(store, "c-train")
    manifest.write_patches(store, "c-train", patches.x_px0, patches.y_px0, patches.tissue, columns)
    found, before = opened(store).pairs, opened(paired).pairs
    assert found is not None
    assert before is not None
    assert (len(found), found.n_patches) == (15, 30)
    assert (len(before), before.n_patches) == (15, 45)
