"""OME-TIFF and TIFF in strips: what is refused, and that no header costs memory; pixels are in `test_contract`."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from pipeline.slides import registry
from pipeline.slides.openslide_reader import OpenSlideReader
from pipeline.slides.pyramid import Facts, PyramidFile, downsamples_of
from pipeline.slides.slide import sha256_fingerprint
from pipeline.slides.tiff_reader import TiffReader
from stores.errors import ReadError, SlideError
from tests.tools.slide_formats import Picture, halved, ome_tiff

RGB: Picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def with_xml(path: Path, change: Callable[[str], str]) -> None:
    """Write an OME-TIFF and change its XML."""
    ome_tiff("plain", tile=(128, 128))(path.parent, halved(RGB, 2)).rename(path)
    with tifffile.TiffFile(path) as tiff:
        text = str(tiff.pages[0].description)  # type: ignore[union-attr]
    tifffile.tiffcomment(path, change(text).encode())


def pixels_in(text: str, uuid: str) -> str:
    """XML of a file with the identity ``urn:uuid:a``, that says of its pixels which file they are in."""
    place = f'<TiffData IFD="0"><UUID FileName="b.ome.tif">{uuid}</UUID></TiffData>'
    return re.sub('(?<=UUID=")[^"]*', "urn:uuid:a", re.sub("<TiffData[^>]*/>", place, text), count=1)


def test_a_file_may_have_been_renamed(tmp_path: Path) -> None:
    """As Bio-Formats writes it, the XML has the file's name and its identity; the latter stays."""
    path = tmp_path / "a.ome.tif"
    with_xml(path, lambda text: pixels_in(text, "urn:uuid:a"))
    with registry.open_slide(path) as file:
        np.testing.assert_array_equal(file.region(0, 0, 0, 400, 300), RGB)


def test_openslide_sees_one_level_of_it_and_no_mpp(tmp_path: Path) -> None:
    """Why there is a reader of OME-TIFF."""
    path = ome_tiff("a", tile=(128, 128))(tmp_path, halved(RGB))
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 1
        assert openslide.PROPERTY_NAME_MPP_X not in slide.properties
    info = registry.inspect("a", path)
    assert (len(info.downsamples), info.mpp) == (3, 0.5)
    assert isinstance(registry.reader_of(path), TiffReader)
    # a store that was made before there was a reader goes on with OpenSlide
    assert isinstance(registry.reader_of(path, "quickhash-1:ab"), OpenSlideReader)
    assert isinstance(registry.reader_of(path, info.fingerprint), TiffReader)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.replace("<OME", "<!DOCTYPE x [<!ENTITY a 'b'>]><OME", 1), "has a document type"),
        (lambda t: t.replace('SizeZ="1"', 'SizeZ="7"'), "7 focal planes at 1 times; one of each is read"),
        (lambda t: t.replace('SizeT="1"', 'SizeT="2"'), "1 focal planes at 2 times"),
        (lambda t: t.replace("<Pixels", "<Pickles").replace("</Pixels", "</Pickles"), "describes no image"),
        (lambda t: t.replace('IFD="0"', 'IFD="5000"'), "the image is page 5000"),
        (lambda t: t.replace("<Pixels", "<Pixels <", 1), "does not open"),
        (
            lambda t: pixels_in(t, "urn:uuid:b"),
            "some of its pixels are in b.ome.tif; write the image into one file",
        ),
    ],
)
def test_xml_that_is_refused(tmp_path: Path, change: Callable[[str], str], match: str) -> None:
    path = tmp_path / "a.ome.tif"
    with_xml(path, change)
    with pytest.raises(SlideError, match=match) as caught:
        registry.open_slide(path)
    assert str(caught.value).startswith("a.ome.tif: ")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "options", "match"),
    [
        (np.zeros((3, 64, 64), np.uint8), {"photometric": "minisblack"}, "grey, 1 sample a pixel"),
        (RGB.astype(np.uint16), {"photometric": "rgb"}, "RGB, 3 samples a pixel, 16 bits a sample"),
        (RGB, {"photometric": "rgb", "compression": "packbits"}, "compression PACKBITS.*; none, LZW, JPEG"),
    ],
)
def test_pages_that_are_refused(tmp_path: Path, image: Any, options: dict[str, Any], match: str) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, image, **options)
    with pytest.raises(SlideError, match=match):
        registry.open_slide(path)


