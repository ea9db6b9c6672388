"""Several teachers that see the same views: rendered once, and each store is that of a run of its own."""

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline as g2l_api
from pipeline.extract import result as results
from pipeline.slides.openslide_reader import OpenSlidePatches
from pipeline.tile.options import TileOptions
from pipeline.views import patch_views
from stores.errors import DiskFull, OptionError, RecipeMismatch, StoreError, ViewMismatch
from stores.format import manifest, recipe
from stores.format.layout import read_options
from stores.io import files
from stores.io.location import LOGS
from tests.tools.commands import g2l, one_error
from tests.tools.kill import kill_at_random, together_job
from tests.tools.settings import VIT
from tests.tools.tiles import write_tiles
from tests.tools.verify import structure

FIRST: dict[str, Any] = {"teacher": "tests.tools.tiny:teacher", "random_weights": 0, "pixels": True}
"""The teacher of the finished store."""
SECOND: dict[str, Any] = {
    "teacher": VIT,
    "random_weights": 0,
    "tokens": 5,
    "attention": True,
    "batch_size": 7,
}
FOR_ALL: dict[str, Any] = {"threads": 2, "seeds": 3}


def of_store(store: Path) -> dict[str, str]:
    """The digest of each file, options and pictures included; logs say what a run did."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] != LOGS
    }


def together(slides: Path, a: Path, b: Path, **options: Any) -> Any:
    return g2l_api.extract([slides], {a: FIRST, b: SECOND}, **FOR_ALL | options)


class Counted:
    """How often each patch was read, and each view rendered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: Counter[Any] = Counter()
        self.rendered = 0
        true_read, true_render = OpenSlidePatches.read, patch_views.render

        def read(reader: OpenSlidePatches, x_px0: int, y_px0: int) -> Any:
            self.read[reader._path.name, x_px0, y_px0] += 1
            return true_read(reader, x_px0, y_px0)

        def render(*args: Any) -> Any:
            self.rendered += 1
            return true_render(*args)

        monkeypatch.setattr(OpenSlidePatches, "read", read)
        monkeypatch.setattr(patch_views, "render", render)


