"""Maps of features as QuPath opens them: places, colours, and the corner from which it counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.embed import parts
from pipeline.embed.block import TILING
from pipeline.embed.embed import embed
from pipeline.embed.formats.base import Unit
from pipeline.embed.formats.geojson import components, write_geojson
from pipeline.embed.options import EmbedOptions
from pipeline.metrics.colours import as_rgb
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.errors import OptionError
from stores.format import manifest
from tests.tools.scn import write_scn

CORNER, SCAN = (1300, 700), (1024, 768)


def _part(features: np.ndarray, bad: int | None = None) -> pa.Table:
    n, dim = features.shape
    ok = np.arange(n) != (n if bad is None else bad)
    columns = {
        "row": pa.array(range(n), pa.int32()),
        "x_px0": pa.array([256 * (i % 10) for i in range(n)], pa.int32()),
        "y_px0": pa.array([256 * (i // 10) for i in range(n)], pa.int32()),
        "tissue": pa.array([0.75] * n, pa.float32()),
        "status": pa.array([manifest.OK if good else manifest.BAD_READ for good in ok]),
        "reason": pa.array([None if good else "no tile" for good in ok], pa.string()),
        "features": parts.feature_column(features, ok),
    }
    return pa.table(columns, schema=parts.schema(dim))


def _written(folder: Path, features: np.ndarray, **unit: Any) -> dict[str, Any]:
    row = {"patch_px0": 256, **unit.pop("row", {})}
    made = Unit("s", len(features), features.shape[1], {"encoder": {"name": "e"}}, row=row, **unit)
    (path,) = write_geojson(folder, made, [_part(features, bad=4)])
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_patch_is_a_tile_of_qupath_with_its_colour(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    found = _written(tmp_path, features, corner_px0=(100, 20), row={"mpp_y": "0.25", "patch_y_px0": "512"})
    assert found["type"] == "FeatureCollection"
    assert found["g2l"]["encoder"]["name"] == "e"
    assert len(found["features"]) == 29  # one could not be read
    space = components(np.delete(features, 4, axis=0))
    for i, feature in enumerate(found["features"]):
        row = i + (i >= 4)
        x, y = 256 * (row % 10) - 100, 256 * (row // 10) - 20
        assert feature["type"] == "Feature"
        assert feature["geometry"] == {
            "type": "Polygon",
            "coordinates": [[[x, y], [x + 256, y], [x + 256, y + 512], [x, y + 512], [x, y]]],
        }
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert properties["color"] == as_rgb(space)[i].tolist()
        assert properties["measurements"]["tissue"] == 0.75
        measured = [properties["measurements"][f"component {c}"] for c in (1, 2, 3)]
        np.testing.assert_allclose(measured, space[i], rtol=1e-3, atol=1e-6)


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    features = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32) + 1000
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(components(features)), np.abs(u[:, :3] * s[:3]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_slides_of_few_patches_have_colours_too(count: int) -> None:
    colours = as_rgb(components(np.eye(3, 4, dtype=np.float32)[:count]))
    assert colours.shape == (count, 3)
    assert ((colours >= 30) & (colours <= 240)).all()


def test_equal_features_have_one_colour() -> None:
    assert len(np.unique(as_rgb(components(np.ones((5, 4), np.float32))), axis=0)) == 1


@pytest.mark.slow
def test_coordinates_begin_where_qupath_begins(tmp_path: Path) -> None:
    slide = tmp_path / "leica.scn"
    noise = np.random.default_rng(0).integers(-20, 20, (SCAN[1], SCAN[0], 3))
    write_scn(slide, (np.array([170, 90, 160]) + noise).astype(np.uint8), CORNER, (4000, 3000))
    options = EmbedOptions(encoder="tests.tools.tiny:teacher", random_weights=0, format="geojson")
    out = tmp_path / "out"
    result = embed([slide], out, options, TileOptions(min_tissue=0.3), Silent())
    assert result.published == 1
    found = json.loads((out / "embeddings/leica.geojson").read_text(encoding="utf-8"))
    corners = np.array([feature["geometry"]["coordinates"][0][0] for feature in found["features"]])
    coords = manifest.read_patches(out / TILING, "leica").coords
    assert len(coords) >= 6
    np.testing.assert_array_equal(corners + CORNER, coords)


def test_tiles_of_a_csv_have_no_map(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\na.png\n")
    (tmp_path / "a.png").write_bytes(b"")
    options = EmbedOptions(encoder="tests.tools.tiny:teacher", random_weights=0, format="geojson")
    with pytest.raises(OptionError, match="--format geojson: is for slides"):
        embed([tmp_path / "t.csv"], tmp_path / "out", options, TileOptions(), Silent())
