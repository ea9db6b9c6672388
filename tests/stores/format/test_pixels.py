"""Patches kept in the store."""

from pathlib import Path

import numpy as np
import pytest
from zarr.codecs import ZstdCodec

from stores.errors import CorruptStore, StoreError
from stores.format import pixels
from tests.tools.zarr_arrays import create

PATCHES = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)


def test_round_trip_in_blocks(tmp_path: Path) -> None:
    assert not pixels.has_pixels(tmp_path, "a")
    pixels.create_slide(tmp_path, "a", 70, 16)
    pixels.write_rows(tmp_path, "a", 64, PATCHES[64:])
    pixels.write_rows(tmp_path, "a", 0, PATCHES[:64])
    pixels.create_slide(tmp_path, "a", 70, 16)
    found = pixels.open_pixels(tmp_path, "a")
    assert found.chunk_rows == 32
    np.testing.assert_array_equal(np.concatenate([found.read_chunk(i) for i in range(3)]), PATCHES)


def test_no_chunk_gets_two_writers(tmp_path: Path) -> None:
    pixels.create_slide(tmp_path, "a", 70, 16)
    for start, stop in ((0, 40), (8, 40), (64, 69)):
        with pytest.raises(StoreError, match="whole chunks"):
            pixels.write_rows(tmp_path, "a", start, PATCHES[start:stop])


def test_another_shape_is_refused(tmp_path: Path) -> None:
    pixels.create_slide(tmp_path, "a", 70, 16)
    with pytest.raises(CorruptStore, match="expected"):
        pixels.create_slide(tmp_path, "a", 71, 16)


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    pixels.create_slide(tmp_path, "a", 70, 16)
    pixels.write_rows(tmp_path, "a", 0, PATCHES)
    chunk = tmp_path / "pixels.zarr/a/c/1/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CorruptStore, match="rows 32-63"):
        pixels.open_pixels(tmp_path, "a").read_chunk(1)


def test_a_lost_chunk_is_named_and_no_black_patches(tmp_path: Path) -> None:
    """Zarr gives the fill value for it."""
    pixels.create_slide(tmp_path, "a", 70, 16)
    pixels.write_rows(tmp_path, "a", 0, PATCHES)
    (tmp_path / "pixels.zarr/a/c/1/0/0/0").unlink()
    with pytest.raises(CorruptStore, match=r"rows 32-63: .*pixels\.zarr/a/c/1/0/0/0 is missing"):
        pixels.open_pixels(tmp_path, "a").read_chunk(1)


def test_chunks_that_are_parts_of_patches_are_refused(tmp_path: Path) -> None:
    create(tmp_path, "pixels.zarr/a", (70, 16, 16, 3), (32, 8, 16, 3), "uint8", 0, ZstdCodec(level=3))
    with pytest.raises(
        CorruptStore, match=r"chunks \(32, 8, 16, 3\) do not hold whole patches of \(16, 16, 3\)"
    ):
        pixels.open_pixels(tmp_path, "a")
