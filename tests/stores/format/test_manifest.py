"""The Parquet manifest: ids, tables, commit records, foreign files."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.views.draw import ViewParams
from stores.errors import CorruptStore, StoreError
from stores.format import layout, manifest
from tests.tools.manifest import views_table


@pytest.mark.parametrize("text", ["a", "TCGA-CR-7395-01A.x_y", "0" * 200])
def test_slide_ids(text: str) -> None:
    assert layout.check_slide_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "..", ".hidden", "a/b", "a\\b", "zarr.json", "-x", "a b", "é", "0" * 201, "a\n"]
)
def test_ids_that_would_be_paths_are_refused(text: str) -> None:
    with pytest.raises(CorruptStore, match="slide id"):
        layout.check_slide_id(text)


def slide(slide_id: str, **values: Any) -> dict[str, Any]:
    """A row of the slides table with what may not be empty."""
    required = {"patient_id": "p", "split": "train", "status": "ok", "n_patches": 0}
    return {"slide_id": slide_id, **required, **values}


def test_slides_keep_own_columns_and_order(tmp_path: Path) -> None:
    rows = [
        slide("b", n_patches=3, site="x"),
        slide("a", status="failed", reason="why"),
    ]
    manifest.write_slides(tmp_path, rows)
    found = manifest.read_slides(tmp_path)
    assert [row["slide_id"] for row in found] == ["a", "b"]
    assert found[1]["site"] == "x"
    assert found[0]["site"] is None
    assert found[0]["reason"] == "why"


def test_no_slides_yet(tmp_path: Path) -> None:
    assert manifest.read_slides(tmp_path) == []


def test_slide_id_in_a_foreign_table_is_checked(tmp_path: Path) -> None:
    manifest.write_slides(tmp_path, [slide("../../etc")])
    with pytest.raises(CorruptStore, match="slide id"):
        manifest.read_slides(tmp_path)


def test_a_slide_twice_and_empty_values_are_refused(tmp_path: Path) -> None:
    manifest.write_slides(tmp_path, [slide("a"), slide("a")])
    with pytest.raises(CorruptStore, match="slide a is listed twice"):
        manifest.read_slides(tmp_path)
    manifest.write_slides(tmp_path, [slide("a", split=None)])
    with pytest.raises(CorruptStore, match="column split has 1 empty values"):
        manifest.read_slides(tmp_path)


def test_any_flipped_bit_of_a_parquet_file_is_noticed(tmp_path: Path) -> None:
    manifest.write_slides(tmp_path, [slide("a", site="x")])
    path = manifest.slides_path(tmp_path)
    whole = path.read_bytes()
    assert manifest.checksum_matches(whole)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        assert not manifest.checksum_matches(bytes(damaged)), at
    path.write_bytes(whole[:200] + b"!" + whole[201:])
    with pytest.raises(CorruptStore, match="checksum differs"):
        manifest.read_slides(tmp_path)


def test_a_table_of_another_program_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    manifest.write_slides(tmp_path, [slide("a")])
    path = manifest.slides_path(tmp_path)
    table = pq.read_table(path).replace_schema_metadata(None)
    pq.write_table(table, path)
    assert manifest.checksum_matches(path.read_bytes()) is None
    assert [row["slide_id"] for row in manifest.read_slides(tmp_path)] == ["a"]


def test_patches_round_trip(tmp_path: Path) -> None:
    x, y = np.array([0, 256], np.int32), np.array([512, 0], np.int32)
    manifest.write_patches(tmp_path, "a", x, y, np.array([0.5, 1], np.float32))
    found = manifest.read_patches(tmp_path, "a")
    assert len(found) == 2
    np.testing.assert_array_equal(found.x_px0, x)
    np.testing.assert_array_equal(found.y_px0, y)
    with pytest.raises(StoreError, match="no such file"):
        manifest.read_patches(tmp_path, "b")


def test_commits_are_listed_in_order_and_foreign_names_skipped(tmp_path: Path) -> None:
    for slide_id, block, seeds in (
        ("b", 0, range(4)),
        ("a", 1, range(4)),
        ("a", 0, range(4, 8)),
        ("a", 0, range(4)),
    ):
        manifest.write_commit(tmp_path, slide_id, block, seeds, views_table(slide_id, range(2), seeds))
    (tmp_path / "manifest/views/a/notes.parquet").write_bytes(b"")
    found = [(c.slide_id, c.block, c.seeds) for c in manifest.commits(tmp_path)]
    assert found == [("a", 0, range(4)), ("a", 0, range(4, 8)), ("a", 1, range(4)), ("b", 0, range(4))]


def test_count_views_and_ok_rows(tmp_path: Path) -> None:
    manifest.write_commit(tmp_path, "a", 0, range(2), views_table("a", range(5), range(2), bad=(3,)))
    counts = {(c["seed"], c["status"]): c["views"] for c in manifest.count_views(tmp_path).to_pylist()}
    assert counts == {(0, "ok"): 4, (1, "ok"): 4, (0, "bad_read"): 1, (1, "bad_read"): 1}
    (commit,) = manifest.commits(tmp_path)
    np.testing.assert_array_equal(manifest.ok_rows(commit.read(), 1), [0, 1, 2, 4])


def test_drawn_columns_are_the_fields_of_view_params() -> None:
    assert manifest.DRAWN_SCHEMA.names == list(ViewParams.__dataclass_fields__)


@pytest.mark.parametrize("damage", ["truncate", "flip", "column"])
def test_damaged_commit_is_named(tmp_path: Path, damage: str) -> None:
    manifest.write_commit(tmp_path, "a", 0, range(1), views_table("a", range(300), range(1)))
    path = manifest.commit_path(tmp_path, "a", 0, range(1))
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[40] ^= 4
        path.write_bytes(content)
    else:
        pq.write_table(pq.read_table(path).drop_columns(["view_crc32"]), path)
    with pytest.raises(CorruptStore, match="00000-s0000-0000") as caught:
        next(iter(manifest.commits(tmp_path))).read()
    assert "\n" not in str(caught.value)
