"""Stage zero: grid, order, splits, CSV, restarts, slides without tissue."""

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.progress import Silent
from pipeline.tile import tile
from pipeline.tile.grid import morton_order
from pipeline.tile.options import TileOptions
from pipeline.tile.slides_csv import given_of, patient_of, read_slides_csv
from pipeline.tile.splits import split_of
from stores.errors import OptionError, RecipeMismatch
from stores.format import manifest, recipe


@pytest.fixture(scope="module")
def tiled(slides: Path, tile_options: TileOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("tiled") / "store"
    tile.tile([slides], store, tile_options, Silent())
    return store


def test_slides_patches_pictures_and_recipe(tiled: Path) -> None:
    rows = manifest.read_slides(tiled)
    assert [(row["slide_id"], row["patient_id"], row["split"], row["site"]) for row in rows] == [
        ("a", "p1", "train", "x"),
        ("b", "p2", "train", "y"),
        ("c", "p3", "val", "x"),
    ]
    for row in rows:
        patches = manifest.read_patches(tiled, row["slide_id"])
        assert row["n_patches"] == len(patches) > 3
        assert (patches.x_px0 % 256 == 0).all()
        assert patches.x_px0.max() + 256 <= row["width_px0"]
        assert (patches.tissue >= 0.5).all()
        picture = cv2.imread(str(tiled / "pictures" / f"{row['slide_id']}.png"))
        assert picture is not None
        assert picture.shape[1] == 1600
    assert not recipe.load(tiled).complete


def test_again_changes_nothing(tiled: Path, slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiled, tmp_path / "store"))
    before = manifest.slides_path(store).read_bytes()
    patches = manifest.patches_path(store, "a")
    stamp = patches.stat().st_mtime_ns
    tile.tile([slides], store, tile_options, Silent())
    assert manifest.slides_path(store).read_bytes() == before
    assert patches.stat().st_mtime_ns == stamp


