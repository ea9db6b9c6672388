"""merge and subset: nothing is lost, contradictions are named, foreign stores are taken by known files only."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import cli
from pipeline.distill import train
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.options import DistillOptions
from pipeline.runtime.progress import Silent
from stores.combine.merge import Shared, merge
from stores.combine.subset import Selection, subset
from stores.errors import CorruptStore, OptionError, RecipeMismatch, StoreError
from stores.format import features, manifest, pixels, recipe
from stores.format.index import write_index
from stores.remote import transfer
from stores.remote.objects import Objects
from stores.remote.store import open_store
from stores.verify.structure import verify_structure
from tests.tools.stores import RECIPE, content, files_of, make_store

SLIDES = {"a": 5, "b": 40, "cv": 33, "d": 1, "ev": 70, "empty": 0}


def join(*stores: Path, out: Path, allow_duplicates: bool = False) -> Shared:
    return merge(list(stores), out, allow_duplicates)


def part(store: Path, out: Path, **selection: Any) -> Shared:
    return subset(store, out, Selection(**selection))


def sound(store: Path) -> bool:
    return verify_structure(store).findings == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = {name: {"site": name[0], "grade": "2"} for name in SLIDES}
    store = make_store(tmp_path_factory.mktemp("whole") / "store", SLIDES, with_pixels=True, own=own)
    write_index(store)
    return store


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(st.sets(st.sampled_from(sorted(SLIDES)), min_size=1, max_size=len(SLIDES) - 1), st.booleans())
def test_merging_the_parts_of_any_split_gives_the_whole(whole: Path, some: set[str], overlap: bool) -> None:
    rest = set(SLIDES) - some | (set(sorted(some)[:1]) if overlap else set())
    with tempfile.TemporaryDirectory() as folder:
        a, b, c = (Path(folder) / name for name in "abc")
        part(whole, a, slides=tuple(some))
        part(whole, b, slides=tuple(rest))
        assert {row["slide_id"] for row in manifest.read_slides(a)} == some
        join(b, a, out=c)
        assert content(c) == content(whole)
        again = {name: data for name, data in files_of(c).items() if name != "options/merge.json"}
        assert again == files_of(whole)
        assert sound(c)


@pytest.mark.slow
def test_subset_by_split_seeds_and_column(whole: Path, tmp_path: Path) -> None:
    part(whole, tmp_path / "val", splits=("val",))
    assert [row["slide_id"] for row in manifest.read_slides(tmp_path / "val")] == ["cv", "ev"]
    part(whole, tmp_path / "where", where=("site=b", "site=e", "grade=2", "status=ok"), pixels=False)
    assert [row["slide_id"] for row in manifest.read_slides(tmp_path / "where")] == ["b", "ev"]
    assert not (tmp_path / "where/pixels.zarr").exists()
    part(whole, tmp_path / "seeds", seeds=2)
    assert features.open_features(tmp_path / "seeds", "ev").n_seeds == 2
    views = manifest.count_views(tmp_path / "seeds")
    assert set(views["seed"].to_pylist()) == {0, 1}
    for seed in (0, 1):
        old, new = (features.open_features(s, "ev").read_block(seed, 0) for s in (whole, tmp_path / "seeds"))
        assert old.tobytes() == new.tobytes()
    for path in ("val", "where", "seeds"):
        assert sound(tmp_path / path), path


def test_subset_of_seeds_that_were_extracted_one_by_one(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", {"a": 40}, records=[range(1), range(1, 3), range(3, 4)])
    part(path, tmp_path / "x", seeds=2)
    assert sorted(files_of(tmp_path / "x/manifest/views/a")) == [
        "00000-s0000-0000.parquet",
        "00000-s0001-0001.parquet",
    ]
    assert sound(tmp_path / "x")
    part(path, tmp_path / "y", seeds=9)
    assert content(tmp_path / "y") == content(path)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"slides": ("zz",)}, "--slides 'zz': no such slide"),
        ({"splits": ("dev",)}, "--split 'dev': allowed: train, val, test"),
        ({"where": ("split=val", "site=a")}, "no slide of 6 fits"),
        ({"seeds": 0}, "--seeds 0: allowed is 1 or more"),
        ({"where": ("nonsense >",)}, "columns: file_name, fingerprint, grade"),
        ({"where": ("1); ATTACH 'x.db' AS x; --",)}, "--where"),
    ],
)
def test_selections_that_are_none(whole: Path, tmp_path: Path, selection: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        part(whole, tmp_path / "out", **selection)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OptionError, match=r"--out .*out: exists already"):
        part(whole, tmp_path / "out")


# what cannot be merged


def two(tmp_path: Path, **changes: Any) -> tuple[Path, Path]:
    return make_store(tmp_path / "a", {"x": 40, "y": 4}), make_store(
        tmp_path / "b", {"x": 40, "z": 4}, **changes
    )


def conflict(a: Path, b: Path, tmp_path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        join(a, b, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def change_slides(store: Path, slide_id: str, **values: Any) -> None:
    rows = [row | values if row["slide_id"] == slide_id else row for row in manifest.read_slides(store)]
    manifest.write_slides(store, rows)


def test_other_recipes(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    assert RECIPE.teacher is not None
    recipe.save(b, dataclasses.replace(RECIPE, teacher=dataclasses.replace(RECIPE.teacher, dtype="bfloat16")))
    with pytest.raises(
        RecipeMismatch, match=r"recipe.teacher.dtype: .*/a has 'float32', .*/b has 'bfloat16'"
    ):
        join(a, b, out=tmp_path / "out")


def test_conflicts_are_named(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    change_slides(b, "x", mpp=0.25)
    assert "slide x:" in conflict(a, b, tmp_path)
    assert f"mpp is 0.5 in {a} and 0.25 in {b};" in conflict(a, b, tmp_path)
    change_slides(b, "x", mpp=0.5)
    whole = features.open_features(b, "x").read_block(2, 0)
    changed = whole.copy()
    changed[17, 3] += 1
    features.write_block(b, "x", 2, 0, changed)
    assert "feature 3 of row 17 seed 2 is " in conflict(a, b, tmp_path)
    features.write_block(b, "x", 2, 0, whole)
    commit = next(manifest.commits(b, "x"))
    table = commit.read()
    at = table.column_names.index("view_crc32")
    crcs = table["view_crc32"].to_pylist()
    crcs[40] = 5
    manifest.write_commit(
        b, "x", 0, commit.seeds, table.set_column(at, "view_crc32", pa.array(crcs, pa.uint32()))
    )
    assert "view_crc32 of row 0 seed 1 is " in conflict(a, b, tmp_path)
    manifest.write_commit(b, "x", 0, commit.seeds, table)
    found = manifest.read_patches(b, "x")
    manifest.write_patches(b, "x", found.x_px0[::-1].copy(), found.y_px0, found.tissue)
    assert "x_px0 of patch 0 is 0 in " in conflict(a, b, tmp_path)


def test_a_patient_in_two_splits_and_a_file_under_two_names(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    change_slides(b, "z", patient_id="p-y", split="val")
    text = conflict(a, b, tmp_path)
    assert "patient p-y: slide y is in train, slide z in val" in text
    change_slides(b, "z", patient_id="p-z", split="train", fingerprint="print of y")
    assert "slides y and z: one file under two names" in conflict(a, b, tmp_path)
    join(a, b, out=tmp_path / "out", allow_duplicates=True)


@pytest.mark.slow
def test_the_fuller_copy_of_a_slide_wins(tmp_path: Path) -> None:
    full = make_store(tmp_path / "full", {"x": 40, "f": 3}, with_pixels=True)
    some = make_store(tmp_path / "some", {"x": 40, "s": 3, "f": 0})
    part(some, tmp_path / "less", seeds=2)
    change_slides(tmp_path / "less", "x", site="here")
    for number, order in enumerate(([full, tmp_path / "less"], [tmp_path / "less", full])):
        out = tmp_path / f"out{number}"
        join(*order, out=out)
        rows = {row["slide_id"]: row for row in manifest.read_slides(out)}
        assert features.open_features(out, "x").n_seeds == 3
        assert pixels.has_pixels(out, "x")
        assert rows["x"]["site"] == "here"
        assert rows["f"]["status"] == "ok"  # no tissue in the other
    only_pixels = tmp_path / "thin"
    part(full, only_pixels, slides=("x",), seeds=1)
    join(some, only_pixels, out=tmp_path / "both")
    assert features.open_features(tmp_path / "both", "x").n_seeds == 3
    assert pixels.has_pixels(tmp_path / "both", "x")
    assert sound(tmp_path / "both")


def test_views_that_either_lacks_are_added(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    manifest.commit_path(a, "x", 0, range(3)).unlink()
    table = next(manifest.commits(b, "x")).read()
    manifest.write_commit(a, "x", 0, range(1), table.filter([s == 0 for s in table["seed"].to_pylist()]))
    manifest.commit_path(b, "x", 0, range(3)).unlink()
    manifest.write_commit(b, "x", 0, range(1, 2), table.filter([s == 1 for s in table["seed"].to_pylist()]))
    join(a, b, out=tmp_path / "out")
    assert [c.seeds for c in manifest.commits(tmp_path / "out", "x")] == [range(1), range(1, 2)]


@pytest.mark.slow
def test_only_known_files_come_along(whole: Path, tmp_path: Path) -> None:
    a = Path(shutil.copytree(whole, tmp_path / "a"))
    (a / "features.zarr/a/run.sh").write_text("#!/bin/sh")
    (a / "README.md").write_text("old card")
    (a / "checksums.sha256").write_text("old seal")
    result = part(a, tmp_path / "out")
    assert result.left_out == [f"{a}/features.zarr/a/run.sh"]
    assert content(tmp_path / "out") == content(whole)
    assert not {"README.md", "checksums.sha256", "features.zarr/a/run.sh"} & set(files_of(tmp_path / "out"))
    (a / "pictures").mkdir()
    (a / "pictures/a.png").symlink_to("/etc/hostname")
    with pytest.raises(CorruptStore, match=r"pictures/a.png: a symbolic link"):
        part(a, tmp_path / "out2")


@pytest.mark.kill
def test_a_killed_merge_goes_on(whole: Path, tmp_path: Path) -> None:
    part(whole, tmp_path / "a", slides=("a", "b", "d"))
    part(whole, tmp_path / "b", slides=("cv", "ev", "empty"))
    script = (
        "import sys, time, pathlib; from stores.combine import copy_slide, merge; from stores.io import staging\n"
        "copy = staging.copy_file\n"
        "def slow(*args):\n    copy(*args); print('.', flush=True); time.sleep(0.05)\n"
        "copy_slide.copy_file = slow\n"
        "a, b, out = map(pathlib.Path, sys.argv[1:])\n"
        "merge.merge([a, b], out, False)"
    )
    arguments = [sys.executable, "-c", script, *(str(tmp_path / n) for n in ("a", "b", "out"))]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert process.stdout is not None
    for _ in range(12):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out").exists()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / ".out.partial").rglob("*") if p.is_file()}
    assert len(kept) >= 12
    time.sleep(0.01)
    join(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)
    same = [p for p, t in kept.items() if (q := tmp_path / "out" / p.relative_to(tmp_path / ".out.partial")).exists()
            and q.stat().st_mtime_ns == t]  # fmt: skip
    assert len(same) >= 11
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_from_a_url(whole: Path, tmp_path: Path) -> None:
    transfer.push(whole, Objects("memory://share/store"))
    with open_store("memory://share/store") as found:
        subset(found, tmp_path / "a", Selection(slides=("a", "b")))
        merge([found, tmp_path / "a"], tmp_path / "c", False)
    assert content(tmp_path / "c") == content(whole)


@pytest.mark.slow
def test_distill_on_a_merged_store_is_the_same_run(store: Path, tmp_path: Path) -> None:
    part(store, tmp_path / "x", slides=("b",))
    part(store, tmp_path / "y", slides=("a", "c"))
    join(tmp_path / "x", tmp_path / "y", out=tmp_path / "merged")
    options = DistillOptions(student="tests.tools.tiny:student", random_weights=0, steps=5, batch_size=16, window=64,
                             val_views=16, threads=2, device="cpu")  # fmt: skip
    losses = []
    for name, path in (("r1", store), ("r2", tmp_path / "merged")):
        train.distill(path, tmp_path / name, options, False, Silent())
        losses.append([r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl")])
    assert losses[0] == losses[1]
    assert not np.isnan(losses[0]).any()


@pytest.mark.slow
def test_the_commands(whole: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli.g2l, ["store", *arguments])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    (tmp_path / "ids.txt").write_text("a\n\nb\n")
    (tmp_path / "ids.csv").write_text("slide_id,other\nev,1\n")
    ids = ["--slides", str(tmp_path / "ids.txt"), "--slides", str(tmp_path / "ids.csv"), "--slides", "d"]
    out = run("subset", str(whole), "--out", str(tmp_path / "a"), *ids)
    assert "4 slides, 116 patches" in out
    run("subset", str(whole), "--out", str(tmp_path / "b"), "--slides", "cv", "--slides", "empty")
    assert "6 slides, 149 patches" in run(
        "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")
    )
    assert content(tmp_path / "c") == content(whole)
    done = CliRunner().invoke(cli.g2l, ["store", "merge", str(whole), "--out", str(tmp_path / "d")])
    assert done.exit_code == 2
    assert "give two stores or more" in done.stderr
