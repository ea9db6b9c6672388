"""Reading tiles without OpenSlide: the same pixels, or OpenSlide."""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.demo.synthetic_slides import paint_slide
from pipeline.slides import tiff as tiff_tiles
from pipeline.slides.openslide_reader import OpenSlidePatches
from pipeline.slides.slide import ReadPlan
from pipeline.slides.tiff import TileReader
from pipeline.slides.tiff_codecs import DecodeError, Deflate, Jpeg, Jpeg2000
from stores.errors import ReadError

Pixels = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 1376, 1024
KINDS: dict[str, dict[str, Any]] = {
    "jpeg of colour differences": {"compression": "jpeg", "subsampling": (2, 2)},
    "jpeg at full resolution": {"compression": "jpeg", "subsampling": (1, 1)},
    "deflate": {"compression": "deflate"},
    "deflate of differences": {"compression": "deflate", "predictor": True},
}
REAL = ("slides/CMU-1-Small-Region.svs", "slides/TCGA-CR-7395-01A-01-TS1.svs")


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    tiff_tiles._prove.cache_clear()
    tiff_tiles._level.cache_clear()


@pytest.fixture(scope="module")
def painted() -> Pixels:
    return paint_slide(7, WIDTH, HEIGHT)[0]


def write(path: Path, pixels: Pixels, tile_px: int = 240, levels: int = 2, **how: Any) -> Path:
    """A pyramid of tiles that OpenSlide opens as generic TIFF."""
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            small = cv2.resize(pixels, None, fx=0.5**level, fy=0.5**level, interpolation=cv2.INTER_AREA)
            how |= {"photometric": "rgb", "tile": (tile_px, tile_px), "metadata": None}
            tiff.write(np.asarray(small), subfiletype=int(level > 0), **how)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, painted: Pixels) -> Path:
    path = tmp_path_factory.mktemp("tiles")
    for number, how in enumerate(KINDS.values()):
        write(path / f"{number}.tiff", painted, **how)
    return path


