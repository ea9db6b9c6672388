"""Stage one after another store: what is taken over, what is refused, and the proof that the views are the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline as g2l_api
from pipeline.slides.openslide_reader import OpenSlidePatches
from pipeline.tile.options import TileOptions
from stores.errors import CorruptStore, OptionError, ReadError, StoreError, ViewMismatch
from stores.format import manifest, recipe
from stores.format.layout import read_options
from tests.tools.commands import g2l, one_error
from tests.tools.extract import contents
from tests.tools.kill import kill_at_random, like_job
from tests.tools.settings import VIT
from tests.tools.tiles import write_tiles
from tests.tools.verify import structure

OTHER: dict[str, Any] = {"teacher": "tests.tools.tiny:student", "random_weights": 1, "threads": 2}
"""Another teacher, of 12-d features."""


@pytest.fixture(scope="module")
def family(slides: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store like the finished one."""
    path = tmp_path_factory.mktemp("like") / "b"
    result = g2l_api.extract([slides], path, like=store, **OTHER)
    assert (result.views, result.compared) == (result.to_json()["views"],) * 2
    return path


def of_store(store: Path) -> dict[str, str]:
    """What a store consists of: logs and options say who made it, and from what."""
    return {n: d for n, d in contents(store).items() if not n.startswith(("logs/", "options/"))}


def of_views(store: Path) -> list[Any]:
    return [commit.read().to_pylist() for commit in manifest.commits(store)]


def test_it_has_the_views_of_the_other(store: Path, family: Path) -> None:
    assert manifest.read_slides(family) == manifest.read_slides(store)
    assert of_views(family) == of_views(store)
    mine, others = recipe.load_complete(family), recipe.load_complete(store)
    assert (mine.patch, mine.policy) == (others.patch, others.policy)
    assert mine.teacher.dim == 12
    assert read_options(family, "extract-teacher")["like"] == {"name": "store", "recipe": others.digest()}
    assert structure(family) == []


def test_it_is_the_store_of_a_run_of_its_own(
    slides: Path, tile_options: TileOptions, family: Path, tmp_path: Path
) -> None:
    g2l_api.extract([slides], tmp_path / "s", seeds=3, slides_csv=tile_options.slides_csv, **OTHER)
    assert of_store(tmp_path / "s") == of_store(family)


def test_again_compares_what_is_there(slides: Path, store: Path, family: Path, tmp_path: Path) -> None:
    again = g2l_api.extract([slides], family, like=store, **OTHER)
    assert (again.views, again.compared) == (0, again.views_before)
    other = changed(store, tmp_path / "a", "b", 1)
    begun = Path(shutil.copytree(family, tmp_path / "begun"))
    for commit in list(manifest.commits(begun, "c")):
        commit.path.unlink()
    with pytest.raises(
        ViewMismatch, match=r"slide b row 1 \(\d+,\d+\) seed 2: .* crc32 [0-9a-f]{8}, .* has [0-9a-f]{8}"
    ):
        g2l_api.extract([slides], begun, like=other, **OTHER)
    assert not list(manifest.commits(begun, "c"))  # it is found before anything is computed


def changed(store: Path, target: Path, slide_id: str, at: int) -> Path:
    """A copy of a store with another checksum of one view, of seed 2."""
    shutil.copytree(store, target)
    (commit,) = manifest.commits(target, slide_id)
    table = commit.read()
    values = table["view_crc32"].to_pylist()
    values[2 * len(values) // 3 + at] ^= 1
    index = table.column_names.index("view_crc32")
    table = table.set_column(index, "view_crc32", [np.array(values, np.uint32)])
    manifest.write_commit(target, slide_id, commit.block, commit.seeds, table)
    return target


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param((), id="in process"),
        pytest.param(("--workers", 2), id="workers", marks=[pytest.mark.cluster, pytest.mark.long]),
    ],
)
def test_another_view_ends_the_run_in_one_line(
    slides: Path, store: Path, tmp_path: Path, workers: tuple[object, ...]
) -> None:
    other, made = changed(store, tmp_path / "a", "b", 1), tmp_path / "b"
    teacher = ["--teacher", OTHER["teacher"], "--random-weights", 1, "--threads", 1]
    result = g2l("extract-teacher", slides, "--store", made, "--like", other, *teacher, *workers)
    one_error(result, "slide b row 1 (")
    (row,) = [
        r
        for c in manifest.commits(other, "b")
        for r in c.read().to_pylist()
        if (r["row"], r["seed"]) == (1, 2)
    ]
    assert f"{other} has {row['view_crc32']:08x}" in result.stderr
    assert f"has crc32 {row['view_crc32'] ^ 1:08x}" in result.stderr
    assert next(manifest.commits(made, "b"), None) is None
    assert {found.kind for found in structure(made)} <= {"missing"}


