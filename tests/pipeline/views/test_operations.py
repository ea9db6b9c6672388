"""Pixel arithmetic against torchvision, scikit-image, colorsys and a plain integer blur."""

import colorsys
import itertools
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.views import operations
from pipeline.views.draw import JITTER_ORDERS
from pipeline.views.operations import Image
from tests.tools.settings import SHARED

SLIDE = SHARED / "slides" / "CMU-1-Small-Region.svs"
FACTORS = [operations.to_fixed(f) / operations.ONE for f in (0.0, 0.85, 0.9, 1.0, 1.0625, 1.15, 2.0)]
TURNS = [t / operations.ONE for t in (0, 655, -655, 3277, -3277, 9000, -20000, 32768, -32768)]


@pytest.fixture(scope="module")
def torchvision() -> Any:
    from pipeline.encoders.torchvision_cpu import make_importable

    make_importable()
    from torchvision.transforms.v2 import functional

    return functional


def synthetic(px: int = 224, noise: bool = True) -> Image:
    """Smooth pinks with dark squares and gaps of glass; noise in a corner. Every level occurs."""
    y, x = np.mgrid[:px, :px]
    view = np.stack([230 - x * y % 61, 140 + (x - y) // 8, 180 + (x + y) // 9], axis=-1).astype(np.uint8)
    view[(x // 9 + y // 11) % 5 == 0] = (88, 52, 130)
    view[(x // 40 + y // 40) % 6 == 5] = (244, 243, 245)
    if noise:
        view[px // 2 :, px // 2 :] = np.random.default_rng(0).integers(0, 256, (px - px // 2,) * 2 + (3,))
    return view


@cache
def tissue() -> Image:
    """24 views of the CMU slide with the most colour."""
    if not SLIDE.exists():
        pytest.skip("needs ../shared/data")
    import openslide

    with openslide.OpenSlide(SLIDE) as slide:
        width, height = slide.dimensions
        corners = itertools.product(range(0, width - 224, 224), range(0, height - 224, 224))
        views = [np.array(slide.read_region(corner, 0, (224, 224)).convert("RGB")) for corner in corners]
    views.sort(key=lambda view: float(np.ptp(view.astype(int), axis=2).mean()), reverse=True)
    return np.stack(views[:24])


@pytest.fixture(params=["synthetic", "tissue"])
def views(request: pytest.FixtureRequest) -> Image:
    return tissue() if request.param == "tissue" else synthetic()[None]


def distance(views: Image, ours: Callable[[Image], Image], theirs: Callable[[Any], Any]) -> Any:
    """|ours - torchvision's result on float images| in levels, (N, H, W, 3)."""
    import torch

    expected = theirs(torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255)
    expected = expected.permute(0, 2, 3, 1).double().numpy() * 255
    return np.abs(np.stack([ours(view) for view in views]) - expected)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_operations_are_torchvisions(torchvision: Any, views: Image, name: str, factor: float) -> None:
    ours, theirs = getattr(operations, f"adjust_{name}"), getattr(torchvision, f"adjust_{name}")
    d = distance(views, lambda view: ours(view, factor), lambda x: theirs(x, factor))
    assert d.max() < 1.1  # 0.5 is rounding, and at factor 0 the rounded grey adds as much


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.4, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0])
def test_blur_is_torchvisions(torchvision: Any, views: Image, sigma: float) -> None:
    d = distance(
        views,
        lambda view: operations.blur(view, 9, sigma),
        lambda x: torchvision.gaussian_blur(x, [9, 9], [sigma, sigma]),
    )
    assert d.max() < 2
    assert d.mean() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("turns", TURNS)
def test_hue_is_torchvisions(torchvision: Any, views: Image, turns: float) -> None:
    d = distance(
        views, lambda view: operations.adjust_hue(view, turns), lambda x: torchvision.adjust_hue(x, turns)
    )
    assert d.max() < 0.51
    assert d.mean() < 0.26


@pytest.mark.parametrize("order", JITTER_ORDERS)
def test_chains_of_operations_stay_near_torchvisions(torchvision: Any, order: tuple[str, ...]) -> None:
    """Rounding after each of four steps: the distance of a chain is bounded too, in every order."""
    values = {"brightness": 1.125, "contrast": 0.875, "saturation": 1.09375, "hue": -0.03125}

    def chain(adjust: Any, image: Any) -> Any:
        for name in order:
            image = getattr(adjust, f"adjust_{name}")(image, values[name])
        return image

    views = synthetic(96, noise=False)[None]
    d = distance(views, lambda view: chain(operations, view), lambda x: chain(torchvision, x))
    assert d.mean() < 0.7
    assert d.max() < 3.5


@settings(deadline=None, max_examples=200)
@given(
    rgb=st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)),
    turns=st.integers(-32768, 32768).map(lambda t: t / 65536),
)
def test_hue_of_one_pixel_is_the_hsv_hue(rgb: tuple[int, int, int], turns: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in rgb))
    expected = np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)) * 255
    got = operations.adjust_hue(np.array([[rgb]], dtype=np.uint8), turns)
    assert np.abs(got[0, 0] - expected).max() < 0.5 + 1e-6


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (0.85, 1.15, 1.0), (1.5, 0.5, 0.75), (2.0, 0.0, 1.0)])
def test_stain_jitter_is_beer_lambert_in_skimages_matrix(views: Image, factors: Any) -> None:
    from skimage.color import hed_from_rgb, rgb_from_hed

    density = -np.log(np.maximum(views, 0.25) / 255)
    expected = 255 * np.exp(-(density @ hed_from_rgb * factors) @ rgb_from_hed)
    got = np.stack([operations.jitter_stains(view, factors) for view in views])
    assert np.abs(got - np.clip(expected, 0, 255)).max() < 0.8


