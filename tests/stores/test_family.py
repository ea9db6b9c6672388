"""``store info --family``: what stores of several teachers share and lack, and whether they show the same views."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

import pipeline as g2l_api
from stores.errors import OptionError, StoreError
from stores.family import family
from stores.format import manifest, recipe
from tests.tools.commands import g2l, one_error
from tests.tools.stores import make_store

N = {"a": 5, "b": 3}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("family") / "a", N)


def copied(store: Path, target: Path) -> Path:
    return Path(shutil.copytree(store, target))


def change_checksum(store: Path, slide_id: str, seed: int, row: int) -> None:
    for commit in manifest.commits(store, slide_id):
        table = commit.read()
        values = [
            value["view_crc32"] ^ 1 if (value["seed"], value["row"]) == (seed, row) else value["view_crc32"]
            for value in table.to_pylist()
        ]
        index = table.column_names.index("view_crc32")
        table = table.set_column(index, "view_crc32", pa.chunked_array([pa.array(values, pa.uint32())]))
        manifest.write_commit(store, slide_id, commit.block, commit.seeds, table)


def test_equal_views(first: Path, tmp_path: Path) -> None:
    found = family([first, copied(first, tmp_path / "b")])
    assert found.is_family
    one = found.stores[0]
    assert (found.slides, found.patches) == (one.slides, one.patches) == (2, 8)
    assert found.views == found.compared == one.views == 6 * found.seeds  # two could not be read
    assert not any(m.lacks_slides or m.lacks_patches or m.lacks_views for m in found.stores)


def test_what_one_lacks(first: Path, tmp_path: Path) -> None:
    other = copied(first, tmp_path / "b")
    for commit in list(manifest.commits(other, "b")):
        commit.path.unlink()
    manifest.write_slides(other, [row for row in manifest.read_slides(other) if row["slide_id"] == "a"])
    found = g2l_api.family([first, other])
    assert found.is_family
    assert (found.slides, found.patches) == (1, 5)
    lacking = found.stores[1]
    assert (lacking.lacks_slides, lacking.lacks_patches, lacking.lacks_views) == (["b"], 3, 2 * found.seeds)
    assert found.stores[0].lacks_views == 0
    assert "  lacks 1 slide (b), 3 patches" in "\n".join(found.lines())


def test_another_view_is_named(first: Path, tmp_path: Path) -> None:
    other = copied(first, tmp_path / "b")
    change_checksum(other, "b", 1, 2)
    done = g2l("store", "info", first, other, "--family")
    assert done.exit_code == 1, done.output
    assert "not one family: slide b row 2 (" in done.stdout
    assert "seed 1: " in done.stdout
    as_json = g2l("store", "info", "--family", "--json", first, other)
    found = json.loads(as_json.stdout)
    assert (as_json.exit_code, found["family"], len(found["differences"])) == (1, False, 1)


def test_another_policy_is_named(first: Path, tmp_path: Path) -> None:
    other = copied(first, tmp_path / "b")
    stored = recipe.load_complete(other)
    (other / "recipe.json").unlink()
    recipe.save(other, replace(stored, policy={**stored.policy, "name": "mine", "stain": {"sigma": 0.5}}))
    (why,) = family([first, other]).differences
    assert why.startswith("policy.stain")


def test_nothing_in_common(first: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "b", {"c": 4})
    (why,) = family([first, other]).differences
    assert why == f"{first} and {other} have no view in common"


def test_what_is_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="two stores or more"):
        family([first])
    (tmp_path / "link").symlink_to(first)
    for twice in (first, first / ".." / first.name, tmp_path / "link"):
        with pytest.raises(OptionError, match="given twice"):
            family([first, twice])
    with pytest.raises(StoreError):
        family([first, tmp_path])
    one_error(g2l("store", "info", first, first), "2 stores; give one, or --family to compare them")
