"""Slides whose pixels are not square: refused, or, with ``--square-pixels``, resampled by their own factors."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from pipeline.distill.train import distill
from pipeline.embed.embed import embed
from pipeline.embed.options import EmbedOptions
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.extract.plan import PlanOptions, plan
from pipeline.report.options import ReportOptions
from pipeline.report.report import write_report
from pipeline.runtime.progress import Silent
from pipeline.slides.registry import open_slide
from pipeline.slides.slide import SlideInfo, plan_read
from pipeline.slides.sources import open_slide_source
from pipeline.slides.thumbnail import read_overview
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from pipeline.verify.options import VerifyOptions
from stores.combine.merge import merge
from stores.errors import CorruptStore, OptionError
from stores.export.pseudonyms import Pseudonyms
from stores.format import manifest, oblong, recipe
from stores.format.committed import usable_slides
from tests.tools import export, trident
from tests.tools.commands import g2l, one_error
from tests.tools.distill import OPTIONS as DISTILL
from tests.tools.verify import look, structure

Pixels = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 1500, 720
MPP_Y = {"half": 0.5, "odd": 0.4}
SIDES = {"half": (256, 128), "odd": (256, 160)}
"""Width and height in level-0 pixels of a patch of 128 px at 0.5 mpp; mpp is 0.25 in x."""
SQUARE = TileOptions(patch=128, square_pixels=True, val=0)
TEACHER = ExtractOptions(teacher="tests.tools.tiny:teacher_of_64_px", random_weights=0, seeds=2, threads=2)


def write_oblong(path: Path, mpp_y: float, seed: int) -> None:
    """A TIFF of purple noise with 0.25 mpp in x."""
    noise = np.random.default_rng(seed).integers(-40, 40, (HEIGHT, WIDTH, 3))
    pixels = (np.array([150, 80, 150]) + noise).astype(np.uint8)
    tifffile.imwrite(
        path, pixels, tile=(128, 128), photometric="rgb", compression="zlib",
        resolution=(1e4 / 0.25, 1e4 / mpp_y), resolutionunit="CENTIMETER",
    )  # fmt: skip


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed, (name, mpp_y) in enumerate(MPP_Y.items()):
        write_oblong(folder / f"{name}.tiff", mpp_y, seed)
    return folder


@pytest.fixture(scope="module")
def store(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiled with the option, extracted without it."""
    made = tmp_path_factory.mktemp("store") / "s"
    assert not tile([slides], made, SQUARE, Silent()).unusable
    assert not extract([slides], made, TEACHER, TileOptions(patch=128, val=0), Silent()).failed_slides
    return made


def _resampled(pixels: Pixels, size_px: int) -> npt.NDArray[np.float64]:
    """Area means, from running sums and in floating point."""
    found = pixels.astype(np.float64)
    for axis in (0, 1):
        total = np.insert(np.cumsum(found, axis=axis), 0, 0, axis=axis)
        edges = np.arange(size_px + 1) * (pixels.shape[axis] / size_px)
        at = [np.take(total, f(edges).astype(int), axis) for f in (np.floor, np.ceil)]
        part = (edges - np.floor(edges)).reshape([-1 if i == axis else 1 for i in range(3)])
        found = np.diff(at[0] * (1 - part) + at[1] * part, axis=axis) * (size_px / pixels.shape[axis])
    return found


def test_without_the_option_it_says_what_to_do(slides: Path, tmp_path: Path) -> None:
    result = tile([slides], tmp_path / "s", TileOptions(), Silent())
    reasons = [row["reason"] for row in result.unusable]
    assert len(reasons) == 2
    assert reasons[0].startswith("half: mpp 0.25 in x and 0.5 in y, so its pixels are not square; resample")
    assert "--square-pixels" in reasons[0]
    assert "--slide-mpp half=MPP" in reasons[0]
    assert not re.search(r"--slide-mpp \S+=[0-9.]", reasons[0])
    assert not set(oblong.COLUMNS) & set(result.slides[0])
    assert "square_pixels" not in json.loads((tmp_path / "s/options/tile.json").read_text())