def test_stain_tables_are_the_nearest_integers() -> None:
    density, level = operations._density_table(), operations._level_table()
    assert np.array_equal(density[1:], np.round(np.log(255 / np.arange(1, 256)) * 2048))
    assert np.array_equal(level, np.round(255 * np.exp(-np.arange(len(level)) / 2048)))
    assert zlib.crc32(density.astype("<i4").tobytes()) == 0x8FAB4914
    assert zlib.crc32(level.tobytes()) == 0xEA63CA0B


def test_stain_arithmetic_fits_32_bits() -> None:
    """Partial sums of the largest density, for the extremes of the factors that a policy allows."""
    for factors in itertools.product([0, 2 * operations.ONE], repeat=3):
        for column in zip(*operations._stain_matrix(factors), strict=True):
            assert (
                sum(abs(entry) for entry in column) * int(operations._density_table().max()) < 2**31 - 2**13
            )


def reference_blur(image: Image, kernel_px: int, sigma: float) -> Image:
    """OpenCV's uint8 blur: weights in 2**-8 from the ends inwards, each taking over the rounding error before."""
    half = kernel_px // 2
    shape = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma * sigma))
    weights, error = [0] * kernel_px, 0.0
    for i, exact in enumerate((shape / shape.sum() * 256)[:half]):
        weights[i] = weights[-1 - i] = round(exact + error)
        error += exact - weights[i]
    weights[half] = 256 - sum(weights)
    height, width, _ = image.shape
    padded = np.pad(image.astype(np.int64), ((half, half), (half, half), (0, 0)), mode="reflect")
    once = np.stack([w * padded[i : i + height] for i, w in enumerate(weights)]).sum(axis=0)
    twice = np.stack([w * once[:, i : i + width] for i, w in enumerate(weights)]).sum(axis=0)
    return (twice + (1 << 15) >> 16).astype(np.uint8)


@settings(deadline=None, max_examples=25)
@given(kernel_px=st.sampled_from([3, 5, 7, 9, 15, 31]), sigma=st.integers(655, 2 * 65536))
def test_blur_is_the_documented_fixed_point(kernel_px: int, sigma: int) -> None:
    image = synthetic(72)
    expected = reference_blur(image, kernel_px, sigma / 65536)
    assert np.array_equal(operations.blur(image, kernel_px, sigma / 65536), expected)


@settings(deadline=None, max_examples=30)
@given(pixels=st.binary(min_size=24 * 32 * 3, max_size=24 * 32 * 3), level=st.integers(0, 255))
def test_neutral_values_change_nothing_and_grey_keeps_no_colour(pixels: bytes, level: int) -> None:
    image = np.frombuffer(pixels, dtype=np.uint8).reshape(24, 32, 3)
    for unchanged in (
        operations.adjust_brightness(image, 1.0),
        operations.adjust_contrast(image, 1.0),
        operations.adjust_saturation(image, 1.0),
        operations.adjust_hue(image, 0.0),
        operations.jitter_stains(image, (1.0, 1.0, 1.0)),
    ):
        assert np.array_equal(unchanged, image)
    grey = np.full((24, 32, 3), level, dtype=np.uint8)
    for unchanged in (
        operations.adjust_contrast(grey, 0.3),
        operations.adjust_saturation(grey, 1.7),
        operations.adjust_hue(grey, 0.3),
        operations.blur(grey, 9, 1.5),
    ):
        assert np.array_equal(unchanged, grey)
