"""What every reader does alike: pixels are compared with the array that was written, or with another library's."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import pytest

from pipeline.demo.synthetic_slides import write_slide
from pipeline.runtime.progress import Silent
from pipeline.slides import registry
from pipeline.slides.find import find_slides
from pipeline.slides.pool import PatchPool
from pipeline.slides.resample import resample_area
from pipeline.slides.slide import plan_read
from pipeline.slides.sources import open_slide_source
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from stores.errors import MppError, SlideError
from stores.export.allowed import VENDORS
from stores.format import manifest, recipe
from tests.tools.child_work import reads
from tests.tools.slide_formats import FORMATS, Format, Picture, halved

MPP = 0.5


@dataclass(frozen=True)
class Case:
    path: Path
    kind: Format
    levels: list[Picture]
    """The ground truth."""

    def require(self, found: Picture, expected: Picture) -> None:
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found.astype(int), expected, rtol=0, atol=self.kind.tolerance)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Picture:
    path = tmp_path_factory.mktemp("picture") / "a.tiff"
    write_slide(path, seed=4, width_px=896, height_px=640)
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


@pytest.fixture(scope="module", params=FORMATS)
def case(request: pytest.FixtureRequest, picture: Picture, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind = FORMATS[request.param]
    levels = halved(picture)
    path = kind.write(tmp_path_factory.mktemp(request.param), levels)
    levels = levels[:1] if kind.single else levels
    if kind.ground_truth is not None:
        levels = [kind.ground_truth(path, i) for i in range(len(levels))]
    return Case(path, kind, levels)


def test_what_is_known_without_pixels(case: Case) -> None:
    info = registry.inspect("a", case.path, MPP)
    assert info.level_sizes_px == tuple((level.shape[1], level.shape[0]) for level in case.levels)
    assert (info.width_px0, info.height_px0) == info.level_sizes_px[0]
    assert info.downsamples == tuple(2.0**i for i in range(len(case.levels)))
    assert info.vendor == case.kind.vendor
    assert info.vendor in VENDORS
    assert info.fingerprint.startswith(("quickhash-1:", "sha256:"))
    assert info.fingerprint == registry.inspect("b", case.path, 0.25).fingerprint
    assert info.mpp_source == "option"
    if case.kind.vendor == "picture":
        with pytest.raises(
            MppError, match=r"a: the slide has no mpp; the file says: vendor picture, size 896x640"
        ):
            registry.inspect("a", case.path)
    else:
        own = registry.inspect("a", case.path)
        assert (own.mpp, own.mpp_source) == (pytest.approx(MPP, rel=1e-6), "slide")


@pytest.mark.parametrize("region", [(0, 0, 256, 256), (192, 128, 300, 200), (64, 64, 16, 16)])
def test_pixels_of_every_level(case: Case, region: tuple[int, int, int, int]) -> None:
    x, y, width, height = region
    with registry.open_slide(case.path) as file:
        for i, level in enumerate(case.levels):
            x_level, y_level = x >> i, y >> i
            w, h = min(width, level.shape[1] - x_level), min(height, level.shape[0] - y_level)
            found = file.region(x, y, i, w, h)
            assert found.flags.c_contiguous
            case.require(found, level[y_level : y_level + h, x_level : x_level + w])
            assert file.scanned(x, y, i, w, h).all()


def test_a_whole_level_and_what_lies_outside(case: Case) -> None:
    with registry.open_slide(case.path) as file:
        for i, level in enumerate(case.levels):
            height, width = level.shape[:2]
            case.require(file.region(0, 0, i, width, height), level)
            found = file.region(-32 << i, -16 << i, i, width + 96, height + 64)
            case.require(found[16 : 16 + height, 32 : 32 + width], level)
            scanned = file.scanned(-32 << i, -16 << i, i, width + 96, height + 64)
            assert scanned[16 : 16 + height, 32 : 32 + width].all()
            assert scanned.sum() == width * height
            assert len(np.unique(found[~scanned].reshape(-1, 3), axis=0)) == 1  # the background
        far = file.region(100_000, 100_000, 0, 8, 8)
        assert (far == far[0, 0]).all()
        assert not file.scanned(100_000, 100_000, 0, 8, 8).any()


@pytest.mark.parametrize("mpp", [0.5, 0.8, 1.0])
def test_patches_as_the_plan_says(case: Case, mpp: float) -> None:
    plan = plan_read(registry.inspect("a", case.path, MPP), mpp, 128)
    reader = registry.reader_of(case.path).patches(case.path, plan)
    for x, y in ((0, 0), (256, 256), (512, 64)):
        level, (x_level, y_level) = case.levels[plan.level], (x >> plan.level, y >> plan.level)
        expected = level[y_level : y_level + plan.read_px, x_level : x_level + plan.read_px]
        small = expected if plan.read_px == 128 else resample_area(np.ascontiguousarray(expected), 128)
        case.require(reader.read(x, y), small)
    reader.close()


def test_it_is_found_tiled_and_read_by_a_process(case: Case, tmp_path: Path) -> None:
    (slide_id,) = find_slides([case.path])
    given = () if case.kind.vendor != "picture" else (f"{slide_id}={MPP}",)
    store = tmp_path / "s"
    tile([case.path], store, TileOptions(slide_mpp=given), Silent())
    (row,) = manifest.read_slides(store)
    assert (row["status"], row["reason"]) == ("ok", "")
    assert row["n_patches"] == 6
    reader = registry.reader_of(case.path)
    assert pickle.loads(pickle.dumps(reader)) == reader
    source = open_slide_source(row, case.path, recipe.load(store).patch)
    with PatchPool(1) as pool:
        case.require(pool.submit(source, reads, 0, 256, 0).result(), case.levels[0][:256, 256:512])


def test_folders_hold_slides_but_no_pictures(case: Case) -> None:
    if case.kind.vendor == "picture":
        assert not registry.reader_of(case.path).suffixes
    else:
        top = case.path.parents[1] if case.kind.vendor == "dicom" else case.path.parent
        assert list(find_slides([top]).values()) == [case.path]


def test_a_file_that_is_cut_off_says_so(case: Case, tmp_path: Path) -> None:
    """In one line that names the file without its folder, on opening or on reading; never other pixels."""
    path = tmp_path / case.path.name
    if case.path.is_dir():
        path.mkdir()
    else:
        path.write_bytes(case.path.read_bytes()[:3000])
    with pytest.raises(SlideError) as caught, registry.open_slide(path) as file:
        file.region(0, 0, 0, case.levels[0].shape[1], case.levels[0].shape[0])
    assert str(caught.value).startswith(path.name)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)
