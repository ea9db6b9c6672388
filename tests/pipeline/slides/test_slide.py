"""Slides: finding, mpp, levels, area resampling, damaged files, latched errors."""

import math
import re
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.demo.synthetic_slides import write_slide
from pipeline.slides import openslide_reader, registry
from pipeline.slides import slide as slides
from pipeline.slides.openslide_reader import OpenSlidePatches, flatten
from pipeline.slides.registry import open_slide
from pipeline.slides.resample import area_weights, resample_area
from pipeline.slides.thumbnail import read_thumbnail
from stores.errors import MppError, ReadError, SlideError


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "a.tiff"
    write_slide(path, seed=5, width_px=1024, height_px=768, mpp=0.25)
    return path


def info(mpp: float, *downsamples: float) -> slides.SlideInfo:
    return slides.SlideInfo(
        "a", Path("a"), "f", "v", 10_000, 10_000, mpp, "slide", None, downsamples, ((10_000, 10_000),)
    )


def test_mpp_of_the_slide_and_override(slide: Path) -> None:
    own = registry.inspect("a", slide)
    assert own.mpp == pytest.approx(0.25, rel=1e-3)
    assert own.mpp_source == "slide"
    assert own.fingerprint.startswith("quickhash-1:")
    given_mpp = registry.inspect("a", slide, 0.5, "csv")
    assert (given_mpp.mpp, given_mpp.mpp_source) == (0.5, "csv")
    with pytest.raises(MppError, match=r"mpp 9 from the csv is not plausible \(0.05 to 5.0\)"):
        registry.inspect("a", slide, 9.0, "csv")


@pytest.mark.parametrize(
    ("mpp", "downsamples", "level", "read_px", "patch_px0"),
    [
        (0.5, (1, 4), 0, 256, 256),
        (0.499, (1,), 0, 256, 256),  # within 5 %: as it is
        (0.25, (1, 2, 4), 1, 256, 512),
        (0.2525, (1, 4, 16), 0, 507, 507),
        (0.2525, (1, 2.0005), 1, 256, 512),
        (0.11, (1, 2, 4, 8), 2, 291, 1164),
        (0.524, (1,), 0, 256, 256),
    ],
)
def test_reads_from_the_level_just_finer(
    mpp: float, downsamples: tuple[float, ...], level: int, read_px: int, patch_px0: int
) -> None:
    plan = slides.plan_read(info(mpp, *downsamples), 0.5, 256)
    assert (plan.level, plan.read_px, plan.patch_px0) == (level, read_px, patch_px0)
    assert plan.mpp == pytest.approx(patch_px0 * mpp / 256)
    assert abs(plan.mpp - 0.5) <= 0.05 * 0.5


def test_a_slide_coarser_than_the_target_is_not_enlarged() -> None:
    with pytest.raises(MppError, match=r"coarser than the target 0\.5; choose --mpp 1 or coarser"):
        slides.plan_read(info(1.0, 1, 4), 0.5, 256)


def naive_area(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float64]:
    """Exact area averages in rational arithmetic, one output pixel after another."""
    n = image.shape[0]
    weights = np.zeros((size, n))
    for i in range(size):
        for j in range(n):
            low = max(Fraction(i * n, size), Fraction(j))
            high = min(Fraction((i + 1) * n, size), Fraction(j + 1))
            weights[i, j] = max(0.0, float((high - low) * size / n))
    return np.asarray(np.einsum("ij,jkc,lk->ilc", weights, image.astype(np.float64), weights))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.floats(1, 4), st.integers(0, 99))
def test_area_resampling_is_the_average_of_what_a_pixel_covers(size: int, factor: float, seed: int) -> None:
    n = int(size * factor)
    image = np.random.default_rng(seed).integers(0, 256, (n, n, 3), dtype=np.uint8)
    found = resample_area(image, size)
    assert np.abs(found - naive_area(image, size)).max() < 0.6


@given(st.integers(1, 300), st.floats(1, 8))
def test_area_weights_sum_to_one_exactly(size: int, factor: float) -> None:
    _, weight = area_weights(int(size * factor), size)
    assert (weight.sum(axis=1) == 1 << 14).all()
    assert (weight >= 0).all()


@pytest.mark.parametrize("n", [256, 257, 507, 512, 1000])
def test_area_resampling_keeps_a_flat_image(n: int) -> None:
    for value in (0, 1, 127, 254, 255):
        flat = np.full((n, n, 3), value, np.uint8)
        assert (resample_area(flat, 256) == value).all()


def test_halving_is_the_mean_of_four() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sums = image.reshape(32, 2, 32, 2, 3).astype(int).sum(axis=(1, 3))
    np.testing.assert_array_equal(resample_area(image, 32), (sums + 2) // 4)


@pytest.mark.parametrize(
    ("n", "crc"),
    [
        (257, 0x47890D37),
        (384, 0xD6FCDC42),
        (507, 0xC0209770),
        (512, 0x9A737234),
        (1024, 0xE59D934A),
    ],
)
def test_area_resampling_never_changes(n: int, crc: int) -> None:
    """Of ``area-integer-1`` as it was first written; stores of that name stand for its bytes."""
    rng = np.random.Generator(np.random.Philox(n))
    image = rng.integers(0, 256, (n, n, 3), dtype=np.uint8)
    assert zlib.crc32(resample_area(image, 256).tobytes()) == crc


def test_flatten_blends_with_the_background() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [100, 100, 100, 128]]], np.uint8)
    np.testing.assert_array_equal(
        flatten(rgba, (255, 255, 255)), [[[10, 20, 30], [255, 255, 255], [177, 177, 177]]]
    )


