"""Training without patches that another tool judged as bad."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.dataset import ViewDataset
from pipeline.data.join import Member, open_joined
from pipeline.data.split import files_and_recipe, open_splits
from pipeline.distill.inputs import open_data
from pipeline.distill.options import DistillOptions
from pipeline.runtime.progress import Silent
from stores.combine.merge import merge
from stores.errors import OptionError, StoreError
from stores.format import manifest
from stores.format.qc import parse_limits
from stores.info import info_lines, store_info
from stores.io.progress import Reporter
from tests.tools.notes import Notes

LIMITS = parse_limits(["fold=0.1"], [])


def judge(store: Path, bad: Mapping[str, int], unknown: int = 0, column: str = "qc_fold") -> Path:
    """Let a tool find folds in the first rows of some slides, and say nothing of the last rows of ``a``."""
    rows = manifest.read_slides(store)
    for row in rows:
        patches = manifest.read_patches(store, row["slide_id"])
        values = np.zeros(len(patches), np.float32)
        values[: bad.get(row["slide_id"], 0)] = 0.5
        if unknown and row["slide_id"] == "a":
            values[-unknown:] = np.nan
        manifest.write_patches(
            store, row["slide_id"], patches.x_px0, patches.y_px0, patches.tissue, qc={column: values}
        )
        row |= {"qc_left_out": "1", "qc_unknown": "0"}
    manifest.write_slides(store, rows)
    return store


@pytest.fixture
def judged(store: Path, tmp_path: Path) -> Path:
    return judge(Path(shutil.copytree(store, tmp_path / "judged")), {"a": 3, "c": 1}, unknown=2)


def rows_of(found: list[object]) -> dict[str, list[int]]:
    return {unit.commit.slide_id: unit.rows.tolist() for unit in found}  # type: ignore[attr-defined]


def test_bad_and_unknown_patches_are_in_neither_split(judged: Path) -> None:
    notes: Reporter = Notes()
    files, recipe = files_and_recipe(judged)
    train, val = open_splits(files, recipe, {"train": None, "val": 1}, report=notes, limits=LIMITS)
    n = {row["slide_id"]: row["n_patches"] for row in manifest.read_slides(judged)}
    assert rows_of(list(train.units)) == {"a": list(range(3, n["a"] - 2)), "b": list(range(n["b"]))}
    assert rows_of(list(val.units)) == {"c": list(range(1, n["c"]))}
    assert notes.said == [  # type: ignore[attr-defined]
        f"QC: 5 of {n['a'] + n['b']} patches of the split train left out: --qc-max fold=0.1: 3, without a value: 2",
        f"QC: 1 of {n['c']} patches of the split val left out: --qc-max fold=0.1: 1",
    ]
    dataset = ViewDataset(judged, qc_max=["fold=0.1"], threads=1)
    assert dataset.epoch_views == 3 * (n["a"] + n["b"] - 5)
    assert dataset.epoch_views == sum(unit.n_views for unit in train.units)


def test_limits_that_cannot_be_judged_are_refused(judged: Path, store: Path) -> None:
    files, recipe = files_and_recipe(judged)

    def refused(match: str, *at_most: str, where: Path = files) -> None:  # type: ignore[assignment]
        with pytest.raises(OptionError, match=match):
            open_splits(where, recipe, {"train": None}, limits=parse_limits(at_most, []))

    refused(r"--qc-max pen=0\.1: .* has no column qc_pen in the split train; it has: fold", "pen=0.1")
    refused(r"no column qc_fold .* it has: none; `g2l tile --qc` writes them", "fold=0.1", where=store)
    refused(r"--qc-max fold=-1: no view of the split train .* is left \(--qc-max fold=-1", "fold=-1")


def test_several_stores_need_the_columns(judged: Path, store: Path, tmp_path: Path) -> None:
    other = judge(Path(shutil.copytree(store, tmp_path / "other")), {"b": 2})
    members = [Member(*files_and_recipe(of), None, None) for of in (judged, other)]
    n = {row["slide_id"]: row["n_patches"] for row in manifest.read_slides(judged)}
    (train,) = open_joined(members, {"train": 1}, "common", (), (), Silent(), LIMITS)
    assert rows_of(list(train.units)) == {"a": list(range(3, n["a"] - 2)), "b": list(range(2, n["b"]))}
    with pytest.raises(OptionError, match="has no column qc_fold"):
        open_joined(
            [members[0], Member(*files_and_recipe(store), None, None)],
            {"train": 1},
            "common",
            (),
            (),
            Silent(),
            LIMITS,
        )


def test_a_run_trains_within_its_limits(judged: Path) -> None:
    options = DistillOptions(student="tests.tools.tiny:student", qc_max=("fold=0.1",), val_views=8)
    data = open_data(judged, options, 1, Silent())
    assert rows_of(list(data.train.units))["a"][0] == 3
    with pytest.raises(OptionError, match=r"--qc-min 'fold': expected NAME=NUMBER"):
        DistillOptions(student="tests.tools.tiny:student", qc_min=("fold",)).validate()


def test_what_a_store_says_of_quality(judged: Path, store: Path) -> None:
    assert "qc" not in store_info(store)
    info = store_info(judged)
    assert info["qc"]["left_out"] == 3
    fold = info["qc"]["columns"]["qc_fold"]
    assert (fold["unknown"], fold["max"]) == (2, 0.5)
    assert any(
        line.startswith("  fold: mean ") and line.endswith("not known of 2") for line in info_lines(info)
    )


def test_stores_that_judge_differently_do_not_merge(judged: Path, store: Path, tmp_path: Path) -> None:
    for number, bad in enumerate(({"a": 3, "c": 1}, {"a": 4, "c": 1})):
        other = judge(Path(shutil.copytree(store, tmp_path / f"other{number}")), bad, unknown=2)
        if number:
            with pytest.raises(StoreError, match="qc_fold of patch 3"):
                merge([judged, other], tmp_path / f"out{number}")
        else:
            merge([judged, other], tmp_path / f"out{number}")
            assert manifest.read_patches(tmp_path / "out0", "a").qc["qc_fold"][0] == 0.5
    with pytest.raises(StoreError, match="QC columns of its patches"):
        merge([judged, store], tmp_path / "out")
