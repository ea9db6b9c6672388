"""``tile --qc``: what GrandQC, QuPath, HistoQC and tables of scores say of patches, and limits on it."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.api import plan
from pipeline.runtime.progress import Silent
from pipeline.tile.frames import Frame
from pipeline.tile.geojson import draw_feature
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from pipeline.tile.tissue import patch_tissue_fraction
from stores.errors import OptionError
from stores.format import manifest
from tests.tools.notes import Notes
from tests.tools.scn import write_scn

Box = tuple[float, float, float, float]
FOLD, FOCUS = (256, 256, 768, 512), (512, 512, 700, 1100)


def _region(box: Box, properties: Mapping[str, Any]) -> dict[str, Any]:
    x, y, r, b = box
    ring = [[x, y], [r, y], [r, b], [x, b], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": dict(properties),
    }


def grandqc(folder: Path, name: str, *regions: tuple[str, Box]) -> Path:
    """A file as GrandQC writes it: named by the slide's file, classes as text."""
    folder.mkdir(exist_ok=True)
    content = {
        "type": "FeatureCollection",
        "features": [
            _region(box, {"class_id": 2, "classification": name, "area": 1.5}) for name, box in regions
        ],
        "metadata": {"class_mapping": {"2": "Fold", "6": "OOF"}, "scale_factor": 3.0},
    }
    (folder / f"{name}.geojson").write_text(json.dumps(content, indent=2))
    return folder


