"""Joined commit records, kills in between, leftovers and contradictions that ``store reindex`` names."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stores import sampler
from stores.errors import OptionError
from stores.format import features, layout, manifest, recipe
from stores.format.layout import chunk_file
from stores.format.statistics import mean_and_variance
from stores.io import files
from stores.verify import join_commits
from stores.verify.reindex import Reindexed, reindex
from stores.verify.structure import verify_structure
from tests.tools.commands import g2l, one_error
from tests.tools.content import content_digest
from tests.tools.made_stores import MadeSlide, make_store
from tests.tools.reconcile import quantised
from tests.tools.settings import ROOT
from tests.tools.share import contents, edit

STATS = layout.feature_array("a", "stats")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    slides = [
        MadeSlide("a", 70, bad=(3,), pixels=True, columns={"site": "x"}),
        MadeSlide("b", 33, seeds_apart=1),
        MadeSlide("c", status="failed"),
        MadeSlide("d", 1100, seeds_apart=1, columns={"split": "val"}),
    ]
    return make_store(tmp_path_factory.mktemp("made") / "s", slides)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "s"))


def run(store: Path, dry_run: bool = False, prune: bool = False) -> Reindexed:
    return reindex(store, dry_run, prune)


def wrong(store: Path) -> list[str]:
    return [str(finding) for finding in verify_structure(store).findings]


def names(store: Path) -> list[str]:
    return [f"{c.slide_id} {c.path.name}" for c in manifest.commits(store)]


def test_a_store_in_line_is_left_alone(store: Path) -> None:
    run(store)
    before = contents(store)
    assert run(store) == Reindexed(str(store))
    assert contents(store) == before


def test_records_of_one_block_are_joined(store: Path, made: Path) -> None:
    result = run(store)
    assert result.done == [
        "slide b block 0: 2 commit records joined to seeds 0-2",
        "slide d block 0: 2 commit records joined to seeds 0-2",
        "slide d block 1: 2 commit records joined to seeds 0-2",
        "manifest/index.parquet written",
    ]
    assert len(names(made)) == 7
    assert names(store) == [
        "a 00000-s0000-0002.parquet",
        "b 00000-s0000-0002.parquet",
        "d 00000-s0000-0002.parquet",
        "d 00001-s0000-0002.parquet",
    ]
    assert content_digest(store) == content_digest(made)
    assert wrong(store) == []
    assert [u.seeds for u in sampler.find_units(store, "val", None)] == [(0, 1, 2), (0, 1, 2)]


def test_records_with_other_rows_or_a_gap_stay_apart(store: Path) -> None:
    first, second = manifest.commits(store, "b")
    manifest.write_commit(store, "b", 0, range(1), first.read().slice(0, 30))
    table = second.read().set_column(4, "seed", pa.array([4] * 33 + [5] * 33, pa.int16()))
    second.path.unlink()
    manifest.write_commit(store, "b", 0, range(4, 6), table)
    before = names(store)
    assert not any("slide b" in text and "joined" in text for text in run(store).done)
    assert [n for n in names(store) if n[0] == "b"] == [n for n in before if n[0] == "b"]


JOIN_AND_DIE = """
import os, signal, sys
from pathlib import Path
from stores.verify import join_commits, reindex
write = join_commits.manifest.write_commit
def write_and_die(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
join_commits.manifest.write_commit = write_and_die
reindex.reindex(Path(sys.argv[1]))
"""


@pytest.mark.kill
def test_a_kill_between_join_and_removal_lists_no_view_twice(store: Path, made: Path) -> None:
    command = [sys.executable, "-c", JOIN_AND_DIE, str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = store / "manifest/views/b"
    assert sorted(os.listdir(folder)) == [
        "00000-s0000-0000.parquet",
        "00000-s0000-0002.parquet",
        "00000-s0001-0002.parquet",
    ]
    assert content_digest(store) == content_digest(made)
    assert manifest.count_views(store).num_rows == manifest.count_views(made).num_rows
    assert [u.seeds for u in sampler.find_units(store, "train", None)] == [(0, 1, 2), (0, 1, 2)]
    assert any("is not relied on" in text for text in wrong(store))
    result = run(store)
    assert "slide b: 00000-s0001-0002.parquet removed, 00000-s0000-0002.parquet has its views" in result.done
    assert os.listdir(folder) == ["00000-s0000-0002.parquet"]
    assert content_digest(store) == content_digest(made)
    assert wrong(store) == []


def test_a_part_that_says_more_is_never_removed(store: Path) -> None:
    first, second = manifest.commits(store, "b")
    both = pa.concat_tables([first.read(), second.read()])
    manifest.write_commit(store, "b", 0, range(3), both.filter(pc.less(both["row"], 20)))
    result = run(store)
    assert first.path.exists()
    assert second.path.exists()
    assert [p for p in result.problems if "says otherwise" in p and first.path.name in p]
    assert len(list(join_commits.replaced(store, "b"))) == 2


def test_what_another_program_wrote_gets_checksums(store: Path) -> None:
    paths = [
        manifest.slides_path(store),
        manifest.patches_path(store, "a"),
        manifest.commit_path(store, "a", 0, range(3)),
    ]
    before = content_digest(store)
    for path in paths:
        table = pq.read_table(path).replace_schema_metadata(None)
        pq.write_table(table.append_column("more", pa.array([1] * table.num_rows)), path)
    value = recipe.load(store).to_json()
    (store / "recipe.json").write_text(json.dumps(value))
    said = run(store, dry_run=True).done
    assert [text for text in said if "added" in text] == [
        "recipe.json: digest added",
        "manifest/patches/a.parquet: checksum added",
        "manifest/slides.parquet: checksum added",
        "manifest/views/a/00000-s0000-0002.parquet: checksum added",
    ]
    assert run(store).done == said
    assert all(manifest.checksum_matches(path.read_bytes()) for path in paths)
    assert pq.read_table(paths[0])["more"].to_pylist() == [1] * 4
    assert "digest" in files.read_json(store / "recipe.json")
    assert before != content_digest(store)  # the row says more now
    edit(store, "a")
    assert wrong(store) == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["wrong", "flipped", "missing", "no array", "other array"])
def test_statistics_are_computed_from_the_features(store: Path, made: Path, damage: str) -> None:
    chunk = store / chunk_file(STATS, (1, 0, 0, 0))
    if damage == "wrong":
        features.write_stats(store, "a", 1, 0, np.ones((70, 8), np.float16))
    elif damage == "flipped":
        chunk.write_bytes(b"\1" + chunk.read_bytes()[1:])
    elif damage == "missing":
        chunk.unlink()
    elif damage == "no array":
        shutil.rmtree(store / STATS)
    else:
        metadata = store / STATS / "zarr.json"
        metadata.write_text(metadata.read_text().replace("float64", "float32"))
    assert wrong(store) != [] or damage == "wrong"
    dry = run(store, dry_run=True)
    result = run(store)
    assert result.done == dry.done
    assert "slide a block 0 seed 1: statistics computed again" in result.done
    assert ("slide a block 0 seed 0: statistics computed again" in result.done) == ("array" in damage)
    np.testing.assert_array_equal(features.read_stats(store, "a"), features.read_stats(made, "a"))
    assert content_digest(store) == content_digest(made)
    assert wrong(store) == []


def test_statistics_of_uncommitted_rows_do_not_count(store: Path) -> None:
    """A block of which ``--limit`` committed a part, rewritten as a whole and killed before its record."""
    (record,) = manifest.commits(store, "a")
    table = record.read()
    manifest.write_commit(store, "a", 0, range(3), table.filter(pc.less(table["row"], 10)))
    assert sum("statistics" in text for text in run(store).done) == 3
    values = features.open_features(store, "a").read_block(2, 0)[:10]
    np.testing.assert_array_equal(features.read_stats(store, "a")[2, 0], mean_and_variance(values))


def test_statistics_of_a_compact_copy_stay(made: Path, tmp_path: Path) -> None:
    store = quantised(made, tmp_path / "compact")
    compact: dict[str, Any] = {**recipe_fields(made), "compact": {"kind": "int8"}}
    recipe.save(store, recipe.Recipe(**compact))
    assert not any("statistics" in text for text in run(store).done)


def recipe_fields(store: Path) -> dict[str, object]:
    found = recipe.load(store)
    return {name: getattr(found, name) for name in ("patch", "teacher", "policy", "reader")}


def test_leftovers_are_named_and_removed_when_asked(store: Path, made: Path) -> None:
    array = store / layout.feature_array("a", "features")
    (array / "c/3/0").mkdir(parents=True)
    shutil.copy(array / "c/0/0/0", array / "c/3/0/0")
    for commit in list(manifest.commits(store, "d"))[2:]:
        commit.path.unlink()
    (store / "notes.txt").write_text("mine")
    (store / ".x.1.partial").touch()
    expected = [
        "features.zarr/a/features/c/3/0/0",
        *(f"features.zarr/d/features/c/{seed}/1/0" for seed in range(3)),
        *(f"features.zarr/d/stats/c/{seed}/1/0/0" for seed in range(3)),
    ]
    before = contents(store)
    dry = run(store, dry_run=True, prune=True)
    assert contents(store) == before
    assert (dry.leftovers, dry.strays, dry.pruned) == (expected, ["notes.txt"], False)
    assert "1 unfinished file removed" in dry.done
    assert run(store).leftovers == expected
    assert all((store / name).exists() for name in expected)
    content = content_digest(store)
    assert run(store, prune=True).pruned
    assert not any((store / name).exists() for name in expected)
    assert (store / "notes.txt").exists()
    assert content_digest(store) == content
    assert run(store, prune=True).leftovers == []


def test_pixels_of_blocks_that_nobody_lists(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [MadeSlide("a", 1100, n_seeds=1, pixels=True)])
    next(c for c in manifest.commits(store, "a") if c.block == 1).path.unlink()
    left = run(store).leftovers
    assert "pixels.zarr/a/c/17/0/0/0" not in left
    assert "pixels.zarr/a/c/18/0/0/0" in left


def test_contradictions_are_reported_not_changed(store: Path) -> None:
    edit(store, "a", n_patches=71)
    edit(store, "b", slide_id="bb", n_patches=0, status="failed")
    chunk = store / chunk_file(layout.feature_array("d", "features"), (0, 1, 0))
    chunk.write_bytes(b"\1" + chunk.read_bytes()[1:])
    (store / chunk_file(layout.feature_array("a", "features"), (2, 0, 0))).unlink()
    before = {name: value for name, value in contents(store).items() if "manifest/views" not in name}
    problems = run(store, prune=True).problems
    assert problems[0] == "slide a: 70 patches, the slides table says 71"
    for text in (
        "slide a seed 2 block 0: 69 committed rows",
        "d seed 0 rows 576-1099: damaged chunk",
        "slide b: ",
    ):
        assert any(problem.startswith(text) for problem in problems), problems
    assert {n: v for n, v in contents(store).items() if "manifest/views" not in n} == before


def test_a_sealed_store_stays(store: Path) -> None:
    (store / "checksums.sha256").write_text("")
    with pytest.raises(
        OptionError, match=r"is sealed; to change it delete checksums\.sha256.* run `g2l store seal`"
    ):
        run(store)


def test_links_are_refused(store: Path) -> None:
    (store / "manifest/views/a/00009-s0000-0000.parquet").symlink_to("/etc/passwd")
    with pytest.raises(OptionError, match="a symbolic link"):
        run(store, prune=True)


def test_the_command(store: Path) -> None:
    before = contents(store)
    said = g2l("store", "reindex", store, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "would be done: slide b block 0: 2 commit records joined to seeds 0-2" in said.stdout
    assert contents(store) == before
    done = g2l("store", "reindex", store, "--json")
    assert len(json.loads(done.stdout)["done"]) == 4
    edit(store, "a", n_patches=71)
    found = g2l("store", "reindex", store)
    assert found.exit_code == 1
    assert "wrong: slide a: 70 patches, the slides table says 71" in found.stdout
    one_error(g2l("store", "reindex", store / "manifest"), "not a store")