@pytest.fixture(scope="module")
def apart(
    slides: Path, store: Path, tile_options: TileOptions, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two stores, each of a run of its own: the second is like the first."""
    folder = tmp_path_factory.mktemp("apart")
    a = Path(shutil.copytree(store, folder / "a"))
    g2l_api.extract([slides], folder / "b", like=a, **FOR_ALL | SECOND)
    return a, folder / "b"


def test_views_are_rendered_once_and_both_stores_are_those_of_two_runs(
    slides: Path,
    tile_options: TileOptions,
    apart: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch)
    a, b = tmp_path / "a", tmp_path / "b"
    done = together(slides, a, b, slides_csv=tile_options.slides_csv)
    n_patches = sum(row["n_patches"] for row in manifest.read_slides(a))
    assert set(counted.read.values()) == {1}
    assert (len(counted.read), counted.rendered, done.rendered) == (n_patches, 3 * n_patches, 3 * n_patches)
    assert [(one.views, one.views_before) for one in done.stores] == [(3 * n_patches, 0)] * 2
    assert (of_store(a), of_store(b)) == (of_store(apart[0]), of_store(apart[1]))
    assert structure(a) == structure(b) == []
    assert read_options(b, "extract-teacher")["like"] == {"name": "a", "recipe": recipe.load(a).digest()}
    assert "like" not in read_options(a, "extract-teacher")
    found = g2l_api.family([a, b])
    assert found.is_family
    assert found.compared == 3 * n_patches


def test_only_what_is_missing_is_rendered_and_encoded(
    slides: Path, apart: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One store is complete, the other lacks a slide, and of another slide the seeds in the middle."""
    a, b = (Path(shutil.copytree(path, tmp_path / path.name)) for path in apart)
    for commit in manifest.commits(b, "c"):
        commit.path.unlink()
    (commit,) = manifest.commits(b, "b")
    table = commit.read()
    n_patches = {row["slide_id"]: row["n_patches"] for row in manifest.read_slides(b)}
    commit.path.unlink()
    for seed in (0, 2):
        of_seed = table.slice(seed * n_patches["b"], n_patches["b"])
        manifest.write_commit(b, "b", 0, range(seed, seed + 1), of_seed)
    counted = Counted(monkeypatch)
    done = together(slides, a, b)
    assert counted.rendered == done.rendered == n_patches["b"] + 3 * n_patches["c"]
    assert done.stores[0].views == 0
    assert done.stores[1].views == done.rendered
    views = [sorted(map(str, c.read().to_pylist())) for c in manifest.commits(b, "c")]
    assert views == [sorted(map(str, c.read().to_pylist())) for c in manifest.commits(apart[1], "c")]
    same = {n: d for n, d in of_store(b).items() if not n.startswith(("manifest/views/b/", "manifest/index"))}
    assert same == {
        n: d
        for n, d in of_store(apart[1]).items()
        if not n.startswith(("manifest/views/b/", "manifest/index"))
    }
    assert of_store(a) == of_store(apart[0])


def test_each_lacks_something_else(
    slides: Path, apart: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (Path(shutil.copytree(path, tmp_path / path.name)) for path in apart)
    for commit in [*manifest.commits(a, "a"), *manifest.commits(b, "b")]:
        commit.path.unlink()
    (row_a, row_b) = [row["n_patches"] for row in manifest.read_slides(a)][:2]
    counted = Counted(monkeypatch)
    done = together(slides, a, b)
    assert [one.views for one in done.stores] == [3 * row_a, 3 * row_b]
    assert counted.rendered == done.rendered == 3 * (row_a + row_b)
    assert (of_store(a), of_store(b)) == (of_store(apart[0]), of_store(apart[1]))


def test_more_seeds_later_and_a_limit(slides: Path, store: Path, tmp_path: Path) -> None:
    a, b, alone = (tmp_path / name for name in ("a", "b", "alone"))
    together(slides, a, b, seeds=2, limit=3)
    done = together(slides, a, b, seeds=3, limit=40)
    assert [one.views_before for one in done.stores] == [0, 0]  # the block was begun, and is done again
    g2l_api.extract([slides], alone, **FIRST | FOR_ALL | {"seeds": 2, "limit": 3})
    g2l_api.extract([slides], alone, **FIRST | FOR_ALL | {"limit": 40})
    assert of_store(a) == of_store(alone)
    assert {found.kind for found in structure(b)} == {"missing"}


def test_three_stores_like_another_one(
    slides: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a store holds is asked once of each, however often it is said."""
    asked: list[Path] = []
    true_info = results.store_info

    def info(path: Path) -> dict[str, Any]:
        asked.append(path)
        return true_info(path)

    monkeypatch.setattr(results, "store_info", info)
    small = {"teacher": "tests.tools.tiny:student", "random_weights": 1}
    stores = {tmp_path / "b": SECOND, tmp_path / "c": small, tmp_path / "d": {**small, "random_weights": 2}}
    done = g2l_api.extract([slides], stores, like=store, threads=2, limit=5)
    assert [one.compared for one in done.stores] == [15] * 3
    for path in stores:
        assert read_options(path, "extract-teacher")["like"]["name"] == "store"
    said = "\n".join(done.lines())
    assert "15 views rendered, and encoded 45 times by 3 teachers" in said
    assert all(f"15 views in {path} (15 new" in said for path in stores)
    assert [one["store"] for one in done.to_json()["stores"]] == [str(path) for path in stores]
    assert asked == [*stores]


def test_a_view_that_another_of_the_stores_has_otherwise(
    slides: Path, apart: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (Path(shutil.copytree(path, tmp_path / path.name)) for path in apart)
    (commit,) = manifest.commits(b, "b")
    commit.path.unlink()
    true_read = OpenSlidePatches.read
    monkeypatch.setattr(OpenSlidePatches, "read", lambda *args: true_read(*args) ^ 1)
    with pytest.raises(ViewMismatch, match=rf"slide b row 0 .* {a} has [0-9a-f]{{8}}.* without that store"):
        together(slides, a, b)
    table = commit_of(apart[1]).read()
    index = table.column_names.index("view_crc32")
    other = np.array(table["view_crc32"].to_pylist(), np.uint32) ^ 1
    manifest.write_commit(b, "b", 0, range(3), table.set_column(index, "view_crc32", [other]))
    with pytest.raises(ViewMismatch, match=rf"slide b row 0 .* {a} has "):  # before anything is computed
        together(slides, a, b)


def commit_of(store: Path) -> manifest.Commit:
    (commit,) = manifest.commits(store, "b")
    return commit


def test_one_teacher_that_fails_leaves_the_other_alone(
    slides: Path, apart: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried once more, alone: one block succeeds then, and another fails again."""
    from pipeline.extract import block as blocks

    true_commit = blocks.StoreSink.commit
    tried: Counter[tuple[str, str]] = Counter()
    a, b = (Path(shutil.copytree(path, tmp_path / path.name)) for path in apart)
    for path in (a, b):
        for slide_id in "ab":
            for commit in manifest.commits(path, slide_id):
                commit.path.unlink()

    def fail(sink: blocks.StoreSink, block: Any) -> None:
        slide_id = sink.task.source.slide_id
        tried[sink.store.name, slide_id] += 1
        if sink.store == b and (slide_id == "a" or tried["b", slide_id] == 1):
            raise RuntimeError("out of memory")
        true_commit(sink, block)

    with monkeypatch.context() as patch:
        patch.setattr(blocks.StoreSink, "commit", fail)
        done = together(slides, a, b)
    assert tried == {("a", "a"): 1, ("a", "b"): 1, ("b", "a"): 2, ("b", "b"): 2}
    assert of_store(a) == of_store(apart[0])
    assert not done.stores[0].some_failed
    assert done.stores[1].failed_blocks == {"a block 0 seeds 0-2": "RuntimeError: out of memory"}
    said = done.lines()
    assert said.index(f"{b}:") < said.index("  a block 0 seeds 0-2: RuntimeError: out of memory")
    assert done.some_failed
    again = together(slides, a, b)
    assert not again.some_failed
    assert again.stores[0].views == 0
    assert of_store(b) == of_store(apart[1])


def test_bad_reads_are_told_once(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    from stores.errors import ReadError

    true_read, bad = OpenSlidePatches.read, manifest.read_patches(store, "a").coords[1].tolist()

    def read(reader: OpenSlidePatches, x_px0: int, y_px0: int) -> Any:
        if reader._path.name == "a.tiff" and [x_px0, y_px0] == bad:
            raise ReadError("damaged")
        return true_read(reader, x_px0, y_px0)

    monkeypatch.setattr(OpenSlidePatches, "read", read)
    done = together(slides, tmp_path / "a", tmp_path / "b", limit=3)
    assert [one.bad_reads for one in done.stores] == [["a row 1: damaged"]] * 2
    assert done.lines().count("  a row 1: damaged") == 1
    for path in (tmp_path / "a", tmp_path / "b"):
        assert {found.kind for found in structure(path)} == {"missing"}


@pytest.mark.parametrize(
    ("stores", "match"),
    [
        ({"a": FIRST, "b/../a": SECOND}, "given twice; each teacher has a store of its own"),
        ({"a": FIRST, "a/b": SECOND}, "lies in .*, a store too"),
        ({"b/../a/b": SECOND, "a": FIRST}, "lies in .*, a store too"),
        ({"a": FIRST, "b": {**SECOND, "seeds": 2}}, "seeds holds for all teachers"),
        ({"a": FIRST, "b": {}}, r"--teacher \(missing\)"),
        ({"a": FIRST, "b": {**SECOND, "token": 2}}, "no option 'token'; did you mean tokens"),
        (
            {"a": FIRST, "b": {"teacher": "tests.tools.tiny:teacher_of_64_px", "random_weights": 0}},
            r"--policy g2l: views of 224 px, but .* takes 64 px; run it apart, or name it first",
        ),
        (
            {"a": {"teacher": "tests.tools.tiny:teacher_of_64_px", "random_weights": 0}, "b": FIRST},
            r"--policy g2l: views of 64 px, but .* takes 224 px; run it apart, or name it first",
        ),
    ],
)
def test_what_cannot_be_done_together(
    slides: Path, tmp_path: Path, stores: dict[str, dict[str, Any]], match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        g2l_api.extract([slides], {tmp_path / name: own for name, own in stores.items()}, threads=1)
    assert not any(tmp_path.iterdir())


def test_stores_that_are_no_family(slides: Path, apart: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = (Path(shutil.copytree(path, tmp_path / path.name)) for path in apart)
    g2l_api.tile([slides], tmp_path / "other", mpp=1.0)
    with pytest.raises(RecipeMismatch, match=r"recipe\.patch\.mpp"):
        together(slides, a, tmp_path / "other")
    manifest.write_slides(b, [row | {"split": "test"} for row in manifest.read_slides(a)])
    with pytest.raises(StoreError, match=rf"slide a: split is 'test' in {b} and 'train' in {a}"):
        together(slides, a, b)


def test_free_space_is_that_of_all_stores_together(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them alone would fit."""
    n_patches = 3
    alone = n_patches * 3 * (2 * 24 + 44) + n_patches * 3 * 256**2
    monkeypatch.setattr(files, "MARGIN_BYTES", 0)
    monkeypatch.setattr(files, "free_bytes", lambda path: alone)
    with pytest.raises(DiskFull, match=rf"--store {tmp_path / 'a'}, {tmp_path / 'b'}: 18 views need "):
        together(slides, tmp_path / "a", tmp_path / "b", limit=n_patches)


def test_the_command(slides: Path, store: Path, tmp_path: Path) -> None:
    """Options hold for all teachers; ``--for`` gives one its own."""
    a, b, config = tmp_path / "a", tmp_path / "b", tmp_path / "run.yaml"
    teachers = ["--teacher", FIRST["teacher"], "--store", a, "--teacher", VIT, "--store", b]
    own = ["--for", "b:tokens=5", "--for", "b:attention", "--for", "b:random-weights=3"]
    shared = ["--random-weights", 0, "--threads", 1, "--limit", 1, "--seeds", 2]
    result = g2l("extract-teacher", slides, *teachers, *own, *shared)
    assert result.exit_code == 0, result.output
    assert f"2 views in {a} (2 new" in result.stdout
    assert f"2 views in {b} (2 new" in result.stdout
    assert "2 views rendered, and encoded 4 times by 2 teachers" in result.stdout
    assert f"into {a}" in result.stderr
    assert f"into {b}" in result.stderr
    for path in (a, b):
        assert f"2 views in {path}" in (path / "logs" / "extract-teacher-summary.txt").read_text()
        assert (path / "logs" / "extract-teacher.jsonl").is_file()
    options = read_options(b, "extract-teacher")
    assert (options["tokens"], options["attention"], options["random_weights"]) == (5, True, 3)
    assert read_options(a, "extract-teacher")["tokens"] is None
    config.write_text(
        f"teacher: [{FIRST['teacher']}, '{VIT}']\nstore: [{a}, {b}]\nrandom_weights: 0\nseeds: 2\nthreads: 1\n"
        "limit: 1\nfor: ['b:tokens=5', 'b:attention', 'b:random_weights=3']\n"
    )
    again = g2l("extract-teacher", slides, "--config", config, "--json")
    assert again.exit_code == 0, again.output
    assert '"rendered": 0' in again.stdout


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--teacher", VIT), "2 teachers for 1 store; give a --store for each --teacher"),
        (("--store", "b"), "1 teacher for 2 stores"),
        (("--for", "a:tokens=5"), "there is one teacher; give the option itself"),
        (
            ("--teacher", VIT, "--store", "b", "--weights", "x", "--weights", "y"),
            "--weights: given twice; an option holds for all teachers of a command, and --for STORE:weights=VALUE",
        ),
        (("--teacher", VIT, "--store", "b", "--for", "c:tokens=5"), "begins with no store of this command"),
        (("--teacher", VIT, "--store", "b", "--for", "b:seeds=5"), "seeds is no option of one teacher"),
        (("--teacher", VIT, "--store", "b", "--for", "b:tokens"), "has no value"),
        (("--teacher", VIT, "--store", "b", "--for", "b:tokens=x"), "option 'tokens': 'x' is not an integer"),
        (("--teacher", VIT, "--store", "b", "--for", "b:attention=5"), "allowed is b:attention, or =true"),
        (
            ("--teacher", VIT, "--store", "b", "--for", "b:tokens=5", "--for", "b:tokens=6"),
            "tokens is given twice for b",
        ),
        (("--teacher", VIT, "--store", "b", "--for", "b:trust_remote_code"), "no option of one teacher"),
        (("--teacher", VIT, "--store", "./a"), "given twice; each teacher has a store of its own"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    slides: Path, tmp_path: Path, arguments: tuple[str, ...], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_error(
        g2l("extract-teacher", slides, "--teacher", FIRST["teacher"], "--store", "a", *arguments), match
    )
    assert not any(tmp_path.iterdir())


def test_of_tiles(tmp_path: Path) -> None:
    tree, a, b = (tmp_path / name for name in ("tiles", "a", "b"))
    write_tiles(tree, range(12))
    first = {"teacher": "tests.tools.tiny:teacher_of_64_px", "random_weights": 0}
    second = {"teacher": "tests.tools.tiny:student_of_64_px", "random_weights": 1}
    shared: dict[str, Any] = {"patch": 64, "tiles": True, "seeds": 2, "val": 0.0, "threads": 1}
    done = g2l_api.extract([tree], {a: first, b: second}, **shared)
    assert (done.rendered, [one.views for one in done.stores]) == (24, [24, 24])
    found = g2l_api.family([a, b])
    assert found.is_family
    assert found.compared == 24


def test_continued_together_or_apart(slides: Path, apart: tuple[Path, Path], tmp_path: Path) -> None:
    """A store that was begun with another is not warned of beside that one, and is when it is alone."""
    a, b = (Path(shutil.copytree(path, tmp_path / path.name)) for path in apart)
    shared = ["--random-weights", 0, "--seeds", 3, "--threads", 1]
    second = ["--for", "b:tokens=5", "--for", "b:attention", "--for", "a:pixels"]
    both = ["--teacher", VIT, "--store", b, "--teacher", FIRST["teacher"], "--store", a, *second]
    result = g2l("extract-teacher", slides, *both, *shared)
    assert result.exit_code == 0, result.output
    assert "begun with --like" not in result.stderr
    alone = ["--teacher", VIT, "--store", b, "--tokens", 5, "--attention", *shared]
    assert "begun with --like a, continued without" in g2l("extract-teacher", slides, *alone).stderr


@pytest.mark.slow
def test_killed_and_continued(slides: Path, apart: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    stores = {a: FIRST, b: SECOND}
    options = FOR_ALL | {"slides_csv": slides / "slides.csv"}
    args = (slides, stores, options)
    assert kill_at_random(together_job, args, 3, 0, tmp_path, 0.3, lambda: None, changes=4)
    g2l_api.extract([slides], stores, **options)
    assert of_store(b) == of_store(apart[1])
    assert of_store(a) == of_store(apart[0])


@pytest.mark.long
@pytest.mark.cluster
def test_in_workers(slides: Path, apart: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    done = together(slides, a, b, slides_csv=slides / "slides.csv", workers=2)
    assert not done.some_failed
    assert (of_store(a), of_store(b)) == (of_store(apart[0]), of_store(apart[1]))
