"""Features on disk: layout, block sizes, checksums, missing chunks, foreign metadata, statistics."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from stores.errors import CorruptStore, StoreError
from stores.format import arrays, features
from stores.format.chunks import write_chunk
from stores.format.encoding import Form
from stores.format.statistics import RunningStats, mean_and_variance
from tests.tools import zarr_arrays

ROWS, DIM = 1500, 6
RNG = np.random.default_rng(0)
COORDS = RNG.integers(0, 9999, (ROWS, 2)).astype(np.int32)
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
VALUES = RNG.normal(size=(2, ROWS, DIM)).astype(np.float16)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("features")
    features.create_slide(store, "a", COORDS, 2, DIM)
    for seed in range(2):
        for block in range(features.n_blocks(ROWS)):
            rows = features.block_range(ROWS, block)
            features.write_block(store, "a", seed, block, VALUES[seed, rows.start : rows.stop])
    return store


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "store"))


@given(st.integers(1, 30_000))
def test_blocks_cover_every_row_once_and_waste_little(rows: int) -> None:
    size = features.block_rows(rows)
    ranges = [features.block_range(rows, block) for block in range(features.n_blocks(rows))]
    assert [row for r in ranges for row in r] == list(range(rows))
    assert all(0 < len(r) <= size <= 1024 for r in ranges)
    assert size % 32 == 0 or len(ranges) == 1
    assert len(ranges) * size - rows < 32 * len(ranges)


def test_round_trip(written: Path) -> None:
    slide = features.open_features(written, "a")
    assert (slide.n_seeds, slide.n_rows, slide.dim) == (2, ROWS, DIM)
    for seed in range(2):
        found = [slide.read_block(seed, block) for block in range(2)]
        np.testing.assert_array_equal(np.concatenate(found), VALUES[seed])
    np.testing.assert_array_equal(features.read_coords(written, "a"), COORDS)


@pytest.mark.parametrize("rows", [40, 1500])
@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_our_chunks_are_those_of_zarr(tmp_path: Path, rows: int, dtype: str) -> None:
    """Byte for byte, also where a chunk reaches over the end of the array."""
    values = np.random.default_rng(rows).normal(size=(2, rows, 3)).astype(dtype)
    fill = -1 if dtype == "int32" else np.nan
    theirs = zarr_arrays.create(tmp_path, "theirs.zarr/a", values.shape, (1, 64, 3), dtype, fill)
    theirs[:] = values
    form = Form(values.shape, (1, 64, 3), dtype, fill)
    arrays.ensure_array(tmp_path, "ours.zarr/a", form)
    spec = arrays.read_spec(tmp_path, "ours.zarr/a", 3, dtype)
    for seed in range(2):
        for number, start in enumerate(range(0, rows, 64)):
            part = values[seed : seed + 1, start : start + 64]
            write_chunk(tmp_path, "ours.zarr/a", spec, (seed, number, 0), part, fill)
    expected, found = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "theirs.zarr", tmp_path / "ours.zarr")
    )
    assert found == expected
    assert len(found) == 2 + 2 * -(-rows // 64)


@pytest.mark.parametrize("lost", [0, 1, 5])
def test_statistics_are_those_of_numpy(lost: int) -> None:
    """To the bit: whoever reckons them with NumPy finds the same."""
    values = np.random.default_rng(0).normal(3, 2, (96, 700)).astype(np.float16)
    values[:lost] = np.nan
    kept = values[lost:].astype(np.float64)
    expected = np.stack([kept.mean(axis=0), kept.var(axis=0)])
    np.testing.assert_array_equal(mean_and_variance(values), expected)


def test_every_finite_value_counts_exactly() -> None:
    """One row: its mean is the value itself, subnormal, negative zero or largest."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    row = every[np.isfinite(every)][None]
    found = mean_and_variance(row)
    np.testing.assert_array_equal(found[0], row[0].astype(np.float64))
    assert not found[1].any()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("at", [0, 1, 300_000, 524_287, 524_288, 599_999, 1_199_999])
def test_no_value_that_is_not_finite_is_overlooked(value: float, at: int) -> None:
    values = np.full((1200, 1000), 65504, np.float16)
    values[0::2] = -65504
    assert features.require_finite(values, "x") is values
    values.reshape(-1)[at] = value
    with pytest.raises(CorruptStore, match="1 committed rows"):
        features.require_finite(values, "x")


def test_layout_is_the_documented_one(written: Path) -> None:
    group = zarr.open_group(written / "features.zarr", mode="r")
    array = group["a/features"]
    assert isinstance(array, zarr.Array)
    metadata: Any = array.metadata.to_dict()
    assert array.dtype == np.float16
    assert array.chunks == (1, 768, DIM)
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
    assert np.isnan(array.fill_value)
    chunk = written / "features.zarr/a/features/c/1/0/0"
    assert chunk.stat().st_size == 768 * DIM * 2 + 4


