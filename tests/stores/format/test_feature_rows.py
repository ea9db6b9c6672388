"""Rows of blocks through memory that is used again."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from zarr.codecs import ZstdCodec

from stores.errors import CorruptStore, StoreError
from stores.format import arrays, features
from stores.format.chunks import chunk_limit, write_chunk
from stores.format.feature_rows import RowReader
from stores.format.layout import chunk_file
from tests.tools import zarr_arrays

DIM, SEEDS = 5, 3
ROWS = {"a": 2500, "b": 40, "c": 1500}
"""Blocks of 864, 64 and 768 rows: memory of one size is used for another."""


def values_of(slide_id: str) -> np.ndarray:
    rng = np.random.default_rng(list(slide_id.encode()))
    return rng.standard_normal((SEEDS, ROWS[slide_id], DIM)).astype(np.float16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    for slide_id, n_rows in ROWS.items():
        values, coords = values_of(slide_id), np.zeros((n_rows, 2), np.int32)
        features.create_slide(path, slide_id, coords, SEEDS, DIM)
        for block in range(features.n_blocks(n_rows)):
            rows = features.block_range(n_rows, block)
            features.write_seeds(path, slide_id, range(SEEDS), block, values[:, rows.start : rows.stop])
    return path


def reads(n: int) -> list[tuple[str, int, int, np.ndarray]]:
    rng, found = np.random.default_rng(n), []
    for _ in range(n):
        slide_id = rng.choice(list(ROWS)).item()
        block = int(rng.integers(features.n_blocks(ROWS[slide_id])))
        rows = rng.permutation(features.block_range(ROWS[slide_id], block))[: rng.integers(1, 40)]
        found.append((slide_id, int(rng.integers(SEEDS)), block, rows))
    return found


@pytest.mark.parametrize("blocks", [1, 2, 100])
def test_rows_are_those_of_the_block_whatever_was_read_before(store: Path, blocks: int) -> None:
    reader = RowReader(store, blocks)
    found = [reader.read(*of) for of in reads(60)]
    for (slide_id, seed, _, rows), values in zip(reads(60), found, strict=True):
        np.testing.assert_array_equal(values, values_of(slide_id)[seed, rows])


def test_threads_take_turns(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one would overwrite the memory that another takes rows from."""
    inside: list[int] = []
    read_block = features.SlideFeatures.read_block

    def slow(self: features.SlideFeatures, seed: int, block: int, memory: np.ndarray) -> np.ndarray:
        inside.append(+1)
        assert sum(inside) == 1
        time.sleep(0.001)
        values = read_block(self, seed, block, memory)
        inside.append(-1)
        return values

    monkeypatch.setattr(features.SlideFeatures, "read_block", slow)
    reader = RowReader(store, 1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda of: reader.read(*of), reads(100)))
    for (slide_id, seed, _, rows), values in zip(reads(100), found, strict=True):
        np.testing.assert_array_equal(values, values_of(slide_id)[seed, rows])


def test_memory_is_used_again_and_blocks_are_not_read_twice(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[np.ndarray] = []
    read_block = features.SlideFeatures.read_block

    def noted(self: features.SlideFeatures, seed: int, block: int, memory: np.ndarray) -> np.ndarray:
        used.append(memory)
        return read_block(self, seed, block, memory)

    monkeypatch.setattr(features.SlideFeatures, "read_block", noted)
    reader, found = RowReader(store, 2), []
    for seed in (0, 1, 0, 2, 0, 2, 1, 2):
        before = len(used)
        reader.read("a", seed, 0, np.arange(3))
        found.append(len(used) > before)
    assert found == [True, True, False, True, False, False, True, False]  # 2 for 1, then 1 for 0
    assert len({memory.ctypes.data for memory in used}) == 2


def test_a_chunk_in_given_memory_cannot_be_changed_by_mistake(store: Path) -> None:
    opened = features.open_features(store, "b")
    memory = np.empty(chunk_limit(opened.spec), np.uint8)
    values = opened.read_block(1, 0, memory)
    np.testing.assert_array_equal(values, values_of("b")[1])
    assert np.shares_memory(values, memory)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 0


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "long", "huge"])
def test_a_damaged_chunk_is_found_in_memory_that_held_a_good_one(store: Path, damage: str) -> None:
    chunk = store / chunk_file("features.zarr/b/features", (2, 0, 0))
    good = chunk.read_bytes()
    reader = RowReader(store, 1)
    reader.read("b", 1, 0, np.arange(40))
    bad = {"flipped": bytes([good[0] ^ 1]) + good[1:], "short": good[:-8], "empty": b""}
    bad |= {"long": good + good, "huge": good * 9}
    chunk.write_bytes(bad[damage])
    try:
        with pytest.raises(CorruptStore, match="b seed 2 rows 0-39"):
            reader.read("b", 2, 0, np.arange(40))
    finally:
        chunk.write_bytes(good)
    np.testing.assert_array_equal(reader.read("b", 2, 0, np.arange(40)), values_of("b")[2])


def test_rows_and_seeds_that_are_not_there(store: Path) -> None:
    reader = RowReader(store, 1)
    for rows in ([2499, 2500], [863], [-1]):
        with pytest.raises(CorruptStore, match="rows that the block does not have"):
            reader.read("a", 0, 2, np.array(rows))
    with pytest.raises(StoreError, match="no seed 3 block 0"):
        reader.read("a", 3, 0, np.arange(2))
    with pytest.raises(StoreError, match="no such array"):
        reader.read("x", 0, 0, np.arange(2))


def test_a_lost_chunk_is_an_error(store: Path) -> None:
    chunk = store / chunk_file("features.zarr/c/features", (1, 1, 0))
    good = chunk.read_bytes()
    chunk.unlink()
    try:
        with pytest.raises(CorruptStore, match="no finite features"):
            RowReader(store, 1).read("c", 1, 1, np.array([800]))
    finally:
        chunk.write_bytes(good)


def test_copies_are_read_alike(store: Path, tmp_path: Path) -> None:
    """Chunks of a copy are decoded into memory of their own."""
    values = values_of("b")
    name = "features.zarr/b/features"
    zarr_arrays.create(tmp_path, name, values.shape, (1, 64, DIM), "float16", np.nan, ZstdCodec(level=3))
    copied = arrays.read_spec(tmp_path, name, 3, "float16")
    for seed in range(SEEDS):
        write_chunk(tmp_path, name, copied, (seed, 0, 0), values[seed : seed + 1], np.nan)
    shutil.copytree(store / "features.zarr/b/stats", tmp_path / "features.zarr/b/stats")
    reader = RowReader(tmp_path, 1)
    for seed in (2, 0, 1):
        np.testing.assert_array_equal(reader.read("b", seed, 0, np.arange(40)), values[seed])
