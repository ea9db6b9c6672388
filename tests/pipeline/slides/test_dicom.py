"""A DICOM series is one slide: whichever of its files is named, and however its files lie."""

import shutil
import struct
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.demo.synthetic_slides import write_slide
from pipeline.runtime.progress import Silent
from pipeline.slides import registry
from pipeline.slides.dicom_header import read_header
from pipeline.slides.dicom_reader import DicomReader
from pipeline.slides.find import find_slides
from pipeline.slides.sources import open_slide_source
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from stores.errors import OptionError, SlideError
from stores.format import manifest, recipe
from tests.tools import dicom
from tests.tools.dicom import Image, write_instance, write_series

ONE, TWO = "1.2.826.0.1", "1.2.826.0.2"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("image") / "a.tiff"
    write_slide(path, seed=3, width_px=1024, height_px=768)
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


@pytest.fixture(scope="module")
def two(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides as two folders of three levels and a label. Read only."""
    folder = tmp_path_factory.mktemp("dicom")
    write_series(folder / "s1", "one", image, ONE)
    write_series(folder / "s2", "two", image[::-1], TWO)
    return folder


def test_a_folder_of_a_series_is_one_slide(two: Path, tmp_path: Path, image: Image) -> None:
    store = tmp_path / "s"
    tile([two], store, TileOptions(), Silent())
    rows = manifest.read_slides(store)
    assert [(row["slide_id"], row["vendor"], row["mpp"], row["status"]) for row in rows] == [
        ("s1", "dicom", 0.5, "ok"),
        ("s2", "dicom", 0.5, "ok"),
    ]
    assert len({row["fingerprint"] for row in rows}) == 2
    path = find_slides([two])["s1"]
    with registry.open_slide(path) as file:
        assert file.inspect("s1").level_sizes_px == ((1024, 768), (512, 384), (256, 192))
        for level, step in enumerate((1, 2, 4)):
            found = file.region(256, 128, level, 128, 64)
            expected = image[128 : 128 + 64 * step : step, 256 : 256 + 128 * step : step]
            assert np.abs(found.astype(int) - expected).max() <= 6  # JPEG


@pytest.mark.parametrize("name", ["one_level0", "one_level2", "one_label"])
def test_whichever_file_is_named(two: Path, name: str) -> None:
    file = two / "s1" / f"{name}.dcm"
    slides = find_slides([file])
    assert slides == {"s1": two / "s1" / "one_level0.dcm"}
    assert slides == find_slides([two / "s1"]) == find_slides([file, two / "s1"])
    assert registry.inspect("x", file).fingerprint == registry.inspect("x", slides["s1"]).fingerprint


def test_series_in_one_folder_go_by_their_uid(two: Path, tmp_path: Path) -> None:
    for path in two.rglob("*.dcm"):
        shutil.copy(path, tmp_path)
    assert list(find_slides([tmp_path])) == [ONE, TWO]
    assert list(find_slides([tmp_path / "two_label.dcm"])) == [TWO]


def test_folders_of_one_name_are_told_apart(two: Path, tmp_path: Path) -> None:
    """As archives lay them out: every folder has the same name, and so have the files in it."""
    for case in ("s1", "s2"):
        for i, path in enumerate(sorted((two / case).iterdir())):
            (tmp_path / case / "DICOM").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / case / "DICOM" / f"DCM_{i}.dcm")
    both = find_slides([tmp_path])
    assert len(both) == 2
    assert all(slide_id.startswith("DICOM-") for slide_id in both)
    alone = find_slides([tmp_path / "s1"])
    assert list(alone) == ["DICOM"]
    own = {path.parts[-3]: slide_id for slide_id, path in both.items()}["s1"]
    kept = find_slides([tmp_path / "s1"], [{"slide_id": own, "file_name": "DCM_1.dcm"}])
    assert list(kept) == [own]


def test_a_series_beside_a_file_of_its_name(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "s1", tmp_path / "s1")
    (tmp_path / "s1.svs").touch()
    rows = [{"slide_id": "s1", "file_name": "one_level0.dcm"}]
    assert find_slides([tmp_path], rows)["s1"] == tmp_path / "s1" / "one_level0.dcm"


def test_a_single_file_keeps_its_own_name(two: Path, tmp_path: Path) -> None:
    shutil.copy(two / "s1" / "one_level0.dcm", tmp_path)
    assert list(find_slides([tmp_path])) == ["one_level0"]


def test_files_without_an_ending(two: Path, tmp_path: Path) -> None:
    """As archives give them out; they are found when they are named, or beside one that is."""
    for i, path in enumerate(sorted((two / "s1").iterdir())):
        shutil.copy(path, tmp_path / f"IM{i:06}")
    assert find_slides([tmp_path / "IM000002"]) == {tmp_path.name: tmp_path / "IM000001"}
    assert isinstance(registry.reader_of(tmp_path / "IM000002"), DicomReader)
    shutil.copy(two / "s1" / "one_level0.dcm", tmp_path / "one.dcm")
    assert list(find_slides([tmp_path])) == [tmp_path.name]


@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        ("ORIGINAL\\PRIMARY\\LABEL\\NONE", "SM"),
        ("ORIGINAL\\PRIMARY\\OVERVIEW\\NONE", "SM"),
        ("DERIVED\\PRIMARY\\THUMBNAIL\\RESAMPLED", "SM"),
        ("ORIGINAL\\PRIMARY\\AXIAL", "CT"),
        ("DERIVED\\PRIMARY", "SEG"),
    ],
)
def test_series_without_a_level_are_no_slides(two: Path, tmp_path: Path, kind: str, modality: str) -> None:
    write_instance(tmp_path / "other.dcm", np.full((64, 64, 3), 9, np.uint8), TWO, kind, modality=modality)
    with pytest.raises(OptionError, match="no slide found"):
        find_slides([tmp_path])
    assert list(find_slides([tmp_path / "other.dcm"])) == ["other"]  # named: it fails with a reason
    shutil.copy(two / "s1" / "one_level0.dcm", tmp_path)
    assert list(find_slides([tmp_path])) == ["one_level0"]


def test_what_cannot_be_read_is_a_slide_with_a_reason(two: Path, tmp_path: Path) -> None:
    data = (two / "s1" / "one_level0.dcm").read_bytes()
    (tmp_path / "short.dcm").write_bytes(data[:150])
    (tmp_path / "text.dcm").write_text("no DICOM")
    (tmp_path / "pipe.dcm").symlink_to("/dev/zero")
    slides = find_slides([tmp_path])
    assert list(slides) == ["short", "text"]
    for slide_id, path in slides.items():
        with pytest.raises(SlideError, match=f"{slide_id}.dcm: "):
            registry.inspect(slide_id, path)


def test_a_series_that_lost_its_largest_image(two: Path, tmp_path: Path) -> None:
    """OpenSlide's fingerprint of a series says which series it is, not how much of it is there."""
    store = tmp_path / "s"
    tile([two / "s1"], store, TileOptions(), Silent())
    (row,) = manifest.read_slides(store)
    rest = tmp_path / "rest" / "s1"
    shutil.copytree(two / "s1", rest)
    (rest / "one_level0.dcm").unlink()
    path = find_slides([rest])["s1"]
    assert registry.inspect("s1", path, 0.5).fingerprint == row["fingerprint"]
    with pytest.raises(SlideError, match=r"512x384 px, and 1024x768 when it was tiled; put all files"):
        open_slide_source(row, path, recipe.load(store).patch)


def _header(dataset: bytes, syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    return b"\0" * 128 + b"DICM" + dicom.text(0x00020010, "UI", syntax) + dataset


def _implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def test_headers_in_the_encodings_that_occur(tmp_path: Path) -> None:
    path = tmp_path / "a"
    open_sequence = struct.pack("<HHI", 8, 0x1115, 0xFFFFFFFF) + dicom.item(
        _implicit(0x00081150, b"1.2 "), True
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    plain = _implicit(0x00080008, b"A\\B\\LABEL ") + open_sequence + end
    path.write_bytes(
        _header(plain + _implicit(0x0020000E, b"1.5\0") + _implicit(0x00200010, b"x "), "1.2.840.10008.1.2")
    )
    found = read_header(path)
    assert found is not None
    assert (found.series, found.image_type, found.is_level) == ("1.5", ("A", "B", "LABEL"), False)
    # a sequence of unknown VR is written without VRs, whatever the file is
    unknown = (
        struct.pack("<HH2sHI", 9, 0x1001, b"UN", 0, 0xFFFFFFFF) + dicom.item(_implicit(1, b"ab"), True) + end
    )
    series = dicom.text(0x0020000E, "UI", "1.6") + dicom.text(0x00200010, "SH", "x")
    path.write_bytes(_header(unknown + series))
    found = read_header(path)
    assert found is not None
    assert (found.series, found.is_level) == ("1.6", True)
    for syntax in ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"):
        path.write_bytes(_header(series, syntax))
        assert read_header(path) is None
    deep = struct.pack("<HH2sHI", 8, 0x1115, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    path.write_bytes(_header(deep * 50_000))
    assert read_header(path) is None
    path.write_bytes(_header(dicom.text(0x00080005, "CS", "") * 50_000 + series))
    assert read_header(path) is None
    path.write_bytes(_header(dicom.text(0x0020000E, "UI", "1" * 2_000) + dicom.text(0x00200010, "SH", "x")))
    assert read_header(path) is None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_none_or_a_header(
    data: st.DataObject, two: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray((two / "s1" / "one_level1.dcm").read_bytes()[:700])
    for place in data.draw(st.lists(st.integers(128, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    header = read_header(path)
    assert header is None or header.series