def test_new_slides_are_added(tiled: Path, slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tile.tile([slides / "a.tiff"], store, tile_options, Silent())
    result = tile.tile([slides], store, tile_options, Silent())
    assert manifest.slides_path(store).read_bytes() == manifest.slides_path(tiled).read_bytes()
    assert result.n_patches == sum(row["n_patches"] for row in result.slides)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mpp": 1.0}, r"recipe\.patch\.mpp: .* has 0.5, this run has 1.0"),
        ({"patch": 224}, r"recipe\.patch\.size_px"),
        ({"min_tissue": 0.9}, r"recipe\.patch\.min_tissue"),
        ({"masks": Path("masks")}, r"recipe\.patch\.tissue"),
    ],
)
def test_a_store_has_one_recipe(
    tiled: Path, slides: Path, tile_options: TileOptions, change: dict[str, object], match: str
) -> None:
    with pytest.raises(RecipeMismatch, match=match):
        tile.tile([slides], tiled, replace(tile_options, **change), Silent())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"val": 0.5}, r"--val 0.5: .* was tiled with 0.1"),
        ({"max_patches": 3}, r"--max-patches 3: .* was tiled with None"),
    ],
)
def test_done_slides_cannot_change(
    tiled: Path, slides: Path, tile_options: TileOptions, change: dict[str, object], match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        tile.tile([slides], tiled, replace(tile_options, **change), Silent())  # type: ignore[arg-type]


def test_what_nobody_says_any_more_stays(
    tiled: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(tiled, tmp_path / "store"))
    before = manifest.read_slides(store)
    result = tile.tile([slides], store, replace(tile_options, slides_csv=None), Silent())
    assert result.slides == before


def test_what_is_said_later_is_applied_while_there_are_no_views(slides: Path, tmp_path: Path) -> None:
    store, table = tmp_path / "store", tmp_path / "s.csv"
    tile.tile([slides], store, TileOptions(), Silent())
    table.write_text("slide_id,patient_id,split,mpp,grade\na,p1,val,0.25,\nb,p2,train,,II\nc,p1,val,,I\n")
    result = tile.tile([slides], store, TileOptions(slides_csv=table), Silent())
    rows = {row["slide_id"]: row for row in result.slides}
    assert [(row["patient_id"], row["split"], row["grade"]) for row in result.slides] == [
        ("p1", "val", None),
        ("p2", "train", "II"),
        ("p1", "val", "I"),
    ]
    assert (rows["a"]["mpp"], rows["a"]["mpp_source"], rows["a"]["patch_px0"]) == (0.25, "csv", 512)
    patches = manifest.read_patches(store, "a", rows["a"]["n_patches"])
    assert (patches.x_px0 % 512 == 0).all()
    again = tile.tile([slides], store, TileOptions(), Silent())
    assert again.slides == result.slides
    table.write_text("slide_id,patient_id\na,p7\n")
    moved = tile.tile([slides], store, TileOptions(slides_csv=table), Silent()).slides[0]
    assert (moved["patient_id"], moved["split"]) == ("p7", split_of("p7", 0.1))


def test_another_file_under_a_known_name_is_refused(
    slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slides / "a.tiff", folder)
    tile.tile([folder], tmp_path / "store", tile_options, Silent())
    shutil.copy(slides / "b.tiff", folder / "a.tiff")
    with pytest.raises(OptionError, match="slide a: tiled with fingerprint"):
        tile.tile([folder], tmp_path / "store", tile_options, Silent())


def test_blank_and_tiny_slides_are_rows_with_a_reason(tmp_path: Path) -> None:
    for name, side in (("blank", 1024), ("tiny", 128)):
        tifffile.imwrite(
            tmp_path / f"{name}.tiff",
            np.full((side, side, 3), 245, np.uint8),
            photometric="rgb",
            tile=(128, 128),
            resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
        )
    result = tile.tile([tmp_path], tmp_path / "store", TileOptions(), Silent())
    reasons = {row["slide_id"]: (row["status"], row["reason"]) for row in result.unusable}
    assert reasons["blank"][0] == reasons["tiny"][0] == "no_tissue"
    assert "no patch of 256 px has 50% tissue; 0.0% of the slide is tissue" in reasons["blank"][1]
    assert "128x128 px, smaller than one patch" in reasons["tiny"][1]
    assert (tmp_path / "store/pictures/blank.png").exists()


def test_masks_of_the_user(slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    mask = np.zeros((192, 192), np.uint8)
    mask[:64, :64] = 255  # 512 x 512 level-0 pixels: four patches
    cv2.imwrite(str(tmp_path / "a.png"), mask)
    square = [[[512, 0], [1024, 0], [1024, 256], [512, 256], [512, 0]]]
    geojson = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": square}}
    (tmp_path / "b.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [geojson]}))
    (tmp_path / "d.geojson").write_text("[")
    other = tmp_path / "other"
    other.mkdir()
    tifffile.imwrite(
        other / "d.tiff", np.full((600, 600, 3), 90, np.uint8), tile=(256, 256), photometric="rgb"
    )
    options = replace(tile_options, masks=tmp_path, slide_mpp=("d=0.5",))
    result = tile.tile([slides, other], tmp_path / "store", options, Silent())
    rows = {row["slide_id"]: row for row in result.slides}
    assert rows["a"]["n_patches"] == 4
    assert rows["b"]["n_patches"] == 2
    assert (rows["c"]["status"], rows["c"]["n_patches"]) == ("failed", 0)
    assert "no mask c.png" in rows["c"]["reason"]
    assert "d.geojson: " in rows["d"]["reason"]
    assert not any(str(tmp_path) in row["reason"] for row in result.slides)  # the store is given away


def test_max_patches_is_a_stable_sample(slides: Path, tile_options: TileOptions, tmp_path: Path) -> None:
    kept = []
    for count in (4, 8):
        store = tmp_path / str(count)
        tile.tile([slides / "a.tiff"], store, replace(tile_options, max_patches=count), Silent())
        patches = manifest.read_patches(store, "a")
        kept.append(set(zip(patches.x_px0.tolist(), patches.y_px0.tolist(), strict=True)))
    assert len(kept[0]) == 4
    assert kept[0] < kept[1]


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.integers(0, 15))
def test_morton_order_equals_interleaved_bits(first: int, second: int, shift: int) -> None:
    cells = np.array([[first, second], [second, first], [first >> shift, second]])

    def code(col: int, row: int) -> int:
        pairs = zip(f"{row:021b}", f"{col:021b}", strict=True)
        return int("".join(r + c for r, c in pairs), 2)

    order = morton_order(cells[:, 0], cells[:, 1])
    codes = [code(int(cells[i, 0]), int(cells[i, 1])) for i in order]
    assert codes == sorted(codes)


def test_consecutive_rows_are_compact() -> None:
    """1,024 consecutive rows of a 128 x 128 grid are a 32 x 32 square."""
    row, col = np.divmod(np.arange(128 * 128), 128)
    order = morton_order(col, row)[:1024]
    assert np.ptp(row[order]) == np.ptp(col[order]) == 31


def test_splits_are_by_patient_and_stable() -> None:
    patients = [f"p{i}" for i in range(5000)]
    splits = [split_of(p, 0.2) for p in patients]
    assert 0.17 < splits.count("val") / 5000 < 0.23
    larger = [split_of(p, 0.4) for p in patients]
    assert all(new == "val" for old, new in zip(splits, larger, strict=True) if old == "val")
    assert split_of("p1", 0.0) == "train"
    assert [split_of(f"p{i}", 0.5) for i in range(8)] == [
        "train",
        "train",
        "val",
        "val",
        "train",
        "val",
        "val",
        "val",
    ]


def test_slides_of_one_patient_share_a_split(slides: Path, tmp_path: Path) -> None:
    val = next(v / 100 for v in range(1, 100) if len({split_of(name, v / 100) for name in "abc"}) == 2)
    (tmp_path / "s.csv").write_text("slide_id,patient_id\na,p\nb,p\nc,p\n")
    options = TileOptions(val=val, slides_csv=tmp_path / "s.csv")
    result = tile.tile([slides], tmp_path / "store", options, Silent())
    assert {row["split"] for row in result.slides} == {split_of("p", val)}


def test_patient_of_a_tcga_barcode() -> None:
    assert patient_of("TCGA-CR-7395-01A-01-TS1") == "TCGA-CR-7395"
    assert patient_of("slide-7") == "slide-7"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,mpp\na,1\n", "no column slide_id; found name, mpp"),
        ("slide_id,split\na,training\n", "line 2: split 'training'; allowed: train, val, test"),
        ("slide_id\na\na\n", "line 3: slide_id 'a' occurs twice"),
        ("slide_id,fingerprint\na,x\n", "column 'fingerprint' is measured or written by g2l"),
        ("", "no column slide_id; found nothing"),
    ],
)
def test_bad_csv_is_one_line(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(OptionError, match=match):
        read_slides_csv(path)


def test_mpp_from_csv_and_option(tmp_path: Path) -> None:
    table = tmp_path / "s.csv"
    table.write_text("slide_id,mpp\na,0.25\nb,0.3\n")
    paths = {name: tmp_path / f"{name}.svs" for name in ("a", "b", "x=y")}
    options = TileOptions(slides_csv=table, slide_mpp=("b.svs=0.5", "x=y=1"))
    found = given_of(options, paths)
    assert found.mpp == {"a": (0.25, "csv"), "b": (0.5, "option"), "x=y": (1.0, "option")}
    for text, match in (("b", "expected ID=MPP"), ("b=fine", "'fine' is not a number"), ("b=0,5", "a point")):
        with pytest.raises(OptionError, match=match):
            given_of(TileOptions(slide_mpp=(text,)), paths)


def test_a_patient_in_two_splits_is_refused(slides: Path, tmp_path: Path) -> None:
    table = tmp_path / "s.csv"
    table.write_text("slide_id,patient_id,split\na,p1,train\nb,p2,train\nc,p1,val\n")
    with pytest.raises(OptionError, match="slide c: patient p1 is in split val here and in train as slide a"):
        tile.tile([slides], tmp_path / "s", TileOptions(slides_csv=table), Silent())
    assert manifest.read_slides(tmp_path / "s") == []


@pytest.mark.parametrize("step_s", [0.1, 10.0])
def test_the_slides_table_is_not_written_for_each_of_many_tiny_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    for number in range(4):
        image = np.full((128, 144 + 16 * number, 3), 245, np.uint8)
        about: dict[str, Any] = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / f"s{number}.tiff", image, photometric="rgb", tile=(128, 128), **about)
    clock = itertools.count(0, step_s)
    monkeypatch.setattr(tile, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    written: list[int] = []
    write = manifest.write_slides

    def counted(store: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        written.append(len(rows))
        write(store, rows)

    monkeypatch.setattr(manifest, "write_slides", counted)
    tile.tile([tmp_path], tmp_path / "store", TileOptions(), Silent())
    assert written == ([4] if step_s < 1 else [1, 2, 3, 4])
    assert len(manifest.read_slides(tmp_path / "store")) == 4
