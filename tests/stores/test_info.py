"""``store info``: statistics are those of the features, and nothing in a store breaks it."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

import cli
from stores.errors import CorruptStore
from stores.format import features, manifest, recipe
from stores.info import store_info
from tests.tools import zarr_arrays
from tests.tools.stores import DIM, make_store


def info(store: Path, *options: str) -> Result:
    done = CliRunner().invoke(cli.g2l, ["store", "info", str(store), *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done


def ok_features(store: Path) -> np.ndarray[Any, Any]:
    """Every committed feature, by the manifest alone, float64 (view, dim)."""
    parts = []
    for commit in manifest.commits(store):
        opened, views = features.open_features(store, commit.slide_id), commit.read()
        start = features.block_range(opened.n_rows, commit.block).start
        for seed in commit.seeds:
            parts.append(opened.read_block(seed, commit.block)[manifest.ok_rows(views, seed) - start])
    return np.concatenate(parts).astype(np.float64)


def test_statistics_are_those_of_the_features(tmp_path: Path) -> None:
    """Blocks of unlike size, rows that could not be read, seeds committed apart."""
    store = make_store(tmp_path / "s", {"a": 1100, "b": 40, "c": 0}, records=(range(2), range(2, 3)))
    every = ok_features(store)
    found = store_info(store)["statistics"]
    assert found["views"] == len(every) == 3 * (1099 + 39)
    mean, std = every.mean(axis=0), every.std(axis=0)
    expected = {
        "mean_min": mean.min(),
        "mean_max": mean.max(),
        "mean_abs_mean": np.abs(mean).mean(),
        "std_min": std.min(),
        "std_median": np.median(std),
        "std_max": std.max(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["constant_dimensions"] == 0
    tissue = np.concatenate([manifest.read_patches(store, slide_id).tissue for slide_id in "ab"])
    assert found["tissue_p50"] == pytest.approx(np.median(tissue))
    assert found["tissue_p05"] == pytest.approx(np.quantile(tissue, 0.05))


def test_dimensions_that_carry_nothing_are_counted(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 2}, records=[range(1)])
    values = np.tile(np.arange(DIM, dtype=np.float16), (2, 1))
    values[1, :3] += 1
    features.write_block(store, "a", 0, 0, values)
    assert store_info(store)["statistics"]["constant_dimensions"] == DIM - 3


def test_lines(store: Path) -> None:
    found = json.loads(info(store, "--json").stdout)["statistics"]
    said = info(store).stdout
    assert f"(median {found['std_median']:.3g}), {found['constant_dimensions']} constant" in said
    assert f"tissue    {found['tissue_p05']:.0%}, " in said


def test_a_store_that_is_only_tiled(store: Path, tmp_path: Path) -> None:
    tiled = tmp_path / "tiled"
    shutil.copytree(store / "manifest/patches", tiled / "manifest/patches")
    shutil.copy(store / "manifest/slides.parquet", tiled / "manifest")
    recipe.save(tiled, recipe.Recipe(recipe.load(store).patch))
    assert json.loads(info(tiled, "--json").stdout)["statistics"] is None
    assert "teacher   none yet" in info(tiled).stdout


def a_chunk_with_a_flipped_bit(store: Path) -> None:
    path = store / "features.zarr/a/stats/c/1/0/0/0"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)


def a_lost_chunk(store: Path) -> None:
    (store / "features.zarr/a/stats/c/1/0/0/0").unlink()


def an_empty_chunk(store: Path) -> None:
    (store / "features.zarr/a/stats/c/1/0/0/0").write_bytes(b"")


def no_array(store: Path) -> None:
    shutil.rmtree(store / "features.zarr/a/stats")


def written(value: float, part: int) -> Any:
    def damage(store: Path) -> None:
        zarr_arrays.writable(store, "features.zarr/a/stats")[1, 0, part, 3] = value

    damage.__name__ = f"{('mean', 'variance')[part]} {value}"
    return damage


def of_shape(*shape: int) -> Any:
    """A whole array that only has another shape."""

    def damage(store: Path) -> None:
        name = "features.zarr/a/stats"
        shutil.rmtree(store / name)
        zarr_arrays.create(store, name, shape, (1, 1, *shape[2:]), "float64", math.nan)[:] = 1.0

    damage.__name__ = f"shape {shape}"
    return damage


DAMAGE = [
    a_chunk_with_a_flipped_bit, a_lost_chunk, an_empty_chunk, no_array,
    *[written(value, part) for value in (math.nan, math.inf, 1e300) for part in (0, 1)], written(-1e-9, 1),
    of_shape(2, 1, 2, DIM), of_shape(3, 1, 1, DIM), of_shape(3, 1, 3, DIM), of_shape(3, 1, 2, DIM - 1),
    of_shape(3, 1, 2, 1), of_shape(3, 1, 2, DIM + 1),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_statistics_are_one_line(tmp_path: Path, damage: Any) -> None:
    store = make_store(tmp_path / "s", {"0": 5, "a": 40}, [range(1), range(1, 3)])
    damage(store)
    for options in ([], ["--json"]):
        done = info(store, *options)
        assert done.exit_code == 2, done.output
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert re.search(r"a/stats|a stats|a seed \d block 0: its statistics", line.replace(str(store), ""))


def test_statistics_of_fewer_blocks(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 1100}, records=[range(3)])
    of_shape(3, 1, 2, DIM)(store)
    with pytest.raises(CorruptStore, match="a seed 0 block 1: its statistics do not exist"):
        store_info(store)


def test_a_block_without_a_readable_row_needs_no_statistics(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 5, "b": 5}, records=[range(1)])
    (commit,) = manifest.commits(store, "a")
    views = commit.read()
    places = {"status": "bad_read", "view_crc32": None}
    for name, value in places.items():
        column = pa.array([value] * 5, manifest.VIEWS_SCHEMA.field(name).type)
        views = views.set_column(views.column_names.index(name), name, column)
    manifest.write_commit(store, "a", 0, range(1), views)
    features.write_block(store, "a", 0, 0, np.full((5, DIM), np.nan, np.float16))
    assert store_info(store)["statistics"]["views"] == 4


def test_a_tissue_share_that_is_no_number(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", {"a": 5}, records=[range(1)])
    (commit,) = manifest.commits(store)
    views = commit.read()
    index = views.column_names.index("tissue")
    views = views.set_column(index, "tissue", pa.array([math.nan] * 5, pa.float32()))
    manifest.write_commit(store, "a", 0, range(1), views)
    with pytest.raises(CorruptStore, match="tissue"):
        store_info(store)


def test_hostile_text_leaves_the_terminal_alone(tmp_path: Path) -> None:
    evil = "x\x1b[2J\n\u202eerror: all is well"
    own = {"a": {"status": evil, "reason": evil}, "b": {"status": "failed", "reason": None}}
    store = make_store(tmp_path / "s", {"a": 5, "b": 5, "c": 5}, own=own)
    stored = recipe.load(store)
    assert stored.teacher is not None
    teacher = dataclasses.replace(stored.teacher, name="\ud800" + evil, weights_sha256=evil, dtype=evil)
    recipe.save(store, dataclasses.replace(stored, teacher=teacher))
    done = info(store)
    assert done.exit_code == 0, done.stderr
    assert not any(c in done.stdout for c in "\x1b\u202e\ud800")
    assert not any(line.startswith("error") for line in done.stdout.splitlines())
    assert "  b: no reason given" in done.stdout