def test_reads_what_openslide_reads(slide: Path) -> None:
    plan = slides.plan_read(registry.inspect("a", slide), 0.25, 256)
    reader = OpenSlidePatches(slide, plan)
    with openslide.OpenSlide(slide) as whole:
        expected = np.asarray(whole.read_region((256, 128), 0, (256, 256)))[:, :, :3]
    np.testing.assert_array_equal(reader.read(256, 128), expected)
    reader.close()


def test_thumbnail_covers_the_slide_in_pieces(slide: Path) -> None:
    with open_slide(slide) as file:
        thumbnail = read_thumbnail(file, file.inspect("a"), 2.0)
    assert thumbnail.shape == (96, 128, 3)
    with openslide.OpenSlide(slide) as whole:
        level0 = np.asarray(whole.read_region((0, 0), 0, (1024, 768)))[:, :, :3]
    blocks = level0.reshape(96, 8, 128, 8, 3).mean(axis=(1, 3))
    assert np.abs(blocks - thumbnail).max() < 2


class Flaky:
    """An OpenSlide whose errors latch: after one failure the handle never reads again."""

    opened = 0

    def __init__(self, path: Path, failures: int) -> None:
        Flaky.opened += 1
        self.failures = failures if Flaky.opened <= failures else 0
        self.properties: dict[str, str] = {}

    def read_region(self, *args: Any) -> npt.NDArray[np.uint8]:
        if self.failures:
            raise openslide.OpenSlideError("latched")
        return np.full((8, 8, 4), 255, np.uint8)

    def close(self) -> None: ...


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failed_read_is_tried_once_more_on_a_new_handle(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    Flaky.opened = 0
    monkeypatch.setattr(openslide_reader, "open_slide", lambda path: Flaky(path, failures))
    reader = OpenSlidePatches(Path("a.svs"), slides.ReadPlan(0, 8, 8, 8, 0.5))
    if failures == 1:
        assert reader.read(0, 0).shape == (8, 8, 3)
    else:
        with pytest.raises(ReadError, match=r"a\.svs at 0,0: latched"):
            reader.read(0, 0)
        assert reader.read(0, 0).shape == (8, 8, 3)  # the next read opens a third handle
    assert Flaky.opened == failures + 1


def test_real_slides(shared: Path) -> None:
    cmu = registry.inspect("cmu", shared / "slides/CMU-1-Small-Region.svs")
    assert (cmu.mpp, cmu.vendor) == (0.499, "aperio")
    with pytest.raises(MppError) as caught:
        registry.inspect("tcga", shared / "slides/TCGA-CR-7395-01A-01-TS1.svs")
    assert str(caught.value).startswith("tcga: the slide has no mpp; the file says: vendor aperio, ")
    assert "by --slide-mpp tcga=MPP or in a column mpp" in str(caught.value)


@pytest.mark.parametrize("own", [None, ("", ""), ("x", "1"), (math.inf, math.inf), (90.0, 90.0)])
def test_no_message_names_an_mpp_to_copy(own: Any) -> None:
    """A value that is right for one slide is wrong for the next: only what the file says is shown."""
    known = {"vendor": "aperio", "objective power": "40", "unit\x1b": None, "size": "9x9 px\x1b[31m"}
    with pytest.raises(MppError) as caught:
        slides.choose_mpp("s1", own, None, "option", known)
    said = str(caught.value)
    assert "the file says: vendor aperio, objective power 40, size 9x9 px?[31m; find out the true mpp" in said
    assert "--slide-mpp s1=MPP" in said
    assert not re.search(r"--slide-mpp \S+=[0-9.]", said)
    with pytest.raises(MppError, match=r"mpp 90 from the csv is not plausible.*--slide-mpp s1=MPP"):
        slides.choose_mpp("s1", own, 90.0, "csv", known)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("absurd_mpp.tiff", "mpp 352.858 from the slide is not plausible"),
        ("small_pyramid_mask.tif", "mpp 1000 from the slide is not plausible"),
        ("unopenable.tiff", "does not open"),
        ("not_a_tiff.svs", "not a slide format"),
        ("detected_but_fails_to_open.dcm", "does not open"),
    ],
)
def test_bad_slides_say_why(shared: Path, name: str, match: str) -> None:
    with pytest.raises(SlideError, match=match) as caught:
        registry.inspect("x", shared / "bad_slides" / name)
    assert str(shared) not in str(caught.value)  # a reason stands in the store
    assert "\n" not in str(caught.value)


def test_a_slide_that_opens_but_cannot_be_read(shared: Path) -> None:
    with open_slide(shared / "bad_slides/opens_but_every_read_fails.svs") as file:
        own = file.inspect("x")
        with pytest.raises(ReadError, match="cannot be read"):
            read_thumbnail(file, own, 8.0)
