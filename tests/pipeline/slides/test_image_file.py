"""Image files of others: too many pixels are refused by our own limit, and Pillow does not speak of its own."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.slides.image_file import TooManyPixels, open_image
from pipeline.tiles.image import read_image
from stores.errors import ReadError
from tests.tools.bombs import write_png


@pytest.mark.parametrize(("side", "said"), [(10_000, "10000x10000 px"), (20_000, "too many pixels")])
def test_too_many_pixels(tmp_path: Path, side: int, said: str) -> None:
    """Pillow warns of the first, which is an error in these tests, and refuses the second."""
    path = write_png(tmp_path / "a.png", side, side)
    with pytest.raises(TooManyPixels, match=said), open_image(path, ("PNG",), 1 << 20, 40_000_000):
        pass
    with pytest.raises(ReadError, match=f"^{said}, at most 40000000 pixels are read$"):
        read_image(path)


def test_the_limit_is_the_readers_own(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", 10_000, 10_000)
    with open_image(path, ("PNG",), 1 << 20, 10_000**2) as image:
        assert image.size == (10_000, 10_000)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", "TIFF")
    with (
        pytest.raises(Image.UnidentifiedImageError),
        open_image(tmp_path / "b.png", ("PNG",), 1 << 20, 100),
    ):
        pass