def test_every_flipped_bit_is_found(store: Path) -> None:
    chunk = store / "features.zarr/a/features/c/0/1/0"
    content = chunk.read_bytes()
    for position in np.random.default_rng(1).integers(0, len(content) * 8, 40):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        chunk.write_bytes(damaged)
        with pytest.raises(CorruptStore, match="a seed 0 rows 768-1499"):
            features.open_features(store, "a").read_block(0, 1)


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_lost_chunk_is_not_silently_nan(store: Path, damage: str) -> None:
    chunk = store / "features.zarr/a/features/c/0/1/0"
    chunk.unlink()
    if damage == "empty":
        chunk.touch()
    with pytest.raises(CorruptStore):
        features.require_finite(features.open_features(store, "a").read_block(0, 1), "a")


def test_seeds_can_be_added_without_touching_chunks(store: Path) -> None:
    chunk = store / "features.zarr/a/features/c/0/0/0"
    before = chunk.read_bytes(), chunk.stat().st_mtime_ns
    features.create_slide(store, "a", COORDS, 5, DIM)
    assert (chunk.read_bytes(), chunk.stat().st_mtime_ns) == before
    slide = features.open_features(store, "a")
    assert slide.n_seeds == 5
    np.testing.assert_array_equal(slide.read_block(1, 0), VALUES[1, :768])
    features.create_slide(store, "a", COORDS, 1, DIM)
    assert features.open_features(store, "a").n_seeds == 5


def test_other_patches_or_dimension_are_refused(store: Path) -> None:
    with pytest.raises(CorruptStore, match="other patches"):
        features.create_slide(store, "a", COORDS + 1, 2, DIM)
    with pytest.raises(CorruptStore, match=r"shape \(2, 2, 2, 6\) .* expected \(2, 2, 2, 7\)"):
        features.create_slide(store, "a", COORDS, 2, 7)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("data_type", "float32", "float32 with 3 dimensions, expected float16"),
        ("codecs", [BYTES, {"name": "gzip", "configuration": {"level": 1}}], "gzip"),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [2, 1 << 20, 1 << 10]}}, "exceed 256 MiB"),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1, 100, DIM]}}, "expected"),
        ("shape", "nonsense", "shape 'nonsense' in chunks"),
        ("shape", [3, 10**12, DIM], "shape .3, 1000000000000"),
        ("codecs", [BYTES], "crc32c last"),
        ("data_type", "variable_length_bytes", "data type 'variable_length_bytes'"),
        ("storage_transformers", [{"name": "x"}], "of a form that no store has"),
    ],
)  # fmt: skip
def test_foreign_metadata_is_checked_before_memory_is_taken(
    store: Path, field: str, value: Any, match: str
) -> None:
    path = store / "features.zarr/a/features/zarr.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, field: value}))
    with pytest.raises(CorruptStore, match=match) as caught:
        features.open_features(store, "a")
    assert "\n" not in str(caught.value)


def test_reading_what_is_not_there(written: Path) -> None:
    with pytest.raises(StoreError, match="no such array"):
        features.open_features(written, "b")
    with pytest.raises(StoreError, match="no seed 2 block 0"):
        features.open_features(written, "a").read_block(2, 0)


def test_a_block_of_another_shape_is_refused(store: Path) -> None:
    with pytest.raises(StoreError, match=r"expected float16 \(1, 768, 6\)"):
        features.write_block(store, "a", 0, 0, VALUES[0, :700])
    with pytest.raises(StoreError, match="got float32"):
        features.write_block(store, "a", 0, 0, VALUES[0, :768].astype(np.float32))
    for seeds in (range(-1, 1), range(1, 3)):
        with pytest.raises(StoreError, match=f"seeds {seeds.start} to {seeds.stop - 1}, the store has 2"):
            features.write_seeds(store, "a", seeds, 0, VALUES[:, :768])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_running_stats_equal_numpy(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(rng.normal() * 9, 2, (size, 3)) for size in sizes]
    whole = np.concatenate(blocks)
    running = RunningStats()
    for block in blocks:
        if len(block):
            running.add(len(block), block.mean(axis=0), block.var(axis=0))
    assert running.count == len(whole)
    if len(whole):
        np.testing.assert_allclose(running.mean, whole.mean(axis=0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(running.variance, whole.var(axis=0), rtol=1e-9, atol=1e-9)


def test_stored_stats_leave_out_unread_rows(store: Path) -> None:
    values = VALUES[0, :768].copy()
    values[5] = np.nan
    features.write_block(store, "a", 0, 0, values)
    mean, variance = features.read_stats(store, "a")[0, 0]
    kept = np.delete(values, 5, axis=0).astype(np.float64)
    np.testing.assert_allclose(mean, kept.mean(axis=0))
    np.testing.assert_allclose(variance, kept.var(axis=0))


def test_values_that_equal_the_fill_value_are_stored_all_the_same(tmp_path: Path) -> None:
    """A slide of one patch at the origin, a block without one readable row: Zarr would leave their chunks out."""
    features.create_slide(tmp_path, "a", np.zeros((1, 2), np.int32), 1, DIM)
    features.write_block(tmp_path, "a", 0, 0, np.full((1, DIM), np.nan, np.float16))
    assert (tmp_path / "features.zarr/a/coords/c/0/0").is_file()
    assert (tmp_path / "features.zarr/a/features/c/0/0/0").is_file()
    assert np.isnan(features.open_features(tmp_path, "a").read_block(0, 0)).all()
