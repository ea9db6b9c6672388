"""OME-Zarr: what is refused, chunks that are missing or lie, and its identity; pixels are in `test_contract`."""

import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
from zarr.codecs import Crc32cCodec, GzipCodec, ZstdCodec

from pipeline.slides import registry, zarr_array
from pipeline.slides.find import find_slides
from stores.errors import MppError, OptionError, ReadError, SlideError
from tests.tools.slide_formats import Picture, halved, ome_zarr

RGB: Picture = np.random.default_rng(0).integers(1, 256, (400, 512, 3), dtype=np.uint8)
CHUNKS = (1, 3, 1, 200, 256)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """NGFF 0.4 on Zarr 2."""
    return ome_zarr("a", 2, compressors=[numcodecs.Zlib()])(tmp_path, halved(RGB, 2))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """NGFF 0.5 on Zarr 3."""
    return ome_zarr("b", 3, compressors=[ZstdCodec()])(tmp_path, halved(RGB, 2))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def multiscale(path: Path, change: Callable[[Any], object]) -> None:
    edit(path / ".zattrs", lambda content: change(content["multiscales"][0]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["datasets"][1].update(path="../b"), "which is no folder below it"),
        (lambda m: m["datasets"][1].update(path="0/../../b"), "which is no folder below it"),
        (lambda m: m["datasets"][1].update(path="/etc"), "which is no folder below it"),
        (lambda m: m["datasets"][1].update(path="x"), "array x: is missing"),
        (lambda m: m["datasets"].reverse(), "levels are one picture in falling sizes"),
        (lambda m: m.update(datasets=[]), "0 levels; 1 to 32"),
        (lambda m: m["axes"][1].update(name="z"), "axes t, z, z, y, x"),
        (lambda m: m["axes"].pop(), "does not open"),
        (lambda m: m.pop("axes"), "does not open"),
    ],
)
def test_an_image_that_is_refused(old: Path, change: Callable[[Any], object], match: str) -> None:
    multiscale(old, change)
    with pytest.raises(SlideError, match=match) as caught:
        registry.open_slide(old)
    assert str(caught.value).startswith("a.zarr: ")
    assert str(old.parent) not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("dtype", "<u2", "values of type '<u2'; 8-bit RGB"),
        ("shape", [1, 4, 1, 400, 512], "t 1, c 4, z 1, y 400, x 512; 8-bit RGB is read"),
        ("shape", [1, 3, 5, 400, 512], "c 3, z 5"),
        ("shape", [1, 3, 1, 400, 1 << 40], "shape"),
        ("shape", [1, 3, 1, 400, "512"], "shape"),
        ("chunks", [1, 3, 1, 1 << 20, 1 << 20], "each may have 256 MiB"),
        ("chunks", [1, 3, 1, 0, 256], "in chunks"),
        ("compressor", {"id": "pickle"}, "codec 'pickle'; read are zstd"),
        ("filters", [{"id": "delta"}], "filters or column order"),
        ("order", "F", "filters or column order"),
        ("dimension_separator", "/../", "shape"),
        ("fill_value", 1e9, "of fill"),
    ],
)
def test_an_array_that_is_refused(old: Path, key: str, value: object, match: str) -> None:
    edit(old / "0" / ".zarray", lambda content: content.update({key: value}))
    with pytest.raises(SlideError, match=match):
        registry.open_slide(old)


def test_codecs_of_zarr_3_are_from_a_list(new: Path) -> None:
    edit(new / "0" / "zarr.json", lambda c: c["codecs"].insert(0, {"name": "transpose", "configuration": {}}))
    with pytest.raises(SlideError, match=r"codecs .*transpose.*; read are bytes, at most one compressor"):
        registry.open_slide(new)


def test_channels_of_fluorescence_are_no_rgb(old: Path) -> None:
    colours = ["0000FF", "00FF00", "FF0000"]
    edit(old / ".zattrs", lambda c: c.update(omero={"channels": [{"color": colour} for colour in colours]}))
    with pytest.raises(SlideError, match="three channels of the colours 0000FF, 00FF00, FF0000, so no RGB"):
        registry.open_slide(old)
    edit(old / ".zattrs", lambda c: c["omero"]["channels"].reverse())
    registry.open_slide(old).close()