def test_the_largest_image_is_the_slide(tmp_path: Path) -> None:
    """As scanners' exports have it: a macro photograph first."""
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(RGB[:100, :150], photometric="rgb", metadata={"axes": "YXS"})
        writer.write(
            RGB, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        )
    with registry.open_slide(path) as file:
        info = file.inspect("a")
        assert (info.width_px0, info.height_px0, info.mpp) == (400, 300, 0.25)
        np.testing.assert_array_equal(file.region(0, 0, 0, 400, 300), RGB)


def _patched(path: Path, tag: int, value: int) -> None:
    """Overwrite the value of a tag of the first page, one number of 32 bits."""
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].tags[tag]  # type: ignore[union-attr]
        offset, kind = place.valueoffset, place.dtype
    raw = bytearray(path.read_bytes())
    form = "<H" if int(kind) == 3 else "<I"
    struct.pack_into(form, raw, offset, value)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("tag", "value"), [(256, 65_000), (257, 65_000), (322, 65_520), (323, 65_520), (324, 1 << 30)]
)
def test_sizes_that_are_lies(tmp_path: Path, tag: int, value: int) -> None:
    """Sides of the image or of tiles, and places of tiles: an error, and no memory for them."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, RGB[:128, :128], photometric="rgb", tile=(128, 128), compression="zlib")
    _patched(path, tag, value)
    with pytest.raises(SlideError), registry.open_slide(path) as file:
        file.region(0, 0, 0, 128, 128)


def test_tiles_and_their_bytes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, RGB[:64, :64], photometric="rgb", tile=(64, 64))
    path.write_bytes(path.read_bytes() + bytes(200_000))
    _patched(path, 325, 150_000)
    with (
        registry.open_slide(path) as file,
        pytest.raises(ReadError, match=r"\(150000 bytes for 12288\)"),
    ):
        file.region(0, 0, 0, 64, 64)
    for tag in (322, 323):
        _patched(path, tag, 16_384)
    with pytest.raises(SlideError, match="strips of 16384x16384 px, and each may have 256 MiB"):
        registry.open_slide(path)


def test_a_smaller_page_of_another_kind_is_no_level(tmp_path: Path) -> None:
    """Such as a mask of the slide."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, photometric="rgb", rowsperstrip=50)
        writer.write(RGB[::2, ::2, 0], photometric="minisblack", rowsperstrip=50, subfiletype=1)
        writer.write(RGB[::4, ::4], photometric="rgb", rowsperstrip=50, subfiletype=1)
    assert registry.inspect("a", path, 0.5).level_sizes_px == ((400, 300), (100, 75))


def test_a_tile_that_is_too_small_is_an_error() -> None:
    level = SimpleNamespace(
        size_px=(64, 64), tile_px=(64, 64), tile=lambda *_: np.zeros((32, 64, 3), np.uint8)
    )
    with (
        PyramidFile(Path("a"), [level], Facts("x", str, None, {})) as file,
        pytest.raises(ReadError, match="a: tile 0,0 of level 0 is too small"),
    ):
        file.region(0, 0, 0, 64, 64)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "jpeg"])
def test_a_tile_that_decodes_to_another_size(tmp_path: Path, compression: str) -> None:
    small, large = tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"
    for path, side in ((small, 64), (large, 256)):
        flat = np.full((side, side, 3), 7, np.uint8)
        tifffile.imwrite(path, flat, photometric="rgb", tile=(side, side), compression=compression)
    with tifffile.TiffFile(large) as tiff:
        page: Any = tiff.pages[0]
        data = large.read_bytes()[page.dataoffsets[0] :][: page.databytecounts[0]]
    place = small.stat().st_size
    small.write_bytes(small.read_bytes() + data)
    _patched(small, 324, place)
    _patched(small, 325, len(data))
    with registry.open_slide(small) as file, pytest.raises(ReadError, match="tile 0,0 of level 0 cannot be"):
        file.region(0, 0, 0, 64, 64)


def test_a_tile_that_was_never_written_is_background(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, RGB[:128, :128], photometric="rgb", tile=(128, 128))
    _patched(path, 325, 0)
    with registry.open_slide(path) as file:
        assert (file.region(0, 0, 0, 128, 128) == 255).all()
        assert not file.scanned(0, 0, 0, 128, 128).any()


def test_odd_sizes_have_whole_downsamples() -> None:
    assert downsamples_of([(1001, 701), (501, 351), (250, 175)]) == (1.0, 2.0, 4.0)


def test_a_fingerprint_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    first = sha256_fingerprint(path)
    path.write_bytes(b"abcd")
    assert sha256_fingerprint(path) != first
