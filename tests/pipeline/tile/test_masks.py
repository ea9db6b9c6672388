"""Masks that a user brings: what a GeoJSON or image file may be, and what each bad one is told."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.tile.frames import Frame
from pipeline.tile.masks import MAX_JSON_BYTES, UserMask, load_user_mask
from stores.errors import OptionError, TissueError

SIZE_PX0 = (4000, 2000)
SHAPE = (100, 200)
WHOLE = Frame("slide", (0, 0), SIZE_PX0)
SCAN = Frame("bounds", (1000, 600), (2000, 800))


def _iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def _box(x: float, y: float, x_end: float, y_end: float) -> list[list[float]]:
    return [[x, y], [x_end, y], [x_end, y_end], [x, y_end], [x, y]]


def _feature(kind: str, coordinates: Any, name: str | None = None) -> dict[str, Any]:
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def _write(folder: Path, *features: Any) -> Path:
    path = folder / "s1.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def _load(folder: Path) -> npt.NDArray[np.bool_]:
    found = load_user_mask(folder, "s1", SIZE_PX0, [WHOLE], np.ones(SHAPE, np.float32))
    assert found is not None
    assert found.frame == WHOLE
    mask = found.pixels
    assert mask.dtype == np.bool_
    assert mask.shape == SHAPE
    return mask


def _boxes(*boxes: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """The boxes in the mask's pixels of 20 level-0 pixels."""
    mask = np.zeros(SHAPE, bool)
    for x, y, x_end, y_end in boxes:
        mask[y // 20 : y_end // 20, x // 20 : x_end // 20] = True
    return mask


def test_no_file_is_none(tmp_path: Path) -> None:
    scanned = np.ones(SHAPE, np.float32)
    assert load_user_mask(tmp_path, "s1", SIZE_PX0, [WHOLE], scanned) is None
    with pytest.raises(OptionError, match="no such folder"):
        load_user_mask(tmp_path / "absent", "s1", SIZE_PX0, [WHOLE], scanned)


def test_geojson_polygon_with_hole_multipolygon_and_ignored_class(tmp_path: Path) -> None:
    _write(
        tmp_path,
        _feature("Polygon", [_box(200, 200, 1200, 1200), _box(600, 600, 1000, 1000)]),
        _feature("Polygon", [_box(700, 700, 800, 800)]),  # an island in the hole
        _feature("MultiPolygon", [[_box(2000, 200, 2400, 600)], [_box(3000, 1000, 4000, 2000)]], "Tumor"),
        _feature("Polygon", [_box(3500, 1500, 4000, 2000)], "Ignore*"),
    )
    expected = _boxes((200, 200, 1200, 1200), (2000, 200, 2400, 600), (3000, 1000, 4000, 2000))
    expected &= ~_boxes((600, 600, 1000, 1000), (3500, 1500, 4000, 2000))
    expected |= _boxes((700, 700, 800, 800))
    mask = _load(tmp_path)
    # A pixel that an outline crosses may count to either side.
    edge = cv2.morphologyEx(expected.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    assert (mask == expected)[~edge].all()
    assert _iou(mask, expected) > 0.95


def test_overlapping_polygons_are_united(tmp_path: Path) -> None:
    _write(
        tmp_path,
        _feature("Polygon", [_box(200, 200, 1200, 1200)]),
        _feature("Polygon", [[[1200, 200], [2200, 1200], [1200, 1900], [200, 1200]]]),
    )
    assert _load(tmp_path)[10:60, 10:60].all()


@pytest.mark.parametrize("wrap", ["list", "feature", "json"])
def test_other_shapes_of_geojson(tmp_path: Path, wrap: str) -> None:
    feature = _feature("Polygon", [_box(200, 200, 1200, 1200)])
    content = {
        "list": [feature],
        "feature": feature,
        "json": {"type": "FeatureCollection", "features": [feature]},
    }
    (tmp_path / ("s1.json" if wrap == "json" else "s1.geojson")).write_text(json.dumps(content[wrap]))
    assert _iou(_load(tmp_path), _boxes((200, 200, 1200, 1200))) > 0.95


def test_annotation_may_run_a_little_over_the_edge(tmp_path: Path) -> None:
    _write(tmp_path, _feature("Polygon", [_box(-30, -30, 4030, 2030)]))
    assert _load(tmp_path).all()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([_feature("Point", [10, 10])], r"feature 0: geometry 'Point'; allowed: Polygon, MultiPolygon"),
        ([{"type": "Feature", "geometry": None}], "geometry None; allowed"),
        (["x"], "geometry None; allowed"),
        ([_feature("Polygon", [_box(0, 0, 9000, 10)])], r"corner \(9000, 0\) lies outside of the slide \(4000x2000\)"),
        ([_feature("Polygon", [_box(-500, 0, 10, 10)])], r"corner \(-500, 0\) lies outside"),
        ([_feature("Polygon", [[[0, 0], [5, 5]]])], "three or more"),
        ([_feature("Polygon", [[["a", 0], [5, 5], [9, 9]]])], "three or more"),
        ([_feature("Polygon", [[[0, float("nan")], [5, 5], [9, 9]]])], "three or more"),
        ([_feature("Polygon", [[[0, 1e999], [5, 5], [9, 9]]])], "three or more"),
        ([_feature("Polygon", [[{"x": 1}, {"x": 1}, {"x": 1}]])], "three or more"),
        ([_feature("Polygon", [])], "Polygon without rings"),
        ([_feature("MultiPolygon", [[]])], "MultiPolygon without rings"),
        ([_feature("MultiPolygon", 7)], "MultiPolygon without rings"),
        ([_feature("Polygon", [_box(0, 0, 100, 100), _box(500, 500, 600, 600)])], "a hole lies outside"),
        ([_feature("Polygon", [_box(0, 0, 4000, 2000)], "Ignore*")], "no tissue in it"),
        ([], "no tissue in it"),
    ],
)  # fmt: skip
def test_bad_geojson_is_one_line_with_the_file(tmp_path: Path, features: list[Any], message: str) -> None:
    path = _write(tmp_path, *features)
    with pytest.raises(TissueError, match=message) as caught:
        _load(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", "", "\x00\xff", "[" * 100_000, "1" * 5000, '{"type": "FeatureCollection"}', "3"]
)
def test_damaged_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "s1.geojson").write_text(text, encoding="latin-1")
    with pytest.raises(TissueError, match=r"s1\.geojson.*; "):
        _load(tmp_path)


