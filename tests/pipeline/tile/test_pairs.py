"""A column ``pair`` in a list of tiles: whole pairs stay within a split and a patient."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from stores.errors import OptionError
from stores.format import manifest
from tests.tools.notes import Notes
from tests.tools.tiles import write_table, write_tiles

OPTIONS = TileOptions(patch=64, val=0.4)


def listed(folder: Path, pairs: list[str], **columns: list[str]) -> Path:
    """A table of a tile for each pair that is named."""
    names = write_tiles(folder, range(len(pairs)))
    rows: list[dict[str, Any]] = [
        {"path": name, "pair": pair} for name, pair in zip(names, pairs, strict=True)
    ]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return write_table(folder / "tiles.csv", rows)


def test_without_patients_the_pair_decides_the_split(tmp_path: Path) -> None:
    table = listed(tmp_path, [f"n{number // 2}" for number in range(20)] + ["", "", "lone"])
    notes = Notes()
    tile([table], tmp_path / "store", OPTIONS, notes)
    split: dict[str, set[str]] = {}
    for row in manifest.read_slides(tmp_path / "store"):
        for pair in manifest.read_further(tmp_path / "store", row["slide_id"], ("pair",))["pair"].to_pylist():
            split.setdefault(pair or "", set()).add(row["split"])
    assert all(len(found) == 1 for pair, found in split.items() if pair)
    assert {"train"} in split.values()
    assert {"val"} in split.values()
    said = "1 pair has one usable tile only, which is trained on as a tile without a pair"
    assert {"10 pairs of 2 tiles", said} <= set(notes.said)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"split": ["train", "val"]},
            "in split train, class1/t1.png in val: .* one patient_id, or one split",
        ),
        ({"patient_id": ["p", "q"], "split": ["train"] * 2}, "of patient p, class1/t1.png of patient q"),
        ({"patient_id": ["p", ""], "split": ["train"] * 2}, "of patient p, class1/t1.png of no patient"),
    ],
)
def test_a_pair_in_two_splits_or_of_two_patients_is_refused(
    tmp_path: Path, columns: dict[str, list[str]], said: str
) -> None:
    table = listed(tmp_path, ["n0", "n0"], **columns)
    with pytest.raises(OptionError, match=f"pair n0: class0/t0.png is {said}"):
        tile([table], tmp_path / "store", OPTIONS, Notes())
    assert not (tmp_path / "store" / "manifest" / "slides.parquet").exists()
