"""With two patients or more one is held out and one trains; what is recorded stays, whatever is added."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.local import InProcess
from pipeline.runtime.progress import Reporter, Silent
from pipeline.runtime.work import Done, Work
from pipeline.tile import tile
from pipeline.tile.options import TileOptions
from pipeline.tile.slides_csv import Given
from pipeline.tile.splits import Splits, assign, number_of, split_of
from stores.combine.merge import merge
from stores.combine.subset import Selection, subset
from stores.format import manifest
from stores.format.splits import count_splits, split_warnings

patients = st.lists(st.text("abcdefgh0123", min_size=1, max_size=6), unique=True, max_size=12)


def test_a_thousand_cohorts_of_twenty_patients_have_a_held_out_one() -> None:
    none = 0
    for cohort in range(1000):
        names = [f"cohort-{cohort}-patient-{i}" for i in range(20)]
        by_hash = {name: split_of(name, 0.1) for name in names}
        found = assign(names, [], 0.1)
        assert {"train", "val"} == set(found.values())
        if "val" in by_hash.values():
            assert found == by_hash
        else:
            none += 1
            assert [name for name in found if found[name] == "val"] == [min(names, key=number_of)]
    assert none == 135  # the hash alone holds out nobody there


@given(patients, st.lists(st.sampled_from(["train", "val", "test"]), max_size=3), st.floats(0.01, 0.99))
def test_one_is_held_out_and_one_trains_where_that_is_possible(
    names: list[str], others: list[str], val: float
) -> None:
    found = assign(names, others, val)
    every = [*others, *found.values()]
    assert not names or "train" in every
    assert not names or len(every) - every.count("test") < 2 or "val" in every
    moved = {name for name in names if found[name] != split_of(name, val)}
    assert len(moved) <= 1


def row_of(slide_id: str, split: str, status: str = manifest.OK) -> dict[str, Any]:
    return {"slide_id": slide_id, "patient_id": slide_id, "split": split, "status": status}


def tried(
    rows: dict[str, dict[str, Any]], names: list[str], bad: set[str], stop: int | None = None
) -> Iterator[str]:
    """Tile slides, each a patient, and kill that after `stop` of them; yields them in order."""
    splits = Splits(rows, Given({}, {}), names, 0.1)
    for stage in splits.stages(names, rows):
        for name in stage:
            if stop == 0:
                return
            stop = None if stop is None else stop - 1
            rows[name] = row_of(name, splits.of(name), "failed" if name in bad else manifest.OK)
            yield name


@given(patients, st.data())
def test_a_killed_run_continues_with_the_same_splits(names: list[str], data: st.DataObject) -> None:
    bad = set(data.draw(st.lists(st.sampled_from(names)))) if names else set()
    whole: dict[str, dict[str, Any]] = {}
    assert sorted(tried(whole, names, bad)) == sorted(names)
    killed: dict[str, dict[str, Any]] = {}
    for stop in (data.draw(st.integers(0, len(names))), None):
        todo = [name for name in names if killed.get(name, {}).get("status") != manifest.OK]
        list(tried(killed, todo, bad, stop))
    assert killed == whole
    usable = [row["split"] for row in whole.values() if row["status"] == manifest.OK]
    assert not usable or "train" in usable
    assert len(usable) < 2 or "val" in usable


@given(patients, patients, st.integers(0, 3))
def test_who_is_in_a_split_stays_there_whatever_is_added(
    first: list[str], more: list[str], parts: int
) -> None:
    rows: dict[str, dict[str, Any]] = {}
    list(tried(rows, first, set()))
    for part in range(parts + 1):
        before = {name: row["split"] for name, row in rows.items()}
        list(tried(rows, [name for name in more[part :: parts + 1] if name not in rows], set()))
        assert before.items() <= {name: row["split"] for name, row in rows.items()}.items()
    splits = {row["split"] for row in rows.values()}
    assert len(rows) < 2 or splits == {"train", "val"}


@pytest.fixture
def lone_val() -> float:
    """A share of which the hash of a, b and c alone would hold out nobody."""
    return min(number_of(name) for name in "abc") / 2**64 / 2


class Backwards(InProcess):
    """Whatever is handed out together is over in the opposite order."""

    def run(self, work: Work, items: Iterable[Any], report: Reporter) -> Iterator[Done[Any, Any]]:
        yield from reversed(list(super().run(work, items, report)))


def test_tile_holds_out_one_patient_and_says_so(slides: Path, lone_val: float, tmp_path: Path) -> None:
    options = TileOptions(val=lone_val)
    result = tile.tile([slides], tmp_path / "store", options, Silent())
    held_out = min("abc", key=number_of)
    assert {row["slide_id"]: row["split"] for row in result.slides} == {
        name: "val" if name == held_out else "train" for name in "abc"
    }
    lines = result.lines()
    n_patches = {row["slide_id"]: row["n_patches"] for row in result.slides}
    assert f"split val: 1 patient, 1 slide, {n_patches[held_out]} patches" in lines
    assert any(line.startswith("warning: one patient is held out") for line in lines)
    assert result.to_json()["split_counts"]["train"]["patients"] == 2

    other = tmp_path / "other"
    assert tile.tile_on(Backwards(""), [slides], other, options, Silent()).slides == result.slides


def test_where_the_held_out_slide_cannot_be_used_the_next_one_is_held_out(
    slides: Path, lone_val: float, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(slides, tmp_path / "slides"))
    first, second, third = sorted("abc", key=number_of)
    (folder / f"{first}.tiff").write_bytes(b"no slide")
    store = tmp_path / "store"
    result = tile.tile([folder], store, TileOptions(val=lone_val), Silent())
    splits = {row["slide_id"]: (row["split"], row["status"]) for row in result.slides}
    assert splits == {first: ("val", "failed"), second: ("val", "ok"), third: ("train", "ok")}
    shutil.copy(slides / f"{first}.tiff", folder)
    again = tile.tile([folder], store, TileOptions(val=lone_val), Silent())
    assert [row["split"] for row in again.slides] == [row["split"] for row in result.slides]


def test_who_is_left_alone_trains(slides: Path, tmp_path: Path) -> None:
    """Where all others cannot be used, whatever the hash says."""
    first, second, third = sorted("abc", key=number_of)
    folder = Path(shutil.copytree(slides, tmp_path / "slides"))
    for name in (second, third):
        (folder / f"{name}.tiff").write_bytes(b"no slide")
    rows = tile.tile(
        [folder], tmp_path / "store", TileOptions(val=number_of(first) / 2**64 * 1.01), Silent()
    ).slides
    assert {row["slide_id"]: row["split"] for row in rows if row["status"] == "ok"} == {first: "train"}


def test_one_patient_trains_and_the_next_one_is_held_out(slides: Path, tmp_path: Path) -> None:
    store, first = tmp_path / "store", max("abc", key=number_of)
    val = (number_of(first) + 1) / 2**64  # the hash alone would hold out all three
    alone = tile.tile([slides / f"{first}.tiff"], store, TileOptions(val=val), Silent())
    assert [row["split"] for row in alone.slides] == ["train"]
    assert "there is one patient only, and no patient is held out" in alone.warnings[0]
    rows = tile.tile([slides], store, TileOptions(val=val), Silent()).slides
    assert {row["slide_id"]: row["split"] for row in rows} == {
        name: "train" if name == first else "val" for name in "abc"
    }


def test_the_table_wins_and_an_old_store_stays(slides: Path, lone_val: float, tmp_path: Path) -> None:
    store, table = tmp_path / "store", tmp_path / "s.csv"
    table.write_text("slide_id,split\n" + "".join(f"{name},train\n" for name in "abc"))
    options = TileOptions(val=lone_val, slides_csv=table)
    before = tile.tile([slides], store, options, Silent())
    assert {row["split"] for row in before.slides} == {"train"}
    assert "no patient is held out" in before.warnings[0]
    assert not tile.tile([slides], tmp_path / "none", replace(options, val=0.0), Silent()).warnings
    raw = (store / "manifest/slides.parquet").read_bytes()
    tile.tile([slides], store, TileOptions(val=lone_val), Silent())
    assert (store / "manifest/slides.parquet").read_bytes() == raw
    table.write_text("slide_id,split\na,test\n")
    rows = tile.tile([slides], tmp_path / "test", options, Silent()).slides
    free = sorted("bc", key=number_of)
    assert {row["slide_id"]: row["split"] for row in rows} == {"a": "test", free[0]: "val", free[1]: "train"}


def write_tiles(folder: Path, count: int) -> None:
    rng = np.random.default_rng(7)
    folder.mkdir()
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (64, 64, 3), np.uint8))


def test_of_tiles_one_is_held_out_too(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", 6)
    options = TileOptions(patch=64, tiles=True, val=1e-6)
    store = tmp_path / "store"
    result = tile.tile([tmp_path / "tiles"], store, options, Silent())
    assert {row["slide_id"]: row["n_patches"] for row in result.slides} == {"tiles-train": 5, "tiles-val": 1}
    assert result.to_json()["split_counts"]["val"] == {"patients": None, "slides": 1, "patches": 1}
    again = tile.tile([tmp_path / "tiles"], store, options, Silent())
    assert again.slides == result.slides
    listed = "\n".join(f"tiles/{i}.png,g{i // 2}" for i in range(6))
    (tmp_path / "tiles.csv").write_text("path,group\n" + listed)
    grouped = tile.tile([tmp_path / "tiles.csv"], tmp_path / "grouped", options, Silent())
    held_out = [row["slide_id"] for row in grouped.slides if row["split"] == "val"]
    assert held_out == [min(["g0", "g1", "g2"], key=number_of)]


def test_tiles_that_all_train_stay_as_they_were_tiled(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", 6)
    table = tmp_path / "tiles.csv"
    table.write_text("path,split\n" + "\n".join(f"tiles/{i}.png,train" for i in range(6)))
    options = TileOptions(patch=64, val=1e-6)
    before = tile.tile([table], tmp_path / "store", options, Silent())
    table.write_text("path\n" + "\n".join(f"tiles/{i}.png" for i in range(6)))
    after = tile.tile([table], tmp_path / "store", options, Silent())
    assert after.slides == before.slides


def test_merge_and_subset_keep_splits_and_warn(slides: Path, tmp_path: Path) -> None:
    for name in "ab":
        tile.tile([slides / f"{name}.tiff"], tmp_path / name, TileOptions(), Silent())
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert {row["split"] for row in manifest.read_slides(tmp_path / "merged")} == {"train"}
    assert "no patient is held out" in merged.warnings[0]
    assert any("warning: no patient is held out" in line for line in merged.lines())
    assert not subset(tmp_path / "merged", tmp_path / "sub", Selection(splits=("train",))).warnings


def test_few_patches_are_a_warning() -> None:
    row = {"vendor": "aperio", "status": manifest.OK, "n_patches": 99}
    rows = [row | {"patient_id": str(i), "split": "val" if i < 2 else "train"} for i in range(4)]
    assert not split_warnings(count_splits(rows))  # 198 each
    rows[0] = rows[0] | {"status": "failed"}
    assert split_warnings(count_splits(rows)) == [
        "one patient is held out: what is measured there need not hold for another patient",
        "split val has 99 patches only: figures on fewer than 100 are rough",
    ]
    assert "no patient trains" in split_warnings(count_splits(rows[:2]))[0]