def test_huge_json_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "s1.geojson").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(TissueError, match="at most"):
        _load(tmp_path)


def test_two_files_for_one_slide(tmp_path: Path) -> None:
    _write(tmp_path, _feature("Polygon", [_box(0, 0, 100, 100)]))
    Image.new("L", (200, 100), 255).save(tmp_path / "s1.png")
    with pytest.raises(TissueError, match=r"there is also s1\.png; keep"):
        _load(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
@pytest.mark.parametrize("size", [(200, 100), (1000, 500), (40, 20), (333, 167)])
def test_image_mask_of_any_size(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 1
    Image.fromarray(pixels).save(tmp_path / f"s1.{suffix}")
    assert _iou(_load(tmp_path), _boxes((0, 0, 2000, 1000))) > 0.97


def test_fine_image_mask_counts_by_its_larger_part(tmp_path: Path) -> None:
    pixels = np.zeros((1000, 2000), np.uint8)
    pixels[:, :1000][:, np.arange(1000) % 10 < 6] = 1
    pixels[:, 1000:][:, np.arange(1000) % 10 < 4] = 1
    Image.fromarray(pixels).save(tmp_path / "s1.png")
    assert (_load(tmp_path) == _boxes((0, 0, 2000, 2000))).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_image_mask_of_any_kind_of_pixel(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((100, 200), np.uint8)
    pixels[:50, :100] = 255
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 200)
    image = image if mode == "I;16" else image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / "s1.png")
    assert (_load(tmp_path) == (pixels > 0)).all()


def test_what_a_palette_or_transparency_shows_counts(tmp_path: Path) -> None:
    palette = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 100, axis=1).repeat(100, axis=0), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # label 0 is white
    palette.save(tmp_path / "s1.png")
    assert _load(tmp_path)[:, :100].all()
    assert not _load(tmp_path)[:, 100:].any()
    transparent = np.full((100, 200, 4), 255, np.uint8)
    transparent[:, 100:, 3] = 0
    Image.fromarray(transparent).save(tmp_path / "s1.png")
    assert not _load(tmp_path)[:, 100:].any()


