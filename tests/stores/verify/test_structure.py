"""``store verify``, structure: every fault is found, named, and crashes nothing."""

import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.errors import StoreError
from stores.format import features, layout, manifest, recipe
from stores.verify.structure import verify_structure
from tests.tools.settings import TEACHER
from tests.tools.verify import edit_commit, named, names_of, structure, with_column


def test_a_whole_store_has_no_findings(store: Path, small: Path) -> None:
    for path in (store, small):
        result = verify_structure(path)
        assert result.findings == []
        assert result.slides == 3
        assert result.views == manifest.count_views(path)["views"].to_numpy().sum()
        assert result.bytes == sum((path / name).stat().st_size for name in names_of(path))
        assert not result.sealed


@pytest.mark.slow
def test_fifty_flipped_bits_are_found_and_named(copy: Path) -> None:
    """Without any seal: recipe, manifest and arrays prove themselves."""
    choose = random.Random(20261126)
    own = [n for n in names_of(copy) if n.startswith(("features.zarr", "manifest", "recipe"))]
    groups = [
        [n for n in own if "/features/c/" in n],
        [n for n in own if "/coords/" in n],
        [n for n in own if n.startswith("manifest")],
        ["recipe.json"],
        own,
    ]
    for number in range(50):
        name = choose.choice(groups[number % len(groups)])
        whole = (copy / name).read_bytes()
        damaged = bytearray(whole)
        at, bit = choose.randrange(len(whole)), choose.randrange(8)
        damaged[at] ^= 1 << bit
        (copy / name).write_bytes(damaged)
        found = structure(copy)
        assert named(found, name), f"{name} byte {at} bit {bit}: {[str(f) for f in found]}"
        (copy / name).write_bytes(whole)
    assert structure(copy) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["truncated", "emptied", "deleted"])
def test_truncated_emptied_and_deleted_files_are_found_and_named(copy: Path, fault: str) -> None:
    for name in names_of(copy):
        if name.startswith(("options", "pictures")) or (name == layout.INDEX and fault == "deleted"):
            continue  # inform only; a seal covers them
        whole = (copy / name).read_bytes()
        if fault == "deleted":
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(whole[: len(whole) // 2] if fault == "truncated" else b"")
        assert named(structure(copy), name), name
        (copy / name).write_bytes(whole)
    assert structure(copy) == []


def test_pixels_are_covered_too(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    chunk = path / "pixels.zarr/b/c/0/0/0/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:])
    rows = f"rows 0-{min(32, manifest.read_slides(path)[1]['n_patches']) - 1}"
    assert [str(f) for f in structure(path)] == [
        f"slide b {rows}: its crc32c differs (pixels.zarr/b/c/0/0/0/0)"
    ]
    chunk.unlink()
    assert [str(f) for f in structure(path)] == [
        f"slide b {rows}: is missing: pixels of committed patches (pixels.zarr/b/c/0/0/0/0)"
    ]


def test_findings_say_slide_seed_and_rows(copy: Path) -> None:
    (copy / "features.zarr/b/features/c/1/0/0").unlink()
    (found,) = structure(copy)
    rows = manifest.read_slides(copy)[1]["n_patches"]
    assert str(found) == (
        f"slide b seed 1 rows 0-{rows - 1}: is missing: committed features are lost (features.zarr/b/features/c/1/0/0)"
    )
    assert found.to_json()["rows"] == [0, rows - 1]


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (with_column("split", lambda v: ["val", *v[1:]]), "split 'val', expected 'train'"),
        (with_column("slide_id", lambda v: ["b", *v[1:]]), "slide_id 'b', expected 'a'"),
        (with_column("x_px0", lambda v: [7, *v[1:]]), "x_px0 differs from that of the patches"),
        (with_column("tissue", lambda v: [0.123, *v[1:]]), "tissue differs"),
        (with_column("status", lambda v: ["fine", *v[1:]]), "status 'fine'"),
        (with_column("view_crc32", lambda v: [None, *v[1:]]), "view_crc32 is empty where status is ok"),
        (with_column("row", lambda v: [999, *v[1:]]), "lists rows 0-999"),
        (with_column("seed", lambda v: [0] * len(v)), "lists seeds [0], its name says [0, 1, 2]"),
        (lambda t: t.take(list(range(t.num_rows))[::-1]), "rows are not in order of seed, then row"),
        (lambda t: t.slice(0, t.num_rows - 1), "its seeds list different rows"),
        (lambda t: t.filter(pa.compute.greater(t["row"], 0)), "1 view has no commit record"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself(
    copy: Path, edit: Callable[[pa.Table], pa.Table], problem: str
) -> None:
    edit_commit(copy, "a", edit)
    assert any(problem in str(finding) for finding in structure(copy)), [str(f) for f in structure(copy)]


def test_features_that_the_manifest_does_not_list_and_the_other_way_round(copy: Path) -> None:
    edit_commit(copy, "a", with_column("status", lambda v: ["bad_read", *v[1:]]))
    assert any("rows with features, although their status is bad_read" in str(f) for f in structure(copy))
    whole = features.open_features(copy, "b").read_block(0, 0).copy()
    whole[3] = np.nan
    features.write_block(copy, "b", 0, 0, whole)
    assert any(
        "slide b seed 0 rows 3: 1 committed rows without finite features" in str(f) for f in structure(copy)
    )


def test_a_record_that_lists_views_twice(copy: Path) -> None:
    commit = next(manifest.commits(copy, "a"))
    table = commit.read()
    commit.path.unlink()
    for seeds in (range(0, 2), range(1, 3)):
        inside = pa.compute.is_in(table["seed"], pa.array(list(seeds), pa.int16()))
        manifest.write_commit(copy, "a", 0, seeds, table.filter(inside))
    assert any("lists views that another record lists too" in str(f) for f in structure(copy))


def test_other_arrays_than_the_recipe_says(copy: Path) -> None:
    stored = recipe.load(copy)
    assert stored.teacher is not None
    recipe.save(copy, replace(stored, teacher=replace(stored.teacher, dim=25)))
    text = "\n".join(str(f) for f in structure(copy))
    assert re.search(
        r"slide a: shape \(3, \d+, 24\), expected \(3 or more seeds, \d+, 25\) \(features.zarr/a/features/",
        text,
    )


def test_an_unfinished_store(slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    extract([slides], tmp_path / "s", replace(TEACHER, limit=5, pixels=False), tile_options, Silent())
    found = structure(tmp_path / "s")
    assert found
    assert {f.kind for f in found} == {"missing"}
    assert structure(tmp_path / "s", partial=True) == []


def test_stray_files_links_and_slides_that_are_not_listed(copy: Path, tmp_path: Path) -> None:
    (copy / "features.zarr/a/notes.txt").write_text("x")
    (copy / "manifest/link").symlink_to("/etc/hostname")
    os.mkfifo(copy / "pipe")
    shutil.copytree(copy / "features.zarr/a", copy / "features.zarr/zz")
    text = "\n".join(str(f) for f in structure(copy))
    assert "features.zarr/a/notes.txt: is a stray file" in text
    assert "manifest/link: is a symbolic link" in text
    assert "pipe: is a pipe" in text
    assert "slide zz: does not list this slide as usable" in text


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        structure(tmp_path / "none")
    (tmp_path / "x").touch()
    with pytest.raises(StoreError, match="this is not a store"):
        structure(tmp_path)
