"""Stage one after another store: what is taken over, what is refused, and the proof that the views are the same."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline as g2l_api
from pipeline.slides.openslide_reader import OpenSlidePatches
from pipeline.tile.options import TileOptions
from stores.errors import OptionError, ReadError, StoreError, ViewMismatch
from stores.format import manifest, recipe
from stores.format.layout import read_options
from tests.tools.commands import g2l, one_error
from tests.tools.extract import contents
from tests.tools.kill import kill_at_random, like_job
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
    with pytest.raises(
        ViewMismatch, match=r"slide b row 1 \(\d+,\d+\) seed 2: .* crc32 [0-9a-f]{8}, .* has [0-9a-f]{8}"
    ):
        g2l_api.extract([slides], family, like=other, **OTHER)


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
        pytest.param(("--workers", 2), id="workers", marks=[pytest.mark.slow, pytest.mark.cluster]),
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


@pytest.mark.slow
def test_killed_and_continued(slides: Path, store: Path, family: Path, tmp_path: Path) -> None:
    path = tmp_path / "b"
    args = (slides, path, store, OTHER)
    assert kill_at_random(like_job, args, 4, 0, path, 0.3, lambda: None, changes=3)
    g2l_api.extract([slides], path, like=store, **OTHER)
    assert of_store(path) == of_store(family)
