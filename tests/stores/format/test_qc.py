"""QC columns and limits: what is not known is never good, and a table without such columns stays as it was."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stores.errors import CorruptStore, OptionError
from stores.format import manifest, qc
from stores.format.committed import patches_problems

X = np.array([0, 256, 512], np.int32)
TISSUE = np.ones(3, np.float32)
NAN = np.float32(np.nan)
ROW = {"slide_id": "a", "n_patches": 3, "patch_px0": 256, "width_px0": 768, "height_px0": 768}


def _patches(**columns: list[float]) -> manifest.Patches:
    return manifest.Patches(X, X, TISSUE, qc={name: np.array(of, np.float32) for name, of in columns.items()})


@pytest.mark.parametrize("name", ["", "&", "left out", "qc_unknown", "Frame", "x" * 60])
def test_what_cannot_be_a_column(name: str) -> None:
    with pytest.raises(OptionError, match="cannot be the name of a QC column"):
        qc.column_of(name)


@pytest.mark.parametrize(
    "text", ["fold", "fold=", "fold=much", "fold=nan", "fold=inf", "=0.1", "frame=1", "fold=0,1"]
)
def test_a_limit_has_a_form(text: str) -> None:
    with pytest.raises(OptionError, match=r"--qc-max '"):
        qc.parse_limits([text], [])


def test_a_name_has_one_bound_of_a_kind() -> None:
    with pytest.raises(OptionError, match="has a bound already"):
        qc.parse_limits(["fold=0.1", "Fold=0.2"], [])
    assert len(qc.parse_limits(["focus=9"], ["focus=1"])) == 2


def test_what_is_not_known_passes_no_limit() -> None:
    limits = qc.parse_limits(["fold=0.1"], ["focus=2"])
    values = {
        "qc_fold": np.array([0.1, 0.2, 0.0, NAN, 0.3], np.float32),
        "qc_focus": np.array([2, 1, NAN, 9, NAN], np.float32),
    }
    judged = qc.judge(limits, values, 5)
    assert judged.keep.tolist() == [True, False, False, False, False]
    assert {str(limit): count for limit, count in judged.beyond.items()} == {
        "--qc-min focus=2": 1,
        "--qc-max fold=0.1": 2,
    }
    assert judged.unknown == 3
    nothing = qc.judge(limits, {"qc_focus": values["qc_focus"]}, 5)
    assert not nothing.keep.any()
    assert nothing.unknown == 5


def test_a_table_with_columns_and_one_without(tmp_path: Path) -> None:
    scores = np.array([0.25, NAN, 1.5], np.float32)
    manifest.write_patches(tmp_path / "with", "a", X, X, TISSUE, qc={"qc_fold": scores})
    manifest.write_patches(tmp_path / "without", "a", X, X, TISSUE)
    manifest.write_patches(tmp_path / "none", "a", X, X, TISSUE, qc={})
    files = [manifest.patches_path(tmp_path / name, "a").read_bytes() for name in ("without", "none")]
    assert files[0] == files[1]
    assert pq.read_table(manifest.patches_path(tmp_path / "with", "a"))["qc_fold"].to_pylist() == [
        0.25,
        None,
        1.5,
    ]
    found = manifest.read_patches(tmp_path / "with", "a")
    np.testing.assert_array_equal(found.qc["qc_fold"], scores)
    assert found.further == ()
    assert not manifest.read_patches(tmp_path / "without", "a").qc
    assert not list(patches_problems(found, ROW))


def test_a_column_of_text_is_a_users_own(tmp_path: Path) -> None:
    manifest.write_patches(tmp_path, "a", X, X, TISSUE, {"qc_stain": ["pale", None, "dark"]})
    found = manifest.read_patches(tmp_path, "a")
    assert found.further == ("qc_stain",)
    assert not found.qc


def test_an_infinite_score_is_a_problem() -> None:
    problems = list(patches_problems(_patches(qc_fold=[0, np.inf, np.nan]), ROW))
    assert problems == ["qc_fold is infinite for 1 patch"]


def test_a_score_of_the_slide_is_one_of_its_patches() -> None:
    row = {**ROW, "qc_focus": "3.5", "qc_left_out": "2", "qc_x": "", "site": "5"}
    patches = _patches(qc_fold=[0, 1, 2])
    assert [qc.values_of(row, patches, name) is None for name in ("qc_left_out", "qc_pen")] == [True, True]
    focus, empty = (qc.values_of(row, patches, name) for name in ("qc_focus", "qc_x"))
    assert focus is not None
    assert focus.tolist() == [3.5] * 3
    assert empty is not None
    assert np.isnan(empty).all()
    with pytest.raises(CorruptStore, match="qc_focus is 'good' in the slides table, not a number"):
        qc.values_of({**row, "qc_focus": "good"}, patches, "qc_focus")
