"""Slides whose pixels are not the picture: refused with what they hold, before anything is read of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile

from pipeline.runtime.progress import Silent
from pipeline.slides import registry
from pipeline.slides.samples import require_rgb_properties
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from stores.errors import SlideError
from stores.format import manifest

RGB: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()
OPAQUE = np.full((512, 512, 1), 255, np.uint8)


def write(path: Path, image: npt.NDArray[Any], **options: Any) -> None:
    tifffile.imwrite(
        path, image, tile=(256, 256), resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **options
    )


def three_pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for i in range(3):
            writer.write(np.ascontiguousarray(RGB[:, :, i]), tile=(256, 256), photometric="minisblack")


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "three_pages": (
        three_pages,
        "grey, 1 sample a pixel, 8 bits a sample in 3 pages, of which one would be read",
    ),
    "rgb16": (
        lambda p: write(p, RGB.astype(np.uint16) * 257, photometric="rgb"),
        "RGB, 3 samples a pixel, 16 bits a sample",
    ),
    "grey8": (lambda p: write(p, GREY, photometric="minisblack"), "grey, 1 sample a pixel, 8 bits a sample"),
    "grey16": (
        lambda p: write(p, GREY.astype(np.uint16), photometric="minisblack"),
        "grey, 1 sample a pixel, 16 bits a sample",
    ),
    "white_is_0": (
        lambda p: write(p, GREY, photometric="miniswhite"),
        "grey, 1 sample a pixel, 8 bits a sample",
    ),
    "palette": (
        lambda p: write(p, GREY, photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
        "colours of a palette, 1 sample a pixel",
    ),
    "cmyk": (
        lambda p: write(p, np.dstack([RGB, OPAQUE]), photometric="separated"),
        "CMYK, 4 samples a pixel",
    ),
    "lab": (lambda p: write(p, RGB, photometric="cielab"), "CIELAB, 3 samples a pixel"),
    "five": (
        lambda p: write(
            p, np.dstack([RGB, RGB[:, :, :2]]), photometric="rgb", extrasamples=["unspecified"] * 2
        ),
        "RGB, 5 samples a pixel",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_rgb_of_8_bits_says_what_it_is(tmp_path: Path, name: str) -> None:
    path, (make, what) = tmp_path / f"{name}.tif", OTHERS[name]
    make(path)
    with openslide.OpenSlide(path) as slide:  # which shows something, without a word
        assert slide.read_region((0, 0), 0, (8, 8)).mode == "RGBA"
    with pytest.raises(SlideError) as caught:
        registry.open_slide(path)
    assert str(caught.value).startswith(f"{name}.tif: its pixels are {what}")
    assert str(caught.value).endswith("convert the slide to that, or leave it out")


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (RGB, {}),
        (np.moveaxis(RGB, -1, 0).copy(), {"planarconfig": "separate"}),
        (np.dstack([RGB, OPAQUE]), {"extrasamples": ["unassalpha"]}),
        (np.dstack([RGB, OPAQUE]), {"extrasamples": ["assocalpha"]}),
    ],
)
def test_rgb_of_8_bits_is_read_as_it_is(
    tmp_path: Path, image: npt.NDArray[np.uint8], options: dict[str, Any]
) -> None:
    write(tmp_path / "a.tif", image, photometric="rgb", **options)
    with registry.open_slide(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.region(0, 0, 0, 512, 512), RGB)


def test_masks_give_no_features_of_such_slides(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("three_pages", "rgb16"):
        OTHERS[name][0](tmp_path / f"{name}.tif")
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), np.full((64, 64), 255, np.uint8))
    store, options = tmp_path / "s", TileOptions(masks=tmp_path / "masks", slide_mpp=("three_pages=0.5",))
    assert tile([tmp_path / "three_pages.tif", tmp_path / "rgb16.tif"], store, options, Silent()).some_failed
    rows = manifest.read_slides(store)
    assert [(row["status"], row["n_patches"]) for row in rows] == [("failed", 0)] * 2
    assert all("its pixels are" in row["reason"] for row in rows)


@pytest.mark.parametrize("masked", [False, True])
def test_a_wholly_transparent_slide_says_so(tmp_path: Path, masked: bool) -> None:
    path = tmp_path / "a.tif"
    write(path, np.dstack([RGB, OPAQUE * 0]), photometric="rgb", extrasamples=["unassalpha"])
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.full((64, 64), 255, np.uint8))
    tile([path], tmp_path / "s", TileOptions(masks=tmp_path / "masks" if masked else None), Silent())
    (row,) = manifest.read_slides(tmp_path / "s")
    assert (row["status"], row["n_patches"]) == ("failed", 0)
    assert row["reason"].startswith("a.tif: every pixel of it is transparent, nothing was scanned")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("mirax.GENERAL.SLIDE_TYPE", "SLIDE_TYPE_FLUORESCENCE", "channels of fluorescence"),
        ("zeiss.Information.Image.PixelType", "Bgr48", "16 bits a sample"),
    ],
)
def test_what_openslide_itself_says(name: str, value: str, what: str) -> None:
    with pytest.raises(SlideError, match=f"a.mrxs: its pixels are {what}; 8-bit RGB is read"):
        require_rgb_properties(Path("a.mrxs"), {name: value})
    require_rgb_properties(Path("a.mrxs"), {name: "SLIDE_TYPE_BRIGHTFIELD"})