def by_openslide(path: Path, level: int, x_px0: int, y_px0: int, width: int, height: int) -> Pixels:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((x_px0, y_px0), level, (width, height)).convert("RGB"))


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=list(KINDS))
@settings(max_examples=20, deadline=None)
@given(
    level=st.integers(0, 1),
    x=st.integers(0, WIDTH // 2 - 20),
    y=st.integers(0, HEIGHT // 2 - 20),
    width=st.integers(1, 600),
    height=st.integers(1, 600),
)
def test_regions_are_those_of_openslide(
    folder: Path, kind: int, level: int, x: int, y: int, width: int, height: int
) -> None:
    path = folder / f"{kind}.tiff"
    with reading(path, level) as reader:
        x_px0, y_px0 = x << level, y << level
        found = reader.read(x_px0, y_px0, width, height)
        if x + width > WIDTH >> level or y + height > HEIGHT >> level:
            assert found is None
        else:
            np.testing.assert_array_equal(found, by_openslide(path, level, x_px0, y_px0, width, height))


class reading:
    """The reader of a level, which must be there, while a block runs."""

    def __init__(self, path: Path, level: int = 0) -> None:
        found = TileReader.open(path, level)
        assert found is not None
        self.reader = found

    def __enter__(self) -> TileReader:
        return self.reader

    def __exit__(self, *error: object) -> None:
        self.reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_every_patch_of_a_real_slide_is_openslides(shared: Path, name: str) -> None:
    path = shared / name
    with openslide.OpenSlide(path) as slide, reading(path) as reader:
        width, height = slide.dimensions
        for y in range(0, height - 256, 256):
            for x in range(0, width - 256, 256):
                expected = np.asarray(slide.read_region((x, y), 0, (256, 256)).convert("RGB"))
                np.testing.assert_array_equal(reader.read(x, y, 256, 256), expected)


def test_between_pixels_openslide_reads(folder: Path, painted: Pixels, tmp_path: Path, shared: Path) -> None:
    with reading(folder / "0.tiff", 1) as reader:
        assert reader.read(64, 64, 20, 20) is not None
        assert reader.read(65, 64, 20, 20) is None
        assert reader.read(64, 65, 20, 20) is None
        assert reader.read(-2, 64, 20, 20) is None
    # 1783 rows are not half of 3567
    assert TileReader.open(shared / REAL[1], 1) is None


def test_a_level_of_no_whole_downsample_is_openslides(tmp_path: Path) -> None:
    """Even where a comparison could not tell, for all of it has one colour."""
    flat = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    for width, expected in ((WIDTH // 2, True), (WIDTH // 2 - 1, False)):
        with tifffile.TiffWriter(tmp_path / "flat.tiff") as tiff:
            for level in (flat, flat[: HEIGHT // 2, :width]):
                tiff.write(
                    level, photometric="rgb", tile=(240, 240), compression="deflate", metadata=None,
                    subfiletype=int(level is not flat),
                )  # fmt: skip
        reader = TileReader.open(tmp_path / "flat.tiff", 1)
        assert (reader is not None) == expected
        if reader is not None:
            reader.close()


def test_pages_that_are_not_for_us(painted: Pixels, tmp_path: Path) -> None:
    path = write(tmp_path / "lzw.tiff", painted, compression="lzw")
    assert TileReader.open(path, 0) is None
    path = write(tmp_path / "plain.tiff", painted)
    assert TileReader.open(path, 0) is None
    path = write(tmp_path / "large.tiff", painted, compression="deflate", tile_px=2064)
    assert TileReader.open(path, 0) is None
    assert TileReader.open(tmp_path / "absent.tiff", 0) is None
    (tmp_path / "text.tiff").write_text("not a TIFF")
    assert TileReader.open(tmp_path / "text.tiff", 0) is None


def test_two_pages_of_one_size_are_ambiguous(painted: Pixels, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "two.tiff") as tiff:
        for number in range(2):
            tiff.write(
                painted if number == 0 else 255 - painted, photometric="rgb", tile=(240, 240), compression="deflate",
                subfiletype=number, metadata=None,
            )  # fmt: skip
    assert TileReader.open(tmp_path / "two.tiff", 0) is None


def test_a_decoder_that_disagrees_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Jpeg.decode

    def off_by_one(self: Jpeg, data: bytes, tile: Pixels) -> None:
        true(self, data, tile)
        tile[100, 100, 1] ^= 1

    monkeypatch.setattr(Jpeg, "decode", off_by_one)
    assert TileReader.open(folder / "0.tiff", 0) is None
    with reading(folder / "2.tiff"):
        pass


def test_a_tile_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    true = TileReader._data

    def data(self: TileReader, index: int, size: int) -> bytes:
        decoded.append(index)
        return true(self, index, size)

    with reading(folder / "0.tiff") as reader:
        monkeypatch.setattr(TileReader, "_data", data)
        for y in range(0, 768, 256):
            for x in range(0, 1024, 256):
                assert reader.read(x, y, 256, 256) is not None
        assert len(decoded) == len(set(decoded)) == 4 * 5


def test_memory_for_tiles_is_bounded(
    painted: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_tiles, "_CACHE_BYTES", 7 * 3 * 64 * 64)
    path = write(tmp_path / "small.tiff", painted, tile_px=64, compression="deflate")
    with reading(path) as reader:
        for x in range(0, 1024, 96):
            assert reader.read(x, 0, 96, 96) is not None
        assert len(reader._kept) == 7


def tile_at(path: Path, index: int, page: int = 0) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tiff:
        found: Any = tiff.pages[page]
        return found.dataoffsets[index], found.databytecounts[index]


def copied(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


def damages(data: bytes) -> Iterator[bytes]:
    """What disks and networks do to a tile."""
    rng = np.random.default_rng(len(data))
    for _ in range(12):
        changed = bytearray(data)
        for at in rng.integers(2, len(data), 3):
            changed[at] ^= int(rng.integers(1, 256))
        yield bytes(changed)
    for cut in rng.integers(2, len(data), 6):
        yield data[:cut] + bytes(len(data) - cut)
    yield bytes(len(data))
    yield data[: len(data) // 2] + b"\xff\xd9" + data[len(data) // 2 + 2 :]


@pytest.mark.parametrize("name", [*map(str, range(len(KINDS))), *REAL])
def test_where_openslide_refuses_so_do_we(folder: Path, tmp_path: Path, name: str, request: Any) -> None:
    source = request.getfixturevalue("shared") / name if "/" in name else folder / f"{name}.tiff"
    path = copied(source, tmp_path / "damaged.tiff")
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        across, side = -(-page.imagewidth // page.tilewidth), page.tilewidth
    offset, size = tile_at(path, 2 * across + 2)
    with reading(path) as reader, path.open("r+b") as file:
        file.seek(offset)
        data = file.read(size)
        refused = 0
        for damaged in damages(data):
            file.seek(offset)
            file.write(damaged)
            file.flush()
            try:
                expected = by_openslide(path, 0, 2 * side, 2 * side, side, side)
            except openslide.OpenSlideError:
                refused += 1
                expected = None
            found = reader.read(2 * side, 2 * side, side, side)
            if expected is None:
                assert found is None
            elif found is not None:
                np.testing.assert_array_equal(found, expected)
        assert refused > 1 or "TCGA" in name  # OpenJPEG makes something of nearly everything


def test_a_patch_of_a_damaged_tile_is_a_read_error(folder: Path, tmp_path: Path) -> None:
    path = copied(folder / "0.tiff", tmp_path / "a.tiff")
    offset, size = tile_at(path, 8)
    with path.open("r+b") as file:
        file.seek(offset + size // 2)
        file.write(b"\xff\xd9")
    reader = OpenSlidePatches(path, ReadPlan(0, 240, 240, 240, 0.5))
    with pytest.raises(ReadError, match=r"a\.tiff at 480,240: "):
        reader.read(480, 240)
    assert reader.read(720, 240).shape == (240, 240, 3)
    reader.close()


def change_tag(path: Path, tag: int, change: Callable[[list[int]], list[int]]) -> None:
    """Write other values of a tag of the first page over the old ones."""
    with tifffile.TiffFile(path) as tiff:
        found: Any = tiff.pages[0]
        entry = found.tags[tag]
        values = change(list(np.atleast_1d(entry.value).tolist()))
        code = {3: "H", 4: "I"}[entry.dtype]
        at = entry.valueoffset
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(f"<{len(values)}{code}", *values))


def test_tiles_that_were_never_scanned_are_openslides(folder: Path, tmp_path: Path) -> None:
    path = copied(folder / "0.tiff", tmp_path / "a.tiff")
    change_tag(path, 325, lambda sizes: [0 if i == 8 else size for i, size in enumerate(sizes)])
    with reading(path) as reader:
        assert reader.read(480, 240, 240, 240) is None
        assert reader.read(720, 240, 240, 240) is not None


@pytest.mark.parametrize("tag", [324, 325])
def test_absurd_places_and_sizes_of_tiles_take_no_memory(folder: Path, tmp_path: Path, tag: int) -> None:
    path = copied(folder / "2.tiff", tmp_path / "a.tiff")
    change_tag(path, tag, lambda old: [0xFFFFFFF0 if i == 8 else value for i, value in enumerate(old)])
    reader = TileReader.open(path, 0)
    if reader is not None:  # the absurd tile may be among those that are compared
        assert reader.read(480, 240, 240, 240) is None
        reader.close()


def test_a_jpeg_that_claims_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    path = copied(folder / "0.tiff", tmp_path / "a.tiff")
    offset, size = tile_at(path, 8)
    with reading(path) as reader, path.open("r+b") as file:
        file.seek(offset)
        data = file.read(size)
        at = data.index(b"\xff\xc0")
        for height in (0xFFFF, 120):
            file.seek(offset + at + 5)
            file.write(height.to_bytes(2))
            file.flush()
            assert reader.read(480, 240, 240, 240) is None


def test_a_deflate_bomb_is_cut_short(folder: Path, tmp_path: Path) -> None:
    import zlib

    tile = np.empty((16, 16, 3), np.uint8)
    bomb = zlib.compress(bytes(1 << 24))
    with pytest.raises(DecodeError, match="769 bytes or more, 768 expected"):
        Deflate(1).decode(bomb, tile)
    whole = zlib.compress(bytes(tile.nbytes))
    Deflate(1).decode(whole, tile)
    with pytest.raises(DecodeError):  # every pixel is there, the checksum is not
        Deflate(1).decode(whole[:-2], tile)


def test_a_jpeg_2000_tile_with_another_header_is_refused() -> None:
    import imagecodecs

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0, reversible=True))
    codec, tile = Jpeg2000(), np.empty((64, 64, 3), np.uint8)
    with pytest.raises(DecodeError, match="unlike those that were compared"):
        codec.decode(data, tile)
    codec.trust(data[:200])
    codec.decode(data, tile)
    np.testing.assert_array_equal(tile, pixels)
    larger = bytearray(data)
    larger[8] = 1  # Xsiz of 2**24 + 64
    with pytest.raises(DecodeError, match="unlike those that were compared"):
        codec.decode(bytes(larger), tile)


def test_the_file_is_closed(folder: Path) -> None:
    def handles() -> int:
        names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return sum(name.startswith(str(folder)) for name in names)

    before = handles()
    reader = TileReader.open(folder / "0.tiff", 0)
    assert reader is not None
    assert handles() == before + 1
    reader.close()
    assert handles() == before