@pytest.mark.parametrize("unit", [None, "pixel"])
def test_a_scale_without_a_unit_is_no_mpp(old: Path, unit: str | None) -> None:
    multiscale(old, lambda m: [axis.update(unit=unit) for axis in m["axes"][3:]])
    with (
        registry.open_slide(old) as file,
        pytest.raises(MppError, match=r"no mpp; .*scale of x 500 (pixel|without a unit)"),
    ):
        file.inspect("a")


def test_a_missing_chunk_is_fill_and_was_never_scanned(new: Path) -> None:
    (new / "0" / "c" / "0" / "0" / "0" / "0" / "1").unlink()
    with registry.open_slide(new) as file:
        found, scanned = file.region(0, 0, 0, 512, 400), file.scanned(0, 0, 0, 512, 400)
    assert (found[:200, 256:] == 0).all()
    assert not scanned[:200, 256:].any()
    assert scanned.sum() == 400 * 512 - 200 * 256
    np.testing.assert_array_equal(found[scanned], RGB[scanned])


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ({"id": "zlib", "level": 1}, numcodecs.Zlib().encode(bytes(1 << 24))),
        ({"id": "gzip", "level": 1}, numcodecs.GZip().encode(bytes(1 << 24))),
        ({"id": "zstd", "level": 1}, numcodecs.Zstd().encode(bytes(1 << 24))),
        ({"id": "blosc"}, numcodecs.Blosc().encode(bytes(1 << 24))),
        ({"id": "lz4"}, numcodecs.LZ4().encode(bytes(1 << 24))),
        ({"id": "zstd", "level": 1}, numcodecs.Zstd().encode(bytes(100))),
        ({"id": "blosc"}, b"\2\1\1\1" + bytes(60)),
        (None, bytes(10)),
    ],
)
def test_a_chunk_of_another_size(old: Path, codec: Any, data: bytes) -> None:
    edit(old / "0" / ".zarray", lambda content: content.update(compressor=codec))
    (old / "0" / "0.0.0.0.0").write_bytes(data)
    with registry.open_slide(old) as file, pytest.raises(ReadError, match=r"a\.zarr: tile 0,0 of level 0"):
        file.region(0, 0, 0, 8, 8)


def test_no_link_is_followed(old: Path, tmp_path: Path) -> None:
    chunk = old / "0" / "0.0.0.0.0"
    chunk.rename(tmp_path / "secret")
    chunk.symlink_to(tmp_path / "secret")
    with registry.open_slide(old) as file:
        with pytest.raises(ReadError, match="is a symbolic link"):
            file.region(0, 0, 0, 8, 8)
        with pytest.raises(SlideError, match="is a symbolic link"):
            file.inspect("a")


def test_a_damaged_index_of_a_shard(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"shards": (1, 3, 1, 400, 512), "compressors": [GzipCodec()]}
    path = ome_zarr("s", 3, CHUNKS, **shape)(tmp_path, halved(RGB, 1))
    shard = path / "0" / "c" / "0" / "0" / "0" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[-20] ^= 1
    shard.write_bytes(raw)
    with registry.open_slide(path) as file, pytest.raises(ReadError, match="index of its shard is damaged"):
        file.region(0, 0, 0, 8, 8)


def test_an_index_that_lies(tmp_path: Path) -> None:
    """Of 2 x 2 chunks; its checksum is right."""
    shape: dict[str, Any] = {"shards": (1, 3, 1, 400, 512), "compressors": [GzipCodec()]}
    path = ome_zarr("s", 3, CHUNKS, **shape)(tmp_path, halved(RGB, 1))
    shard = path / "0" / "c" / "0" / "0" / "0" / "0" / "0"
    whole = shard.read_bytes()
    for place in ((0, 1 << 40), (len(whole) - 4, 100)):
        table = struct.pack("<QQ", *place) + whole[-52:-4]
        shard.write_bytes(whole[:-68] + table + google_crc32c.value(table).to_bytes(4, "little"))
        with (
            registry.open_slide(path) as file,
            pytest.raises(ReadError, match=f"{place[1]} bytes at {place[0]} of its shard"),
        ):
            file.region(0, 0, 0, 8, 8)


