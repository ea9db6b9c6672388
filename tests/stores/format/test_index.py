"""The index of a store: opening reads no record, and a wrong index is noticed by whoever uses or verifies it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.committed import BlockCache
from stores import sampler
from stores.combine.merge import merge
from stores.combine.subset import Selection, subset
from stores.errors import CorruptStore
from stores.export.export import ExportOptions, export
from stores.format import layout, manifest
from stores.format.index import (
    SUMMARY,
    drop_index,
    index_problems,
    make_index,
    read_index,
    renew_index,
    write_index,
)
from stores.info import info_lines, store_info
from stores.verify.reindex import reindex
from stores.verify.structure import verify_structure
from tests.conformance import whole
from tests.tools.stores import make_store

ROWS = {"a": 40, "b": 36, "v": 33, "none": 0}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A record for each slide, rows that could not be read, and an index."""
    made = make_store(tmp_path / "s", ROWS)
    write_index(made)
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables of a store that are read, by name."""
    names: list[str] = []
    read_table = manifest.read_table

    def counted(path: Path, *rest: Any, **more: Any) -> pa.Table:
        names.append(path.parent.parent.name if "views" in path.parts else path.name)
        return read_table(path, *rest, **more)

    monkeypatch.setattr(manifest, "read_table", counted)
    return names


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def facts(units: list[sampler.Segment]) -> list[tuple[Any, ...]]:
    return [(u.commit.slide_id, u.commit.block, u.seeds, u.rows.tolist()) for u in units]


def forge(store: Path, change: Callable[[dict[str, Any]], None], record: int = 0) -> None:
    """Change a line of the index, under a right checksum."""
    path = store / layout.INDEX
    table = pq.ParquetFile(path).read()
    lines = table.to_pylist()
    change(lines[record])
    manifest.write_table(path, pa.Table.from_pylist(lines, schema=table.schema))


def test_opening_by_the_index_reads_no_record_and_finds_the_same(tmp_path: Path, read: list[str]) -> None:
    store = make_store(tmp_path / "s", {**ROWS, "a": 1100}, records=(range(2), range(2, 3)))
    write_index(store)
    read.clear()
    found = {split: sampler.find_units(store, split, None) for split in ("train", "val")}
    said = store_info(store)
    assert "views" not in read
    drop_index(store)
    for split, units in found.items():
        assert facts(units) == facts(sampler.find_units(store, split, None))
    assert read.count("views") == 8  # two blocks of a, one of b and v, two records each
    without = store_info(store)
    assert said.pop("files") == without.pop("files") + 1
    assert said.pop("index") == "8 commit records"
    assert without.pop("index") == "none"
    size = said["bytes"].pop("manifest") - without["bytes"].pop("manifest")
    assert size > 0
    assert said.pop("bytes_per_view") > without.pop("bytes_per_view")
    assert said == without


def test_readers_never_write_it_and_never_change_it(store: Path) -> None:
    before = files_of(store)
    store_info(store)
    sampler.find_units(store, "train", None)
    assert verify_structure(store).findings == []
    assert files_of(store) == before
    drop_index(store)
    store_info(store)
    sampler.find_units(store, "train", None)
    assert not (store / layout.INDEX).exists()


def cut(store: Path) -> None:
    path = store / layout.commit_file("b", 0, range(3))
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda store: (store / layout.commit_file("v", 0, range(3))).unlink(), "lists manifest/views/v/"),
        (
            lambda store: shutil.copy(
                store / layout.commit_file("b", 0, range(3)), store / layout.commit_file("b", 0, range(3, 4))
            ),
            "lacks manifest/views/b/00000-s0003-0003.parquet",
        ),
        (cut, "says that manifest/views/b/00000-s0000-0002.parquet has "),
        (lambda store: (store / layout.INDEX).write_bytes(b"PAR1"), "not a readable Parquet file"),
        (lambda store: forge(store, lambda line: line.update(rows="0-4000000")), "is not said of a commit record"),
        (lambda store: forge(store, lambda line: line.update(ok="0-9,5-12")), "is not said of a commit record"),
        (lambda store: forge(store, lambda line: line.update(sha256="x" * 10**5)), "a text of more than"),
        (lambda store: forge(store, lambda line: line.update(slide_id="../x")), "slide '../x'"),
        (lambda store: forge(store, lambda line: line.update(first_seed=-1)), "is not said of a commit record"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_is_refused_in_one_line_and_info_goes_by_the_records(
    store: Path, change: Callable[[Path], object], said: str
) -> None:
    change(store)
    with pytest.raises(CorruptStore, match=f"index.parquet: .*{said}"):
        sampler.find_units(store, "train", None)
    assert "index" in {found.kind for found in verify_structure(store).findings}
    if change is not cut:
        info = store_info(store)
        assert info["index"].startswith("not used: ")
        assert any(line.startswith("index     not used") for line in info_lines(info))
    if "lacks" not in said and change is not cut:
        assert reindex(store).done == [f"{layout.INDEX} written"]
        sampler.find_units(store, "train", None)


def test_more_lines_than_records_are_refused_before_they_are_decoded(store: Path) -> None:
    table = pq.ParquetFile(store / layout.INDEX).read()
    for times, said in ((2, "lists manifest/views/a/.* twice"), (50, "150 rows in .*; at most 106 rows")):
        manifest.write_table(store / layout.INDEX, pa.concat_tables([table] * times))
        with pytest.raises(CorruptStore, match=said):
            read_index(store)


FORGED = (
    ({"ok": "0-2,4-38", "rows": "0-39"}, "has other rows or views"),
    ({"ok": "0-38", "rows": "0-38"}, "has other rows or views"),
    ({"content": "0" * 32}, "has other rows or views"),
    ({"sha256": "0" * 64}, "its SHA-256 is not the one"),
)


def test_a_forged_index_is_noticed_when_the_block_is_used(tmp_path: Path) -> None:
    store = whole.make(tmp_path / "s")
    for change, said in FORGED:
        write_index(store)
        forge(store, lambda line, change=change: line.update(change))  # type: ignore[misc]
        (unit,) = (u for u in sampler.find_units(store, "train", None) if u.commit.slide_id == "a")
        with pytest.raises(CorruptStore, match=said) as refused:
            BlockCache(store).commit(unit.commit)
        assert "00000-s0000-0001.parquet" in str(refused.value)
        assert "g2l store reindex" in str(refused.value)
        with pytest.raises(CorruptStore, match=said):
            BlockCache(store).stored(unit.commit, np.array([0], np.int32), 0)
    found = verify_structure(store).findings
    assert [(f.kind, f.slide_id, f.block) for f in found] == [("index", "a", 0)]
    assert reindex(store).done == [f"{layout.INDEX} written"]
    assert verify_structure(store).findings == []


def test_what_records_promise_is_checked_when_they_are_used(tmp_path: Path) -> None:
    """A record that breaks a promise, and an index that was made of it."""
    store = whole.make(tmp_path / "s")
    record = next(c for c in manifest.commits(store) if c.slide_id == "b")
    table = record.read()
    at = table.schema.get_field_index("x_px0")
    moved = table.set_column(at, "x_px0", pa.array(table["x_px0"].to_numpy() + 40, pa.int32()))
    manifest.write_table(record.path, moved)
    with pytest.raises(CorruptStore, match="x_px0 differs from that of the patches"):
        sampler.find_units(store, "train", None)
    write_index(store)
    (unit,) = (u for u in sampler.find_units(store, "train", None) if u.commit.slide_id == "b")
    with pytest.raises(CorruptStore, match="x_px0 differs from that of the patches"):
        BlockCache(store).stored(unit.commit, unit.rows, 0)


def test_figures_and_sizes_are_compared_by_verify(store: Path) -> None:
    path = store / layout.INDEX
    table = pq.ParquetFile(path).read()
    said = table.schema.metadata[SUMMARY]
    for old, new, finding in (
        (b'"std_max": ', b'"std_max": 1', "says that std_max of the features is 1"),
        (b'"pixels.zarr": 0', b'"pixels.zarr": 7', "says that features and pixels have "),
    ):
        assert old in said
        manifest.write_table(path, table.replace_schema_metadata({SUMMARY: said.replace(old, new)}))
        found = verify_structure(store).findings
        assert {(f.kind, f.slide_id) for f in found} == {("index", None)}
        assert finding in found[0].problem
    for wrong in (b"", b"[]", b'{"statistics": {"std": NaN}, "bytes": {}}', said.replace(b"std_max", b"std")):
        manifest.write_table(path, table.replace_schema_metadata({SUMMARY: wrong}))
        with pytest.raises(CorruptStore, match="its summary is not readable"):
            read_index(store)


def test_new_stores_have_an_index_of_their_own(store: Path, tmp_path: Path) -> None:
    forge(store, lambda line: line.update(content="0" * 32))
    other = make_store(tmp_path / "other", {"c": 40}, records=(range(3),))
    merge([store, other], tmp_path / "merged")
    subset(store, tmp_path / "subset", Selection(seeds=1))
    export(store, tmp_path / "lossless", ExportOptions(compact="lossless"))
    for name, n in (("merged", 4), ("subset", 3), ("lossless", 3)):
        index = read_index(tmp_path / name)
        assert index is not None
        assert len(list(index.records())) == n
        assert list(index_problems(index, make_index(tmp_path / name))) == []


def test_an_older_store_gets_one_by_reindex_and_a_change_drops_it_first(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_index(store)
    assert reindex(store, dry_run=True).done == [f"{layout.INDEX} written"]
    assert not (store / layout.INDEX).exists()
    (store / layout.chunk_file(layout.feature_array("b", "stats"), (0, 0, 0, 0))).unlink()
    assert reindex(store).done[-1] == f"{layout.INDEX} written"
    assert reindex(store).done == []
    (store / layout.chunk_file(layout.feature_array("b", "stats"), (0, 0, 0, 0))).unlink()

    def killed(*arguments: object) -> None:
        assert not (store / layout.INDEX).exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stores.format.features.write_stats", killed)
        with pytest.raises(KeyboardInterrupt):
            reindex(store)
    assert read_index(store) is None
    reindex(store)
    assert read_index(store) is not None


def test_records_that_cannot_be_read_leave_a_store_without_index(store: Path) -> None:
    drop_index(store)
    (store / layout.commit_file("b", 0, range(3))).write_bytes(b"PAR1")
    problem = renew_index(store)
    assert problem is not None
    assert "was not written" in problem
    assert not (store / layout.INDEX).exists()