def test_patches_are_the_pixels_resampled(store: Path, slides: Path) -> None:
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    for name, (wide, high) in SIDES.items():
        row = rows[name]
        assert (row["mpp"], row["mpp_y"], row["patch_px0"], row["patch_y_px0"]) == (
            pytest.approx(0.25), repr(float(row["mpp_y"])), wide, str(high),
        )  # fmt: skip
        assert oblong.mpp_in_y(row) == pytest.approx(MPP_Y[name])
        patches = manifest.read_patches(store, name)
        every = {(x, y) for x in range(0, WIDTH - wide + 1, wide) for y in range(0, HEIGHT - high + 1, high)}
        assert set(map(tuple, patches.coords.tolist())) == every
        whole = tifffile.imread(slides / f"{name}.tiff")
        reader = open_slide_source(row, slides / f"{name}.tiff", recipe.load(store).patch).open()
        for number, (x, y) in enumerate(patches.coords.tolist()):
            found = reader.read(number, x, y)
            assert found.shape == (128, 128, 3)
            wanted = _resampled(whole[y : y + high, x : x + wide], 128)
            assert np.abs(found - wanted).max() < 0.52  # rounded once
            if name == "half":  # two pixels in x, one in y: to the bit
                pair = whole[y : y + high, x : x + wide].reshape(128, 128, 2, 3).astype(int).sum(axis=2)
                assert np.array_equal(found, (pair + 1) // 2)
        reader.close()


@pytest.mark.parametrize(
    ("mpp", "downsamples", "level", "read", "sides"),
    [
        ((0.25, 0.5), (1,), 0, (512, 256), (512, 256)),
        ((0.125, 0.25), (1, 2, 4), 1, (512, 256), (1024, 512)),  # level 2 is too coarse in y
        ((0.5, 0.125), (1, 2), 0, (256, 1024), (256, 1024)),
        ((0.25, 0.52), (1,), 0, (512, 256), (512, 256)),  # within 5 % in y
        (
            (0.48, 0.52),
            (1,),
            0,
            (267, 256),
            (267, 256),
        ),  # never one side as it is and finer, the other coarser
    ],
)
def test_a_level_is_finer_on_both_sides(
    mpp: tuple[float, float], downsamples: tuple[float, ...], level: int, read: Any, sides: Any
) -> None:
    info = SlideInfo(
        "a", Path("a"), "f", "v", 9999, 9999, mpp[0], "slide", mpp[1], downsamples, ((9999, 9999),)
    )
    found = plan_read(info, 0.5, 256)
    assert (found.level, found.read_size_px, found.sides_px0) == (level, read, sides)


def test_the_overview_has_square_pixels(slides: Path) -> None:
    with open_slide(slides / "odd.tiff") as file:
        overview = read_overview(file, file.inspect("odd"), 8.0)
    assert overview.pixels.shape == (36, 47, 3)  # steps of 20 and 32 pixels
    assert overview.scanned.shape == (36, 47)


def test_every_stage_reads_as_tiled(store: Path, slides: Path, tmp_path: Path) -> None:
    found = look(store, VerifyOptions(slides=(slides,), sample="all", threads=1))
    assert found.findings == []
    assert found.views_checked == found.structure.views == 2 * (5 * 5 + 5 * 4)
    tiled = TileOptions(patch=128, val=0)
    assert not tile([slides], store, tiled, Silent()).unusable  # a second time, without the option
    short = replace(
        DISTILL, student="tests.tools.tiny:student_of_64_px", slides=(slides,), steps=1, window=16
    )
    assert distill(store, tmp_path / "run", short, False, Silent())["steps"] == 1
    assert sum(s.patches for s in plan([slides], PlanOptions(), SQUARE, Silent()).slides) == 45
    page = tmp_path / "report.html"
    write_report(store, page, ReportOptions(slides=(slides,)), Silent())
    (data,) = re.findall(r'id="data">(.*)</script>', page.read_text())
    sides = {slide["id"]: (slide["side"], slide["high"]) for slide in json.loads(data)["slides"]}
    assert sides == SIDES


def test_embed_and_formats_with_one_side(slides: Path, tmp_path: Path) -> None:
    options = EmbedOptions(encoder="tests.tools.tiny:teacher_of_64_px", random_weights=0, threads=2)
    found = embed([slides], tmp_path / "p", options, SQUARE, Silent())
    assert (found.failed_slides, found.views) == ({}, 45)
    found = embed([slides], tmp_path / "h", replace(options, format="trident-h5"), SQUARE, Silent())
    assert set(found.failed_slides) == set(SIDES)
    assert "--format trident-h5 has one side of a patch; use parquet" in found.failed_slides["odd"]


def test_imported_features_have_one_side(slides: Path, tmp_path: Path) -> None:
    corners = trident.grid(512, 512, 256)
    trident.write_trident(tmp_path / "half.h5", corners, np.zeros((len(corners), 24), np.float32))
    result = g2l(
        "store", "import", tmp_path, "--slides", slides, "--out", tmp_path / "s", "--encoder", trident.ENCODER,
        "--mean", "0.7,0.6,0.7", "--std", "0.2,0.2,0.2", "--image-px", 224,
    )  # fmt: skip
    one_error(
        result, "half: mpp 0.25 in x and 0.5 in y, so its pixels are not square; the tools whose features"
    )


def test_a_true_mpp_is_square_and_a_late_one_is_refused(store: Path, slides: Path, tmp_path: Path) -> None:
    options = replace(SQUARE, slide_mpp=("half=0.5", "odd=0.25"))
    first = {row["slide_id"]: row for row in tile([slides], tmp_path / "s", options, Silent()).slides}
    assert not set(oblong.COLUMNS) & set(first["half"])
    equal = replace(SQUARE, slide_mpp=(f"odd={manifest.read_slides(store)[1]['mpp']!r}",))
    with pytest.raises(OptionError, match=r"views are committed with mpp_y '0\.4.*--slide-mpp says None"):
        tile([slides], store, equal, Silent())
    again = tmp_path / "again"
    tile([slides], again, SQUARE, Silent())
    now = {row["slide_id"]: row for row in tile([slides], again, options, Silent()).slides}
    assert not set(oblong.COLUMNS) & set(now["odd"])  # tiled anew, as square pixels
    assert now["odd"]["patch_px0"] == 256
    failed = Path(shutil.copytree(again, tmp_path / "failed"))
    lost = {"status": "failed", "reason": "unreadable", "n_patches": 0, "mpp_y": "0.5", "patch_y_px0": "128"}
    manifest.write_slides(failed, [row | lost for row in manifest.read_slides(failed)])
    merge([failed, again], tmp_path / "m")
    assert not any(row.get("mpp_y") for row in manifest.read_slides(tmp_path / "m"))


def test_export_and_merge_keep_the_columns(store: Path, tmp_path: Path) -> None:
    names = Pseudonyms(b"k" * 32)
    out = tmp_path / "out"
    export.run(store, out, pseudonyms=names)
    assert sorted(row["patch_y_px0"] for row in manifest.read_slides(out)) == ["128", "160"]
    assert structure(out) == []
    merge([store, Path(shutil.copytree(store, tmp_path / "copy"))], tmp_path / "m")
    assert manifest.read_slides(tmp_path / "m") == manifest.read_slides(store)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"mpp_y": "nan"}, "mpp_y 'nan' and patch_y_px0 '128'; allowed are two numbers above 0"),
        ({"patch_y_px0": None}, "patch_y_px0 None; allowed are two numbers above 0"),
        ({"patch_y_px0": "0"}, "patch_y_px0 '0'; allowed are two numbers above 0"),
        ({"mpp_y": "0.9"}, "patches at 0.9 mpp in y, the recipe says 0.5"),
    ],
)
def test_the_columns_are_untrusted(
    store: Path, tmp_path: Path, values: dict[str, str | None], match: str
) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    rows = manifest.read_slides(path)
    manifest.write_slides(path, [rows[0] | values, *rows[1:]])
    assert any(match in str(finding) for finding in structure(path))
    with pytest.raises(CorruptStore, match=re.escape(match)):
        usable_slides(path, recipe.load(path).patch)


def test_a_patch_beyond_the_edge_is_found(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    found = manifest.read_patches(path, "odd")
    y_px0 = found.y_px0.copy()
    y_px0[0] = 640  # 640 + 160 > 720
    manifest.write_patches(path, "odd", found.x_px0, y_px0, found.tissue)
    assert any("a patch of 160 pixels lies outside" in str(finding) for finding in structure(path))