def _table(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _tile(slides: Sequence[Path], store: Path, **options: Any) -> Any:
    return tile(slides, store, TileOptions(val=0, **options), Silent())


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What GrandQC says of the slide ``a``, and that it found nothing in ``b``."""
    folder = tmp_path_factory.mktemp("qc") / "geojson_qc"
    grandqc(folder, "a.tiff", ("Fold", FOLD), ("OOF", FOCUS))
    return grandqc(folder, "b.tiff")


@pytest.fixture(scope="module")
def judged(slides: Path, regions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of ``a`` with all its patches, judged. Read only."""
    store = tmp_path_factory.mktemp("judged") / "store"
    _tile([slides / "a.tiff"], store, qc=regions)
    return store


def _share(box: Box, x: int, y: int) -> float:
    """The share of a patch of 256 px that a box covers."""
    return (
        max(0, min(box[2], x + 256) - max(box[0], x)) * max(0, min(box[3], y + 256) - max(box[1], y)) / 65536
    )


def test_shares_of_each_class_are_columns(judged: Path) -> None:
    patches = manifest.read_patches(judged, "a")
    assert list(patches.qc) == ["qc_fold", "qc_oof"]
    for name, box in (("qc_fold", FOLD), ("qc_oof", FOCUS)):
        expected = [_share(box, x, y) for x, y in patches.coords.tolist()]
        assert max(expected) > 0.5
        # half a pixel of 16 along two edges
        np.testing.assert_allclose(patches.qc[name], expected, atol=0.07)
    (row,) = manifest.read_slides(judged)
    assert (row["qc_left_out"], row["qc_unknown"]) == ("0", "0")


def test_limits_leave_out_what_is_beyond_them(
    slides: Path, regions: Path, judged: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    found = _tile([slides / "a.tiff", slides / "b.tiff"], store, qc=regions, qc_max=("Fold=0.1", "oof=0.25"))
    before, after = (manifest.read_patches(of, "a") for of in (judged, store))
    good = (before.qc["qc_fold"] <= 0.1) & (before.qc["qc_oof"] <= 0.25)
    assert 3 < (~good).sum() < 6
    np.testing.assert_array_equal(after.coords, before.coords[good])
    np.testing.assert_array_equal(after.qc["qc_oof"], before.qc["qc_oof"][good])
    # nothing was found in b: all of it stays, with zeros
    assert not any(of.any() for of in manifest.read_patches(store, "b").qc.values())
    n = int((~good).sum())
    assert found.to_json()["qc"] == {"a": {"left_out": n, "unknown": 0}, "b": {"left_out": 0, "unknown": 0}}
    assert f"QC of 2 slides: {n} patches with enough tissue were left out" in found.lines()
    assert not found.some_failed
    of_plan = plan([slides / "a.tiff"], qc=regions, qc_max=["fold=0.1", "oof=0.25"])
    assert [slide.patches for slide in of_plan.slides] == [len(after)]
    # the picture shows them in red; that of a store without --qc has no red, and two lines of text
    for of, shown in ((store, True), (judged, False)):
        picture = cv2.imread(str(of / "pictures/a.png"))
        assert picture is not None
        red = (picture == (30, 30, 215)).all(axis=2).sum()
        assert (red > 300) == shown
        assert (picture == (190, 0, 150)).all(axis=2).sum() > 300


def test_a_slide_without_a_word_is_not_good(slides: Path, regions: Path, tmp_path: Path) -> None:
    """Without limits its patches have no value; with them the slide fails with a reason, and is tried again."""
    both = [slides / "a.tiff", slides / "c.tiff"]
    notes = Notes()
    result = tile(both, tmp_path / "s", TileOptions(val=0, qc=regions), notes)
    assert "--qc geojson_qc: says nothing of 1 of 2 slides, such as c" in notes.said
    table = pq.read_table(manifest.patches_path(tmp_path / "s", "c"))
    assert table["qc_fold"].null_count == len(table) > 3
    assert result.to_json()["qc"]["c"] == {"left_out": 0, "unknown": len(table)}
    own = Path(shutil.copytree(regions, tmp_path / "own"))
    result = _tile(both, tmp_path / "t", qc=own, qc_max=("fold=0.1",))
    (row,) = result.unusable
    assert (row["slide_id"], row["status"]) == ("c", "failed")
    assert row["reason"] == "--qc own says nothing of this slide, and --qc-max fold=0.1 takes no patch unseen"
    grandqc(own, "c.tiff")
    assert not _tile(both, tmp_path / "t", qc=own, qc_max=("fold=0.1",)).unusable


def test_another_limit_is_refused(slides: Path, regions: Path, judged: Path, tmp_path: Path) -> None:
    one = [slides / "a.tiff"]
    for options, match in (
        ({"qc": regions, "qc_max": ("fold=0.1",)}, r"--qc-max fold=0\.1: .* was tiled with no limit of --qc"),
        ({"qc": regions, "qc_frame": "bounds"}, r"--qc-frame bounds: .* was tiled with auto"),
        ({}, r"--qc: .* was tiled with it, this run is without it"),
    ):
        with pytest.raises(OptionError, match=match):
            _tile(one, judged, **options)
    store = tmp_path / "plain"
    _tile(one, store)
    assert (
        not {"qc", "qc_max", "qc_min", "qc_frame"}
        & json.loads((store / "options/tile.json").read_text()).keys()
    )
    assert not [name for name in manifest.read_slides(store)[0] if name.startswith("qc")]
    with pytest.raises(OptionError, match="was tiled without it, this run is with it"):
        _tile(one, store, qc=regions)
    limited = tmp_path / "limited"
    _tile(one, limited, qc=regions, qc_max=("fold=0.1",))
    before = {path.name: path.read_bytes() for path in limited.glob("manifest/**/*.parquet")}
    _tile(one, limited, qc=regions, qc_max=("qc_fold=0.10",))  # the same in other words
    assert before == {path.name: path.read_bytes() for path in limited.glob("manifest/**/*.parquet")}
    # slides that come later may have no fold at all
    later = grandqc(tmp_path / "later", "b.tiff")
    result = _tile([slides / "b.tiff"], limited, qc=later, qc_max=("fold=0.1",))
    assert not result.unusable
    assert not manifest.read_patches(limited, "b").qc["qc_fold"].any()


def test_scores_of_patches(slides: Path, judged: Path, tmp_path: Path) -> None:
    """A row for each patch of a store that is tiled; without one, or with an empty cell, a patch is left out."""
    places = manifest.read_patches(judged, "a").coords.tolist()
    lines = [f"a,{x},{y},{number / 10},sharp" for number, (x, y) in enumerate(places[:-1])]
    lines[0] = f"a,{places[0][0]},{places[0][1]},,sharp"
    table = _table(tmp_path / "scores.csv", ["slide_id,x_px0,y_px0,Focus score,note", *lines, "z,0,0,1,x"])
    notes = Notes()
    tile([slides / "a.tiff"], tmp_path / "s", TileOptions(val=0, qc=table), notes)
    assert "--qc scores.csv: not taken, because they are not numbers: note ('sharp' in line 2)" in notes.said
    assert "--qc scores.csv: 1 of 2 are of no slide among the inputs, such as z" in notes.said
    scores = manifest.read_patches(tmp_path / "s", "a").qc["qc_focus_score"]
    expected = [np.nan, *(number / 10 for number in range(1, len(places) - 1)), np.nan]
    np.testing.assert_allclose(scores, expected)
    result = _tile([slides / "a.tiff"], tmp_path / "t", qc=table, qc_min=("focus_score=0.5",))
    kept = manifest.read_patches(tmp_path / "t", "a")
    np.testing.assert_array_equal(kept.coords, places[5:-1])
    assert result.to_json()["qc"]["a"] == {"left_out": 6, "unknown": 2}
    assert any("something is not known of 2 patches" in line for line in result.lines())
    result = _tile([slides / "a.tiff"], tmp_path / "u", qc=table, qc_min=("focus_score=99",))
    assert "all left out by QC (--qc-min focus_score=99:" in result.unusable[0]["reason"]
    off = _table(tmp_path / "off.csv", ["slide_id,x_px0,y_px0,f", "a,0,0,1", "a,224,0,1"])
    result = _tile([slides / "a.tiff"], tmp_path / "v", qc=off)
    assert "no patch begins at 224, 0 (1 of 2 rows)" in result.unusable[0]["reason"]


HISTOQC = """#start_time:\t2023-12-06 11:00:41.788659
#pipeline:\tBasicModule.getBasicStats
#dataset:filename\tcomments\timage_bounding_box\tdark\tpixels_to_use\t#pieces_of_tissue\twarnings
a.tiff\t \t(0, 0, 1536, 1536)\t0.006\t120000\t2\t
b.tiff\t \t(0, 0, 1536, 1536)\t0.4\t90000\t3\t|low
"""


def test_what_histoqc_says_of_slides(slides: Path, tmp_path: Path) -> None:
    table = tmp_path / "results.tsv"
    table.write_text(HISTOQC)
    notes = Notes()
    result = tile([slides], tmp_path / "s", TileOptions(val=0, qc=table, qc_max=("dark=0.1",)), notes)
    rows = {row["slide_id"]: row for row in manifest.read_slides(tmp_path / "s")}
    assert [rows["a"][f"qc_{name}"] for name in ("dark", "pixels_to_use", "pieces_of_tissue")] == [
        "0.006",
        "120000.0",
        "2.0",
    ]
    assert rows["a"]["status"] == "ok"
    assert "all left out by QC (--qc-max dark=0.1:" in rows["b"]["reason"]
    assert "says nothing of this slide" in rows["c"]["reason"]
    assert not manifest.read_patches(tmp_path / "s", "a").qc
    assert len(result.unusable) == 2
    assert any("image_bounding_box ('(0, 0, 1536, 1536)' in line 4)" in text for text in notes.said)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["slide_id,x,y,fold", "a,0,0,1"], "coordinates of patches are two columns x_px0 and y_px0"),
        (["slide_id,x_px0,fold", "a,0,1"], "coordinates of patches are two columns x_px0 and y_px0"),
        (["slide_id,x_px0,y_px0,fold", "a,0.5,0,1"], r"line 2: x_px0 '0\.5', y_px0 '0'; allowed are whole"),
        (["slide_id,x_px0,y_px0,fold", "a,0,0,1", "a,256,0,1", "a,0,0,2"], "line 4: this patch occurs twice"),
        (["slide_id,fold", "a,1", "a,2"], "line 3: slide_id 'a' occurs twice"),
        (["slide_id,fold,Fold ", "a,1,2"], "columns 'fold' and 'Fold' would both be qc_fold"),
        (["slide_id,note", "a,good"], "no column of scores"),
        (["slide_id,frame", "a,1"], "cannot be the name of a QC column"),
        (["name,fold", "a,1"], "no column slide_id"),
        (["slide_id,fold", ",1"], "line 2: no slide_id"),
        (["slide_id,fold", "q,1"], "none of its 1 ids is that of a slide"),
    ],
)
def test_tables_that_are_refused(slides: Path, tmp_path: Path, lines: list[str], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        _tile([slides / "a.tiff"], tmp_path / "s", qc=_table(tmp_path / "qc.csv", lines))
    assert not (tmp_path / "s/recipe.json").exists()


def test_files_of_regions_that_are_refused(slides: Path, regions: Path, tmp_path: Path) -> None:
    one, folder = [slides / "a.tiff"], tmp_path / "qc"
    folder.mkdir()

    def refused(match: str, **options: Any) -> None:
        with pytest.raises(OptionError, match=match):
            _tile(one, tmp_path / "s", **{"qc": folder, **options})
        assert not (tmp_path / "s/recipe.json").exists()

    refused(r"no \.geojson in the folder")
    refused(
        r"--qc-max folds=0\.1: --qc geojson_qc has no such class or score; it has: fold, oof",
        qc=regions,
        qc_max=("folds=0.1",),
    )
    refused("--qc-max fold=0.1: needs --qc", qc=None, qc_max=("fold=0.1",))
    file = folder / "a.geojson"
    file.write_text("{")
    refused("a.geojson")
    for properties in ({}, {"objectType": "annotation"}, {"classification": {"names": ["x"]}}):
        file.write_text(json.dumps([_region(FOLD, properties)]))  # as HistoQC marks good tissue
        refused("feature 0: has no class; .* belong to --masks")
    two = [_region(FOLD, {"classification": {"name": name}}) for name in ("Fold", "fold")]
    file.write_text(json.dumps(two))
    refused("the classes 'Fold' and 'fold' would both be the column qc_fold")
    file.write_text(json.dumps(two[:1]))
    (folder / "a.tiff.geojson").write_text("[]")
    refused("'a' and 'a.tiff' both mean slide a")
    with pytest.raises(OptionError, match="--qc: is for slides, and the inputs are tiles"):
        _tile(one, tmp_path / "s", qc=regions, tiles=True)


def test_a_region_outside_of_the_slide_is_a_reason(slides: Path, tmp_path: Path) -> None:
    folder = grandqc(tmp_path / "qc", "a", ("Fold", (0, 0, 9000, 9000)))
    result = _tile([slides / "a.tiff"], tmp_path / "s", qc=folder)
    assert "a.geojson: feature 0: corner (9000, 0) lies outside" in result.unusable[0]["reason"]
    assert str(tmp_path) not in result.unusable[0]["reason"]


def test_one_file_is_enough_for_one_slide(slides: Path, regions: Path, judged: Path, tmp_path: Path) -> None:
    _tile([slides / "a.tiff"], tmp_path / "s", qc=regions / "a.tiff.geojson")
    assert (
        manifest.patches_path(tmp_path / "s", "a").read_bytes()
        == manifest.patches_path(judged, "a").read_bytes()
    )


@pytest.mark.parametrize("how", [{"classification": {"name": "Fold", "color": [1, 2, 3]}}, {"class": "Fold"}])
def test_classes_of_qupath_and_lazyslide(
    slides: Path, judged: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    (tmp_path / "a.geojson").write_text(json.dumps([_region(FOLD, how)]))
    _tile([slides / "a.tiff"], tmp_path / "s", qc=tmp_path)
    found, expected = (manifest.read_patches(of, "a").qc["qc_fold"] for of in (tmp_path / "s", judged))
    np.testing.assert_array_equal(found, expected)


def test_areas_are_right_on_average() -> None:
    """Boxes at random places, smaller than a patch: their mean share is theirs, without the width of the outlines."""
    random, size_px0 = np.random.default_rng(0), (4096, 4096)
    drawn, exact = [], []
    for _ in range(200):
        (x, y), (w, h) = random.uniform(256, 2000, 2), random.uniform(100, 700, 2)
        canvas = np.zeros((256, 256), np.uint8)
        region = _region((x, y, x + w, y + h), {})
        draw_feature(canvas, region, Frame("slide", (0, 0), size_px0), size_px0, "", inside=2)
        zero = np.zeros(1, np.int32)
        drawn.append(patch_tissue_fraction(canvas, zero, zero, size_px0, size_px0, whole=2)[0])
        exact.append(w * h / 4096**2)
    assert abs(np.mean(drawn) / np.mean(exact) - 1) < 0.01


def test_regions_of_a_part_that_was_scanned(tmp_path: Path) -> None:
    """Coordinates of QuPath count from the scan, those of GrandQC from the slide"""
    slide = tmp_path / "leica.scn"
    noise = np.random.default_rng(0).integers(-20, 20, (768, 1024, 3))
    write_scn(slide, (np.array([170, 90, 160]) + noise).astype(np.uint8), (1300, 700), (4000, 3000))
    for number, (box, frame, corner) in enumerate(
        [((200, 200, 600, 600), "bounds", (1300, 700)), ((1500, 900, 1900, 1300), "slide", (0, 0))]
    ):
        store = tmp_path / f"s{number}"
        folder = grandqc(tmp_path / f"qc{number}", "leica.scn", ("Fold", box))
        result = _tile([slide], store, qc=folder)
        (row,) = manifest.read_slides(store)
        assert row["qc_frame"] == frame
        assert any(
            line.startswith("regions of --qc that count from the corner of the") for line in result.lines()
        )
        placed = (box[0] + corner[0], box[1] + corner[1], box[2] + corner[0], box[3] + corner[1])
        patches = manifest.read_patches(store, "leica")
        expected = [_share(placed, x, y) for x, y in patches.coords.tolist()]
        np.testing.assert_allclose(patches.qc["qc_fold"], expected, atol=0.07)
    result = _tile([slide], tmp_path / "t", qc=tmp_path / "qc0", qc_frame="slide")
    assert "no scanned pixel lies in it" in result.unusable[0]["reason"]
    assert "See --qc-frame" in result.unusable[0]["reason"]
    nothing = grandqc(tmp_path / "nothing", "leica.scn")
    assert not _tile([slide], tmp_path / "u", qc=nothing).unusable
