"""``store verify`` and ``store seal``: every fault is found, named, and crashes nothing."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import verify as verify_module
from pipeline.extract import extract
from pipeline.options import ExtractOptions, TileOptions, VerifyOptions
from pipeline.progress import Silent
from stores import arrays, features, manifest, pixels, recipe
from stores.errors import OptionError, RecipeMismatch, StoreError
from stores.findings import Finding
from stores.verify import verify_structure
from tests.conftest import TEACHER

SAME_TEACHER = VerifyOptions(teacher="tests.tiny:teacher", random_weights=0, threads=2)


def nothing(n: int, detail: str) -> None: ...


def structure(store: Path, partial: bool = False) -> list[Finding]:
    return verify_structure(store, partial, nothing).findings


def look(store: Path, options: VerifyOptions) -> verify_module.Verified:
    return verify_module.verify(store, options, Silent())


def names_of(store: Path) -> list[str]:
    return sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def small(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished store without its pixels, to be copied and damaged."""
    path = tmp_path_factory.mktemp("small") / "store"
    shutil.copytree(store, path)
    shutil.rmtree(path / "pixels.zarr")
    return path


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy"))


def named(found: list[Finding], name: str) -> bool:
    return any(finding.file == name or name.startswith(f"{finding.file}/") for finding in found)


def test_a_whole_store_has_no_findings(store: Path, small: Path) -> None:
    for path in (store, small):
        result = verify_structure(path, False, nothing)
        assert result.findings == []
        assert result.slides == 3
        assert result.views == manifest.count_views(path)["views"].to_numpy().sum()
        assert result.bytes == sum((path / name).stat().st_size for name in names_of(path))
        assert not result.sealed


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


@pytest.mark.parametrize("fault", ["truncated", "emptied", "deleted"])
def test_truncated_emptied_and_deleted_files_are_found_and_named(copy: Path, fault: str) -> None:
    for name in names_of(copy):
        if name.startswith(("options", "pictures")):
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


def edit_commit(store: Path, slide_id: str, edit: Callable[[pa.Table], pa.Table]) -> str:
    commit = next(manifest.commits(store, slide_id))
    manifest.write_commit(store, slide_id, commit.block, commit.seeds, edit(commit.read()))
    return str(commit.path.relative_to(store))


def with_column(name: str, change: Callable[[list[object]], list[object]]) -> Callable[[pa.Table], pa.Table]:
    def edit(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, name, pa.array(change(table[name].to_pylist()), table[name].type))

    return edit


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
        (lambda t: t.slice(0, t.num_rows - 1), "1 views have no commit record"),
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
    whole = features.open_features(copy, "b").read_block(0, 0)
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
    assert "pipe: is a device, pipe or socket" in text
    assert "slide zz: does not list this slide as usable" in text


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        structure(tmp_path / "none")
    (tmp_path / "x").touch()
    with pytest.raises(StoreError, match="this is not a store"):
        structure(tmp_path)


# sealing


@pytest.fixture
def sealed(copy: Path) -> Path:
    verify_module.seal_store(copy, False, Silent())
    return copy


