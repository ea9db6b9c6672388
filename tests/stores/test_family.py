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
from stores.format import layout, manifest, recipe, terms
from stores.io import files
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


def test_another_policy_or_resolution_is_named(first: Path, tmp_path: Path) -> None:
    other = copied(first, tmp_path / "b")
    stored = recipe.load_complete(other)
    (other / "recipe.json").unlink()
    policy = {**stored.policy, "name": "mine", "stain": {"sigma": 0.5}}
    recipe.save(other, replace(stored, policy=policy, patch=replace(stored.patch, mpp=0.51)))
    assert [why.split()[0] for why in family([first, other]).differences] == ["patch.mpp", "policy.stain"]


def test_slides_without_a_fingerprint_are_nobody_elses(first: Path, tmp_path: Path) -> None:
    """An importer may not know the file; two such slides are not one."""
    other = copied(first, tmp_path / "b")
    change_checksum(other, "b", 1, 2)
    mine = copied(first, tmp_path / "a")
    for store in (mine, other):
        rows = manifest.read_slides(store)
        manifest.write_slides(store, [r | {"fingerprint": None} if r["slide_id"] == "b" else r for r in rows])
    found = family([mine, other])
    assert found.is_family
    assert (found.slides, [member.lacks_slides for member in found.stores]) == (1, [["b"], ["b"]])


def test_a_slide_that_is_there_twice_counts_once(first: Path, tmp_path: Path) -> None:
    other = copied(first, tmp_path / "b")
    make_store(tmp_path / "c", {"c": 5})
    for top in ("manifest/patches/c.parquet", "manifest/views/c", "features.zarr/c"):
        made, to = tmp_path / "c" / top, other / top
        shutil.copytree(made, to) if made.is_dir() else shutil.copy(made, to)
    (mine,) = (row for row in manifest.read_slides(other) if row["slide_id"] == "a")
    (twin,) = manifest.read_slides(tmp_path / "c")
    rows = [*manifest.read_slides(other), twin | {"fingerprint": mine["fingerprint"]}]
    manifest.write_slides(other, rows)
    found = family([first, other])  # the views of c are others, and those of a count
    assert found.is_family
    assert (found.slides, found.patches, found.stores[1].slides) == (2, 8, 3)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("manifest/views/a/00000-s0000-0002.parquet", "its checksum differs"),
        ("manifest/patches/a.parquet", "its checksum differs"),
        ("manifest/slides.parquet", "its checksum differs"),
        ("recipe.json", "recipe.json: "),
    ],
)
def test_damage_is_named(first: Path, tmp_path: Path, file: str, said: str) -> None:
    other = copied(first, tmp_path / "b")
    raw = bytearray((other / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (other / file).write_bytes(raw)
    one_error(g2l("store", "info", first, other, "--family"), said)


def test_foreign_text_is_shown_as_text(first: Path, tmp_path: Path) -> None:
    other = copied(first, tmp_path / "b")
    stored = recipe.load_complete(other)
    (other / "recipe.json").unlink()
    odd = "t\x1b[31m\n\u202e"
    policy = {**stored.policy, odd: odd}
    recipe.save(other, replace(stored, teacher=replace(stored.teacher, name=odd), policy=policy))
    done = g2l("store", "info", first, other, "--family")
    assert done.exit_code == 1
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output
    assert len(done.stdout.splitlines()) == len(family([first, other]).lines())


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


def test_weights_that_were_drawn_have_no_licence(first: Path, tmp_path: Path) -> None:
    """The line of all says no less than the lines of each."""
    other, third = copied(first, tmp_path / "b"), copied(first, tmp_path / "c")
    for store, said in ((first, "apache-2.0"), (other, None), (third, "unknown")):
        options: dict[str, object] = {"random_weights": 0, "teacher_terms": []}
        if said is not None:
            options = {"random_weights": None, **terms.recorded([terms.Terms("t", terms.Fact(said))])}
        files.write_json(store / layout.options_file("extract-teacher"), options)
    lines = family([first, other]).lines()
    assert [
        line.partition("licence ")[2].partition(";")[0].strip() for line in lines if "licence" in line
    ] == [
        "Apache-2.0",
        "none, its weights are random",
        "Apache-2.0",
    ]
    assert "licence   none, its weights are random" in family([other, copied(other, tmp_path / "d")]).lines()
    said = f"licence   Apache-2.0; unknown what the terms of {third} are"
    assert said in family([first, third]).lines()
