"""``store reindex``: derived things come in line, committed ones stay, and a kill at any point does no harm."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cli
from stores.errors import OptionError
from stores.format import features, layout, manifest, recipe
from stores.format.index import read_index, write_index
from stores.verify import reindex as reindex_module
from stores.verify.reindex import reindex
from stores.verify.structure import verify_structure
from tests.tools.stores import content, files_of, make_store


def run(store: Path, dry_run: bool = False) -> list[str]:
    return reindex(store, dry_run, False).done


def findings(store: Path) -> list[str]:
    return [str(f) for f in verify_structure(store).findings]


def test_a_store_in_line_stays_as_it_is(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40, "b": 3}, with_pixels=True)
    write_index(store)
    before = files_of(store)
    assert run(store) == []
    assert files_of(store) == before


def test_a_store_of_an_older_version_gets_its_checksums(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40, "b": 3})
    write_index(store)
    before = files_of(store)
    for path in store.rglob("*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    value = json.loads((store / "recipe.json").read_text())
    del value["digest"]
    (store / "recipe.json").write_text(json.dumps(value))
    old = files_of(store)
    assert any("carries no checksum; `g2l store reindex` adds it" in text for text in findings(store))
    assert len(run(store, dry_run=True)) == 7
    assert files_of(store) == old
    assert "manifest/patches/a.parquet: checksum added" in run(store)
    assert files_of(store) == before
    assert findings(store) == []


@pytest.mark.parametrize("what", ["checksum", "leftovers"])
def test_a_killed_run_leaves_no_index_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    store = make_store(tmp_path / "s", {"a": 40, "b": 3})
    if what == "leftovers":
        next(manifest.commits(store, "b")).path.unlink()
    else:
        path = store / layout.patches_file("a")
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    write_index(store)

    def killed(*arguments: Any) -> None:
        assert not (store / layout.INDEX).exists()
        raise KeyboardInterrupt

    target, name = (reindex_module._Run, "index") if what == "leftovers" else (manifest, "add_checksum")
    monkeypatch.setattr(target, name, killed)
    with pytest.raises(KeyboardInterrupt):
        reindex(store, False, what == "leftovers")


def test_records_of_single_seeds_become_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40}, records=[range(1), range(1, 3), range(3, 4)])
    at_once = make_store(tmp_path / "t", {"a": 40}, records=[range(4)])
    write_index(at_once)
    before = content(store)
    assert run(store)[0] == "slide a block 0: 3 commit records joined to seeds 0-3"
    assert content(store) == before
    assert files_of(store) == files_of(at_once)
    assert findings(store) == []


def test_a_kill_between_joining_and_removing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40}, records=[range(1), range(1, 3)])
    before, parts = content(store), files_of(store / "manifest/views/a")
    run(store)
    assert read_index(store) is not None
    for name, data in parts.items():
        (store / "manifest/views/a" / name).write_bytes(data)
    assert content(store) == before  # nothing is seen twice
    assert any("reindex` removes it" in text for text in findings(store))
    assert run(store)[0].endswith("removed, 00000-s0000-0002.parquet has its views")
    assert findings(store) == []
    assert len(list(manifest.commits(store, "a"))) == 1


def test_statistics_are_computed_again(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 40, "b": 3})
    write_index(store)
    before = files_of(store)
    features.write_stats(store, "a", 1, 0, features.open_features(store, "a").read_block(0, 0))
    (store / "features.zarr/b/stats/c/2/0/0/0").unlink()
    assert run(store) == [
        "slide a block 0 seed 1: statistics computed again",
        "slide b block 0 seed 2: statistics computed again",
        "manifest/index.parquet written",
    ]
    assert files_of(store) == before


def test_unfinished_files_go_and_sealed_stores_stay(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 4})
    (store / "features.zarr/a/.x.123.partial").touch()
    done = CliRunner().invoke(cli.g2l, ["store", "reindex", str(store)])
    assert done.stdout.startswith("done: 1 unfinished file removed\n")
    done = CliRunner().invoke(cli.g2l, ["store", "reindex", str(store), "--dry-run"])
    assert done.stdout.endswith("everything is up to date\n")
    sealed = Path(shutil.copytree(store, tmp_path / "sealed"))
    CliRunner().invoke(cli.g2l, ["store", "seal", str(sealed)])
    with pytest.raises(OptionError, match=r"is sealed; to change it delete checksums\.sha256"):
        run(sealed)
    assert recipe.load(sealed).complete
