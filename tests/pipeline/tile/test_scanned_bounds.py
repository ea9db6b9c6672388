"""A slide of which only a part was scanned: whose coordinates are whose, and no patch of what was never scanned."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.runtime.progress import Silent
from pipeline.slides.registry import open_slide
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from stores.format import manifest
from tests.tools.scn import write_scn

CORNER, SCAN = (1300, 700), (1024, 768)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1024x768 px of purple, scanned at 1300,700 of 4000x3000."""
    path = tmp_path_factory.mktemp("scn") / "leica.scn"
    noise = np.random.default_rng(0).integers(-20, 20, (SCAN[1], SCAN[0], 3))
    write_scn(path, (np.array([170, 90, 160]) + noise).astype(np.uint8), CORNER, (4000, 3000))
    return path


def _masks(folder: Path, *boxes: tuple[int, int, int, int]) -> Path:
    """Annotations as QuPath exports them, in a folder of their own."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, y], [r, y], [r, b], [x, b], [x, y]]]},
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
        }
        for x, y, r, b in boxes
    ]
    masks = folder / "masks"
    masks.mkdir(exist_ok=True)
    (masks / "leica.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return masks


def _corners(store: Path) -> Sequence[tuple[int, int]]:
    return sorted(map(tuple, manifest.read_patches(store, "leica").coords.tolist()))


def _grid_inside(left: int, top: int, right: int, bottom: int) -> list[tuple[int, int]]:
    """Cells of the slide's grid that lie at least by half in a box."""
    cells = [(x, y) for x in range(0, 4000 - 255, 256) for y in range(0, 3000 - 255, 256)]
    return sorted(
        (x, y)
        for x, y in cells
        if (min(right, x + 256) - max(left, x)) > 0
        and (min(bottom, y + 256) - max(top, y)) > 0
        and (min(right, x + 256) - max(left, x)) * (min(bottom, y + 256) - max(top, y)) >= 0.5 * 256**2
    )


def test_coordinates_of_qupath_begin_where_the_scan_begins(slide: Path, tmp_path: Path) -> None:
    masks = _masks(tmp_path, (0, 0, *SCAN))
    store = tmp_path / "store"
    result = tile([slide], store, TileOptions(masks=masks), Silent())
    expected = _grid_inside(*CORNER, CORNER[0] + SCAN[0], CORNER[1] + SCAN[1])
    assert _corners(store) == expected
    assert len(expected) >= 9
    assert result.to_json()["mask_frames"] == {"bounds": 1}
    assert any("scanned bounds, as in QuPath: 1" in line for line in result.lines())
    (row,) = manifest.read_slides(store)
    assert row["mask_frame"] == "bounds"
    with open_slide(slide) as file:  # the ground truth: every pixel of them is purple somewhere
        for x, y in expected:
            assert file.region(x, y, 0, 256, 256)[..., 1].min() < 120
    again = tile([slide], store, TileOptions(masks=masks, mask_frame="bounds"), Silent())
    assert again.slides == result.slides
    # no views yet: tiled again
    other = tile([slide], store, TileOptions(masks=masks, mask_frame="slide"), Silent())
    assert "no scanned pixel lies in it" in other.unusable[0]["reason"]


def test_coordinates_of_openslide_are_taken_as_they_are(slide: Path, tmp_path: Path) -> None:
    box = (*CORNER, CORNER[0] + SCAN[0], CORNER[1] + SCAN[1])
    result = tile([slide], tmp_path / "store", TileOptions(masks=_masks(tmp_path, box)), Silent())
    assert _corners(tmp_path / "store") == _grid_inside(*box)
    assert result.to_json()["mask_frames"] == {"slide": 1}


def test_a_mask_where_nothing_was_scanned_is_a_reason(slide: Path, tmp_path: Path) -> None:
    masks = _masks(tmp_path, (0, 0, *SCAN))
    result = tile([slide], tmp_path / "store", TileOptions(masks=masks, mask_frame="slide"), Silent())
    (row,) = result.unusable
    assert row["status"] == "failed"
    assert "no scanned pixel lies in it" in row["reason"]


def test_a_patch_that_was_never_scanned_is_no_patch(slide: Path, tmp_path: Path) -> None:
    """Marked is everything; exactly the cells stay that touch what was scanned, by one pixel even."""
    masks = _masks(tmp_path, (0, 0, 4000, 3000))
    tile([slide], tmp_path / "store", TileOptions(masks=masks), Silent())
    right, bottom = CORNER[0] + SCAN[0], CORNER[1] + SCAN[1]
    assert _corners(tmp_path / "store") == [
        (x, y)
        for x in range(0, 4000 - 255, 256)
        for y in range(0, 3000 - 255, 256)
        if x < right and x + 256 > CORNER[0] and y < bottom and y + 256 > CORNER[1]
    ]
    assert (1280, 512) in _corners(tmp_path / "store")


def test_which_pixels_were_scanned(slide: Path) -> None:
    with open_slide(slide) as file:
        assert file.inspect("leica").bounds_px0 == (*CORNER, *SCAN)
        found = file.scanned(CORNER[0] - 10, CORNER[1] - 5, 0, 40, 30)
    expected = np.zeros((30, 40), bool)
    expected[5:, 10:] = True
    np.testing.assert_array_equal(found, expected)
