"""PNG and JPEG: named by the user only, RGB of 8 bits only, and no larger than memory allows."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.slides import picture_reader, registry
from pipeline.slides.find import find_slides
from stores.errors import OptionError, ReadError, SlideError
from tests.tools.bombs import write_png
from tests.tools.slide_formats import Picture

RGB: Picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_it_is_read_when_it_is_named_and_not_found_in_a_folder(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.PNG", format="PNG")
    assert list(find_slides([tmp_path / "a.PNG"])) == ["a"]
    with pytest.raises(OptionError, match="no slide found"):
        find_slides([tmp_path])


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK", "RGBX16"])
def test_what_is_not_rgb_of_8_bits(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "RGBX16":  # Pillow shows the upper 8 bits of it, without a word
        cv2.imwrite(str(path), RGB.astype(np.uint16) * 257)
    else:
        Image.fromarray(RGB).convert(mode).save(path)
    with pytest.raises(SlideError, match=r"a\.(png|jpg): its pixels are .*; 8-bit RGB is read"):
        registry.open_slide(path)


def test_transparency(tmp_path: Path) -> None:
    for alpha in (255, 254):
        rgba = np.dstack([RGB, np.full((64, 96), 255, np.uint8)])
        rgba[3, 4, 3] = alpha
        Image.fromarray(rgba).save(tmp_path / "a.png")
        with registry.open_slide(tmp_path / "a.png") as file:
            if alpha == 255:
                np.testing.assert_array_equal(file.region(0, 0, 0, 96, 64), RGB)
            else:
                with pytest.raises(ReadError, match="it has transparent parts"):
                    file.region(0, 0, 0, 96, 64)


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(picture_reader, "MAX_TILE_BYTES", 3 * 96 * 64 - 1)
    with pytest.raises(
        SlideError, match=r"a\.png: more than 6,143 pixels.*convert it, for example with `vips"
    ):
        registry.open_slide(tmp_path / "a.png")
    monkeypatch.undo()
    for side in (10_000, 20_000, 1 << 30):  # Pillow warns of the first, and refuses the others
        write_png(tmp_path / "a.png", side, side)
        with pytest.raises(SlideError, match=r"a\.png: more than 89,478,485 pixels"):
            registry.open_slide(tmp_path / "a.png")


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(SlideError, match=r"a\.png: no PNG or JPEG that opens") as caught:
        registry.open_slide(tmp_path / "a.png")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(SlideError, match=r"b\.png: no such file"):
        registry.open_slide(tmp_path / "b.png")


def test_a_picture_that_was_exchanged_while_it_is_open(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with registry.open_slide(tmp_path / "a.png") as file:
        Image.fromarray(np.tile(RGB, (2, 2, 1))).save(tmp_path / "a.png")
        with pytest.raises(ReadError, match="it is another picture now"):
            file.region(0, 0, 0, 8, 8)