def test_sha256sum_agrees(sealed: Path) -> None:
    for name in ("checksums.sha256", "checksums.sha256.digest"):
        done = subprocess.run(
            ["sha256sum", "-c", "--quiet", name], cwd=sealed, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    lines = (sealed / "checksums.sha256").read_text().splitlines()
    assert [line[66:] for line in lines] == [n for n in names_of(sealed) if not n.startswith("checksums")]
    digest = hashlib.sha256((sealed / "checksums.sha256").read_bytes()).hexdigest()
    assert (sealed / "checksums.sha256.digest").read_text().split()[0] == digest
    result = verify_structure(sealed, False, nothing)
    assert result.sealed
    assert result.findings == []
    assert verify_module.seal_store(sealed, False, Silent())[0] == digest


def test_after_sealing_every_change_of_any_file_is_named(sealed: Path) -> None:
    choose = random.Random(7)
    for name in names_of(sealed):
        whole = (sealed / name).read_bytes()
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        (sealed / name).write_bytes(damaged)
        found = [f for f in structure(sealed) if f.kind == "seal"]
        assert any(name in str(f) for f in found), name
        (sealed / name).unlink()
        assert any(name in str(f) for f in structure(sealed)), name
        (sealed / name).write_bytes(whole)
    (sealed / "manifest/extra.txt").touch()
    assert any(
        str(f) == "manifest/extra.txt: is not in the seal: added afterwards" for f in structure(sealed)
    )


def test_a_damaged_store_is_not_sealed_unless_asked(copy: Path) -> None:
    (copy / "features.zarr/b/features/c/1/0/0").unlink()
    with pytest.raises(StoreError, match=r"not sealed, 1 things are wrong: slide b seed 1 .* --as-it-is"):
        verify_module.seal_store(copy, False, Silent())
    assert not (copy / "checksums.sha256").exists()
    verify_module.seal_store(copy, True, Silent())
    assert {f.kind for f in structure(copy)} == {"features"}


@pytest.mark.parametrize("text", ["nonsense\n", "", "00  a\n", f"{'0' * 64}  a\n{'0' * 64}  a\n"])
def test_a_forged_list_of_checksums(sealed: Path, text: str) -> None:
    (sealed / "checksums.sha256").write_text(text)
    assert any("does not fit checksums.sha256.digest" in str(f) for f in structure(sealed))
    digest = hashlib.sha256(text.encode()).hexdigest()
    (sealed / "checksums.sha256.digest").write_text(f"{digest}  checksums.sha256\n")
    assert [f for f in structure(sealed) if f.kind == "seal"]


def test_names_that_do_not_fit_a_line_are_refused(copy: Path) -> None:
    (copy / "a\nb").touch()
    with pytest.raises(StoreError, match="a name with control characters"):
        verify_module.seal_store(copy, True, Silent())


def test_a_sealed_store_is_not_changed(sealed: Path, slides: Path, tile_options: TileOptions) -> None:
    with pytest.raises(OptionError, match="is sealed"):
        extract([slides], sealed, replace(TEACHER, seeds=4), tile_options, Silent())


# views and features


def test_views_and_features_agree(store: Path, slides: Path) -> None:
    result = look(store, replace(SAME_TEACHER, slides=(slides,), every=True))
    assert result.findings == []
    assert result.views_checked == result.features_checked == result.structure.views
    assert result.cosine_min is not None
    assert result.cosine_min > 0.99999
    sampled = look(store, VerifyOptions(views=True, sample=4, threads=2))
    assert sampled.findings == []
    assert 3 * 3 * 3 <= sampled.views_checked <= 3 * 3 * 5
    assert sampled.features_checked == 0


def test_a_dishonest_manifest_is_noticed(store: Path, tmp_path: Path) -> None:
    """Checksums in order, values not: what only a second look at the pixels tells."""
    path = Path(shutil.copytree(store, tmp_path / "s"))
    edit_commit(path, "a", with_column("view_crc32", lambda v: [5, *v[1:]]))
    edit_commit(path, "b", with_column("hflip", lambda v: [not x for x in v]))
    assert structure(path) == []
    text = "\n".join(str(f) for f in look(path, VerifyOptions(views=True, every=True, threads=2)).findings)
    assert "slide a seed 0 rows 0: 1 of" in text
    assert "another view than the teacher saw" in text
    assert "slide b seed 1" in text
    assert "the parameters are not those that the seed draws" in text


def test_other_pixels_than_the_slide_has(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    patches = pixels.open_pixels(path, "a").read_chunk(0).copy()
    patches[2, 0, 0] ^= 1
    pixels.write_rows(path, "a", 0, patches)
    (found,) = look(path, VerifyOptions(slides=(slides,), every=True, threads=2)).findings
    assert "slide a seed 0 rows 2: 1 of" in str(found)
    assert "the stored pixels are not the slide's" in str(found)


def test_features_of_another_teacher(store: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeMismatch, match="its weights_sha256 is"):
        look(store, replace(SAME_TEACHER, random_weights=1))
    path = Path(shutil.copytree(store, tmp_path / "s"))
    values = features.open_features(path, "c").read_block(2, 0)
    values[1] = values[1][::-1]
    features.write_block(path, "c", 2, 0, values)
    (found,) = look(path, replace(SAME_TEACHER, every=True)).findings
    assert "slide c seed 2 rows 1: 1 features are not the teacher's: cosine down to" in str(found)


def test_statistics_that_are_not_those_of_the_features(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    features.write_stats(path, "a", 1, 0, features.open_features(path, "a").read_block(0, 0))
    (found,) = look(path, VerifyOptions(views=True, threads=2)).findings
    assert "slide a seed 1" in str(found)
    assert "not the mean and variance of the features" in str(found)


def test_another_slide_file_under_the_name(store: Path, slides: Path, tmp_path: Path) -> None:
    shutil.copy(slides / "b.tiff", tmp_path / "a.tiff")
    found = look(store, VerifyOptions(slides=(tmp_path,), threads=2)).findings
    assert any("another file than the one that the teacher saw" in str(f) for f in found)


# repair


def damage(store: Path) -> list[str]:
    """One fault of each kind; returns the files."""
    flip = store / "features.zarr/a/features/c/2/0/0"
    flip.write_bytes(b"\x01" + flip.read_bytes()[1:])
    removed = [
        "features.zarr/b/features/c/0/0/0",
        "features.zarr/b/stats/c/1/0/0/0",
        "features.zarr/c/coords/c/0/0",
        "features.zarr/c/features/zarr.json",
        "features.zarr/zarr.json",
        "manifest/views/c/00000-s0000-0002.parquet",
        "manifest/patches/a.parquet",
        "pixels.zarr/a/c/0/0/0/0",
        "pixels.zarr/b/zarr.json",
    ]
    for name in removed:
        (store / name).unlink()
    return ["features.zarr/a/features/c/2/0/0", *removed]


def test_repair_restores_the_same_bytes(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    broken = damage(path)
    before = {name: (path / name).stat().st_mtime_ns for name in names_of(path) if name not in broken}
    result = look(path, replace(SAME_TEACHER, slides=(slides,), repair=True))
    assert result.findings == []
    assert {text.split()[1].rstrip(":") for text in result.repaired if text.startswith("slide")} == {
        "a",
        "b",
        "c",
    }
    assert "slide b block 0: statistics of seed 1 computed again" in result.repaired
    assert names_of(path) == names_of(store)
    changed = [n for n in names_of(store) if (path / n).read_bytes() != (store / n).read_bytes()]
    assert changed == []
    touched = {name for name, time in before.items() if (path / name).stat().st_mtime_ns != time}
    beside = ("stats/c/", "features.zarr/c/", "pixels.zarr/c/", "pixels.zarr/a/c/")  # of the same block
    assert all(any(part in name for part in beside) for name in touched), touched


def test_repair_mends_a_dishonest_record_too(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    name = edit_commit(path, "a", with_column("view_crc32", lambda v: [5, *v[1:]]))
    result = look(path, replace(SAME_TEACHER, slides=(slides,), repair=True, every=True))
    assert result.findings == []
    assert (path / name).read_bytes() == (store / name).read_bytes()


def test_what_cannot_be_repaired_says_so(store: Path, slides: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    options = replace(SAME_TEACHER, slides=(slides,), repair=True)
    with pytest.raises(OptionError, match="--repair: needs --slides and --teacher"):
        look(path, replace(options, slides=()))
    (path / "features.zarr/b/features/c/0/0/0").unlink()
    with pytest.raises(OptionError, match="no file of slide b"):
        look(path, replace(options, slides=(slides / "a.tiff",)))
    (path / "recipe.json").write_text("{}")
    with pytest.raises(
        StoreError, match=r"recipe.json: .* cannot be computed again; restore this file from a copy"
    ):
        look(path, options)


def test_extraction_fills_a_gap_among_the_seeds(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """A record of the first seeds that was lost is noticed although later seeds are there."""
    path = tmp_path / "s"
    options = ExtractOptions(teacher="tests.tiny:teacher", random_weights=0, seeds=1, threads=2)
    extract([slides], path, options, tile_options, Silent())
    extract([slides], path, replace(options, seeds=3), tile_options, Silent())
    whole = manifest.commit_path(path, "a", 0, range(0, 1))
    before = whole.read_bytes()
    whole.unlink()
    assert any(f.kind == "missing" and f.slide_id == "a" for f in structure(path))
    extract([slides], path, replace(options, seeds=3), tile_options, Silent())
    assert whole.read_bytes() == before
    assert structure(path) == []


def test_arrays_that_were_begun_and_not_finished(
    slides: Path, store: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """A kill while a slide's arrays are being made leaves some of them; the next run makes them again."""
    path = Path(shutil.copytree(store, tmp_path / "s"))
    shutil.rmtree(path / "features.zarr/b/features")
    shutil.rmtree(path / "manifest/views/b")
    assert any(f.slide_id == "b" for f in structure(path))
    extract([slides], path, TEACHER, tile_options, Silent())
    assert structure(path) == []


def test_a_chunk_decoder_of_its_own_agrees_with_zarr(store: Path) -> None:
    for name in ("features.zarr/a/features", "pixels.zarr/a"):
        spec = arrays.read_metadata(store, name)
        index = (0,) * len(spec.shape)
        chunk = arrays.read_chunk(store, name, spec, index)
        assert chunk is not None
        array = arrays.open_checked(store, name, len(spec.shape), str(spec.dtype))
        rows = spec.shape[-2] if name.endswith("features") else spec.shape[0]
        expected = array[:1, :rows] if name.endswith("features") else array[: spec.chunks[0]]
        got = chunk[:, :rows] if name.endswith("features") else chunk[:rows]
        np.testing.assert_array_equal(got, expected)
    assert json.loads((store / "features.zarr/a/features/zarr.json").read_text())["fill_value"] == "NaN"