def test_other_pixels_are_found_as_they_are_rendered(
    slides: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_read = OpenSlidePatches.read
    monkeypatch.setattr(OpenSlidePatches, "read", lambda *args: true_read(*args) ^ 1)
    with pytest.raises(ViewMismatch, match=r"slide [abc] row 0 "):
        g2l_api.extract([slides], tmp_path / "b", like=store, **OTHER)
    assert not list(manifest.commits(tmp_path / "b"))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"seeds": 4}, r"--seeds 4: .*, which has 3; leave it out"),
        ({"policy": "none"}, r"--policy none: .* which has .* instead of"),
        ({"mpp": 1.0}, r"--mpp 1\.0: .* which has 0\.5"),
        ({"val": 0.2}, r"--val 0\.2: .* which has 0\.1"),
        ({"slides_csv": "x.csv"}, r"--slides-csv x\.csv: .* which has its own"),
    ],
)
def test_options_that_contradict(
    slides: Path, store: Path, tmp_path: Path, given: dict[str, Any], match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        g2l_api.extract([slides], tmp_path / "b", like=store, **OTHER, **given)
    assert not (tmp_path / "b").exists()


def test_options_that_agree(slides: Path, store: Path, tmp_path: Path) -> None:
    agreeing: dict[str, Any] = {"seeds": 3, "policy": "g2l", "mpp": 0.5, "patch": 256, "limit": 1}
    assert g2l_api.extract([slides], tmp_path / "b", like=store, **OTHER, **agreeing).compared == 3


def test_what_is_compared_is_counted_once(
    slides: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that was begun with --limit is done again, and a patch may be unreadable here that was not there."""
    assert g2l_api.extract([slides], tmp_path / "b", like=store, limit=1, **OTHER).compared == 3
    true_read, bad = OpenSlidePatches.read, manifest.read_patches(store, "a").coords[1].tolist()

    def read(reader: OpenSlidePatches, x_px0: int, y_px0: int) -> Any:
        if reader._path.name == "a.tiff" and [x_px0, y_px0] == bad:
            raise ReadError("damaged")
        return true_read(reader, x_px0, y_px0)

    monkeypatch.setattr(OpenSlidePatches, "read", read)
    done = g2l_api.extract([slides], tmp_path / "b", like=store, **OTHER)
    assert len(done.bad_reads) == 1
    assert done.compared == done.to_json()["views"] == sum(len(of) for of in of_views(store)) - 3
    assert "; 0 views are not there" in "\n".join(done.lines())


def test_continued_without_it_says_so(slides: Path, family: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(family, tmp_path / "b"))
    teacher = ["--teacher", OTHER["teacher"], "--random-weights", 1, "--threads", 1, "--seeds", 3]
    result = g2l("extract-teacher", slides, "--store", path, *teacher)
    assert result.exit_code == 0, result.output
    assert "begun with --like store, continued without: no view is compared" in result.stderr


def test_slides_that_are_missing_or_too_many_are_named(slides: Path, store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slides / "a.tiff", folder / "a.tiff")
    shutil.copy(slides / "b.tiff", folder / "other.tiff")
    teacher = ["--teacher", OTHER["teacher"], "--random-weights", 1, "--threads", 1]
    result = g2l("extract-teacher", folder, "--store", tmp_path / "b", "--like", store, *teacher)
    assert result.exit_code == 3, result.output
    assert "left out, because the store of --like does not have it: other" in result.stderr
    assert "b: not found among the inputs" in result.stdout
    assert "c: not found among the inputs" in result.stdout
    rest = g2l("extract-teacher", slides, "--store", tmp_path / "b", "--like", store, *teacher)
    assert rest.exit_code == 0, rest.output
    assert of_views(tmp_path / "b") == of_views(store)


def test_another_store_is_refused(slides: Path, store: Path, family: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(family, tmp_path / "b"))
    rows = manifest.read_slides(other)
    manifest.write_slides(other, [row | {"split": "test"} for row in rows])
    with pytest.raises(StoreError, match=r"slide a: split is 'test' in .*, and|slide a: split is 'test' in"):
        g2l_api.extract([slides], other, like=store, **OTHER)
    tiled = tmp_path / "tiled"
    g2l_api.tile([slides], tiled)
    with pytest.raises(StoreError, match="has no teacher features yet"):
        g2l_api.extract([slides], tmp_path / "c", like=tiled, **OTHER)
    (tmp_path / "link").symlink_to(family)
    for itself in (family, family / ".." / family.name, tmp_path / "link"):
        with pytest.raises(OptionError, match="is the store itself"):
            g2l_api.extract([slides], family, like=itself, **OTHER)


def test_tiles_in_whatever_group(tmp_path: Path) -> None:
    """A store of tiles is made again, and is a family with one that has some of the tiles in groups of its own."""
    tree, some = tmp_path / "tiles", tmp_path / "some"
    write_tiles(tree, range(12))
    write_tiles(some, range(4, 12), labels=1)
    of_tiles: dict[str, Any] = {"patch": 64, "tiles": True, "seeds": 2, "val": 0.0}
    first: dict[str, Any] = {
        "teacher": "tests.tools.tiny:teacher_of_64_px",
        "random_weights": 0,
        "threads": 1,
    }
    other: dict[str, Any] = {
        "teacher": "tests.tools.tiny:student_of_64_px",
        "random_weights": 1,
        "threads": 1,
    }
    a, b, c = (tmp_path / name for name in "abc")
    g2l_api.extract([tree], a, **of_tiles, **first)
    assert g2l_api.extract([tree], b, like=a, **other).compared == 24
    assert of_views(b) == of_views(a)
    g2l_api.extract([some], c, **of_tiles, **other)
    found = g2l_api.family([a, b, c])
    assert found.is_family
    assert (found.patches, found.views, found.compared) == (8, 16, 24)
    assert [(m.patches, m.lacks_slides, m.lacks_patches) for m in found.stores] == [(12, [], 0)] * 2 + [
        (8, [], 4)
    ]


def test_with_tokens_and_attention_of_its_own(slides: Path, store: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "teacher": VIT,
        "random_weights": 0,
        "threads": 2,
        "tokens": 3,
        "attention": True,
    }
    done = g2l_api.extract([slides], tmp_path / "b", like=store, limit=1, **asked)
    assert done.compared == 3
    assert g2l_api.extract([slides], tmp_path / "b", like=store, **asked).compared == 267
    assert of_views(tmp_path / "b") == of_views(store)
    assert structure(tmp_path / "b") == []


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "manifest/views/b/00000-s0000-0002.parquet",
            "views/b/00000-s0000-0002.parquet: its checksum differs",
        ),
        ("manifest/patches/b.parquet", "patches/b.parquet: its checksum differs"),
        ("manifest/slides.parquet", "slides.parquet: its checksum differs"),
    ],
)
def test_damage_of_the_other_is_named(
    slides: Path, store: Path, tmp_path: Path, file: str, said: str
) -> None:
    other = Path(shutil.copytree(store, tmp_path / "a"))
    flip(other / file)
    teacher = ["--teacher", OTHER["teacher"], "--random-weights", 1, "--threads", 1]
    one_error(g2l("extract-teacher", slides, "--store", tmp_path / "b", "--like", other, *teacher), said)
    assert not list(manifest.commits(tmp_path / "b", "b"))


@pytest.mark.parametrize("change", ["moved", "more"])
def test_patches_that_contradict_the_other_tables(
    slides: Path, store: Path, tmp_path: Path, change: str
) -> None:
    other = Path(shutil.copytree(store, tmp_path / "a"))
    patches = manifest.read_patches(other, "b")
    x_px0, y_px0 = patches.x_px0.copy(), patches.y_px0.copy()
    x_px0[0] += 1 << 20 if change == "moved" else 256
    manifest.write_patches(other, "b", x_px0, y_px0, patches.tissue)
    with pytest.raises(CorruptStore, match=r"patches/b\.parquet: |views/b/.*: x_px0 differs"):
        g2l_api.extract([slides], tmp_path / "b", like=other, **OTHER)
    assert not list(manifest.commits(tmp_path / "b", "b"))
    assert change == "more" or not manifest.patches_path(tmp_path / "b", "b").exists()


def test_an_export_under_pseudonyms_is_refused(slides: Path, store: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "a"))
    keyed = [
        row | {"fingerprint": f"keyed-{letter * 24}"}
        for row, letter in zip(manifest.read_slides(other), "bcd", strict=True)
    ]
    manifest.write_slides(other, keyed)
    with pytest.raises(OptionError, match="an export under pseudonyms, to which no slide can be matched"):
        g2l_api.extract([slides], tmp_path / "b", like=other, **OTHER)


def test_what_another_run_left_is_not_taken_for_a_copy(slides: Path, store: Path, tmp_path: Path) -> None:
    """A killed run leaves patches without a recipe, perhaps those of another store; they may have the same size."""
    patches = manifest.read_patches(store, "a")
    tissue = patches.tissue.copy()
    tissue[[0, 1]] = tissue[[1, 0]]
    assert tissue[0] != tissue[1]
    manifest.write_patches(tmp_path / "b", "a", patches.x_px0, patches.y_px0, tissue)
    left, right = (manifest.patches_path(at, "a").stat().st_size for at in (tmp_path / "b", store))
    assert left == right
    with pytest.raises(StoreError, match=r"slide a: its patches in .* are not those in --like"):
        g2l_api.extract([slides], tmp_path / "b", like=store, **OTHER)


@pytest.mark.parametrize(
    ("name", "value"), [("mask_frame", "x\x1b[31m"), ("max_patches", "\x1b"), ("val", [1]), ("slide_mpp", 5)]
)
def test_options_of_the_other_that_are_none(
    slides: Path, store: Path, tmp_path: Path, name: str, value: object
) -> None:
    other = Path(shutil.copytree(store, tmp_path / "a"))
    path = other / "options" / "tile.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    teacher = ["--teacher", OTHER["teacher"], "--random-weights", 1, "--threads", 1]
    result = g2l("extract-teacher", slides, "--store", tmp_path / "b", "--like", other, *teacher)
    one_error(result, f"{other}/options/tile.json: ")
    assert "\x1b" not in result.output
    assert not (tmp_path / "b").exists()


def test_the_other_has_grown_since(slides: Path, store: Path, small: Path, tmp_path: Path) -> None:
    """A slide and a seed more, a new column, and a file that has another name now."""
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(slides / "a.tiff", one)
    a, b = Path(shutil.copytree(small, tmp_path / "store")), tmp_path / "b"
    rows = manifest.read_slides(a)
    manifest.write_slides(a, rows[:1])
    for name in "bc":
        shutil.move(a / "manifest" / "views" / name, tmp_path / f"views-{name}")
    (commit,) = manifest.commits(a, "a")
    table = commit.read()
    commit.path.unlink()
    manifest.write_commit(a, "a", 0, range(2), table.slice(0, 2 * rows[0]["n_patches"]))
    assert g2l_api.extract([one], b, like=a, **OTHER).compared == 2 * rows[0]["n_patches"]
    manifest.write_slides(a, [row | {"grade": "x", "file_name": f"{row['slide_id']}.tif"} for row in rows])
    manifest.write_commit(a, "a", 0, range(2, 3), table.slice(2 * rows[0]["n_patches"]))
    for name in "bc":
        shutil.move(tmp_path / f"views-{name}", a / "manifest" / "views" / name)
    done = g2l_api.extract([slides], b, like=a, **OTHER)
    assert done.compared == done.to_json()["views"] == sum(len(of) for of in of_views(store))
    assert manifest.read_slides(b) == manifest.read_slides(a)
    assert structure(b) == []


def test_a_store_that_was_begun_without_is_recorded_as_like(
    slides: Path, store: Path, family: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(family, tmp_path / "b"))
    options = path / "options" / "extract-teacher.json"
    said = json.loads(options.read_text())
    like = said.pop("like")
    options.write_text(json.dumps(said))
    g2l_api.extract([slides], path, like=store, **OTHER)
    assert json.loads(options.read_text()) == said | {"like": like}


@pytest.mark.slow
def test_killed_and_continued(slides: Path, store: Path, family: Path, tmp_path: Path) -> None:
    path = tmp_path / "b"
    args = (slides, path, store, OTHER)
    assert kill_at_random(like_job, args, 4, 0, path, 0.3, lambda: None, changes=3)
    g2l_api.extract([slides], path, like=store, **OTHER)
    assert of_store(path) == of_store(family)