@pytest.mark.parametrize("size", [(100, 200), (200, 104), (210, 100)])
def test_wrong_aspect_ratio(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 255).save(tmp_path / "s1.png")
    with pytest.raises(TissueError, match=rf"{size[0]}x{size[1]} has another aspect ratio .*4000x2000"):
        _load(tmp_path)


def test_empty_damaged_or_foreign_image(tmp_path: Path) -> None:
    path = tmp_path / "s1.png"
    Image.new("L", (200, 100), 0).save(path)
    with pytest.raises(TissueError, match="no tissue in it"):
        _load(tmp_path)
    noise = np.random.default_rng(0).integers(0, 2, (100, 200), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(TissueError, match="not a readable PNG or TIFF"):
        _load(tmp_path)
    Image.new("RGB", (200, 100), "white").save(path, format="JPEG")
    with pytest.raises(TissueError, match="not a readable PNG or TIFF"):
        _load(tmp_path)
    path.unlink()
    Image.new("CMYK", (200, 100)).save(tmp_path / "s1.tif")
    with pytest.raises(TissueError, match="pixels of type CMYK"):
        _load(tmp_path)


@pytest.mark.parametrize("size", [(13_000, 6_500), (20_000, 10_000)])
def test_huge_image_is_refused_by_its_header(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", size).save(tmp_path / "s1.png")

    def load(self: Image.Image) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(TissueError, match="at most 80,000,000 pixels"):
        _load(tmp_path)


def _framed(folder: Path, *frames: Frame) -> UserMask:
    """The mask in a slide that was scanned inside of `SCAN` alone."""
    scanned = _boxes((1000, 600, 3000, 1400)).astype(np.float32)
    found = load_user_mask(folder, "s1", SIZE_PX0, frames or (WHOLE, SCAN), scanned)
    assert found is not None
    return found


def test_what_was_scanned_decides_where_polygons_begin(tmp_path: Path) -> None:
    _write(tmp_path, _feature("Polygon", [_box(0, 0, 600, 400)]))
    found = _framed(tmp_path)
    assert found.frame == SCAN
    assert _iou(found.pixels, _boxes((1000, 600, 1600, 1000))) > 0.9
    _write(
        tmp_path,
        *(_feature("Polygon", [box]) for box in (_box(1000, 600, 1600, 1000), _box(2400, 1000, 3000, 1400))),
    )
    found = _framed(tmp_path)  # 3000 lies outside of the bounds' 2000
    assert found.frame == WHOLE
    assert _iou(found.pixels, _boxes((1000, 600, 1600, 1000), (2400, 1000, 3000, 1400))) > 0.9


def test_coordinates_that_could_begin_at_either_corner_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, _feature("Polygon", [_box(1200, 640, 1800, 780)]))
    both = "both are possible; say --mask-frame bounds .* --mask-frame slide"
    with pytest.raises(TissueError, match=both) as caught:
        _framed(tmp_path)
    assert "\n" not in str(caught.value)
    assert _iou(_framed(tmp_path, WHOLE).pixels, _boxes((1200, 640, 1800, 780))) > 0.8
    assert _iou(_framed(tmp_path, SCAN).pixels, _boxes((2200, 1240, 2800, 1380))) > 0.8


def test_a_mask_without_a_scanned_pixel_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, _feature("Polygon", [_box(0, 0, 600, 400)]))
    with pytest.raises(
        TissueError, match=r"no scanned pixel lies in it, counted from the corner of the slide \(4000x"
    ):
        _framed(tmp_path, WHOLE)


def test_the_aspect_ratio_of_an_image_says_what_it_covers(tmp_path: Path) -> None:
    pixels = np.full((40, 100), 255, np.uint8)  # as the bounds; the slide is 2 to 1
    pixels[:, 50:] = 0
    Image.fromarray(pixels).save(tmp_path / "s1.png")
    found = _framed(tmp_path)
    assert found.frame == SCAN
    assert (found.pixels == _boxes((1000, 600, 2000, 1400))).all()
    Image.new("L", (300, 100)).save(tmp_path / "s1.png")
    with pytest.raises(
        TissueError, match=r"another aspect ratio than the slide \(4000x2000\) or the scanned bounds"
    ):
        _framed(tmp_path)