@pytest.mark.parametrize(("kept_bytes", "n_reads"), [(1 << 24, 4), (0, 8)])
def test_the_index_of_a_shard_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, n_reads: int
) -> None:
    """Of 2 x 2 shards of 2 x 2 chunks, and again once the file is another. Row by row, two shards take turns."""
    shape: dict[str, Any] = {"shards": (1, 3, 1, 200, 256), "compressors": [GzipCodec()]}
    path = ome_zarr("s", 3, (1, 3, 1, 100, 128), **shape)(tmp_path, halved(RGB, 1))
    read: list[int] = []

    class Counted(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            read.append(size or 0)
            return super().read(size)

    monkeypatch.setattr(zarr_array, "_KEPT_BYTES", kept_bytes)
    # the index has 68 bytes
    monkeypatch.setattr(zarr_array, "open_regular", lambda file, *_: Counted(io.FileIO(file)))
    with registry.open_slide(path) as file:
        np.testing.assert_array_equal(file.region(0, 0, 0, 512, 400), RGB)
        assert read.count(68) == n_reads
        assert len(read) == n_reads + 16
    other = ome_zarr("t", 3, (1, 3, 1, 100, 128), **shape)(tmp_path, halved(RGB // 64, 1))
    with registry.open_slide(path) as file:
        np.testing.assert_array_equal(file.region(0, 0, 0, 128, 100), RGB[:100, :128])
        shutil.rmtree(path / "0" / "c")
        shutil.copytree(other / "0" / "c", path / "0" / "c")
        np.testing.assert_array_equal(file.region(128, 0, 0, 128, 100), RGB[:100, 128:256] // 64)


def test_a_chunk_with_a_flipped_bit(tmp_path: Path) -> None:
    path = ome_zarr("s", 3, compressors=[Crc32cCodec()])(tmp_path, halved(RGB, 1))
    chunk = path / "0" / "c" / "0" / "0" / "0" / "0" / "0"
    raw = bytearray(chunk.read_bytes())
    raw[100] ^= 1
    chunk.write_bytes(raw)
    with registry.open_slide(path) as file, pytest.raises(ReadError, match="its crc32c differs"):
        file.region(0, 0, 0, 8, 8)


def test_the_identity_is_that_of_the_pixels(old: Path, tmp_path: Path) -> None:
    first = registry.inspect("a", old, 0.5).fingerprint
    copy = Path(shutil.copytree(old, tmp_path / "other" / "c.zarr"))
    edit(copy / ".zattrs", lambda content: content.update(note="x"))
    (copy / "labels").mkdir()
    (copy / "labels" / ".zgroup").write_text("{}")
    assert registry.inspect("c", copy, 0.5).fingerprint == first
    chunk = copy / "1" / "0.0.0.0.0"
    chunk.write_bytes(chunk.read_bytes() + b"\0")
    assert registry.inspect("c", copy, 0.5).fingerprint != first


def test_other_zarr_folders_are_no_slides(store: Path, old: Path, tmp_path: Path) -> None:
    """Such as a store's own features and pixels; they are not searched either."""
    shutil.copytree(store, tmp_path / "in" / "store")
    with pytest.raises(OptionError, match="no slide found"):
        find_slides([tmp_path / "in"])
    old.rename(tmp_path / "in" / "a.ome.zarr")
    (tmp_path / "in" / "a.ome.zarr" / "0" / "b.svs").touch()
    assert list(find_slides([tmp_path / "in"])) == ["a.ome"]
    with pytest.raises(SlideError, match=r"features\.zarr: not a slide format"):
        registry.open_slide(tmp_path / "in" / "store" / "features.zarr")
