"""A quick export, and what its files are run on."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

import pipeline as g2l
from pipeline.export.export import Exported
from pipeline.export.pixels import tiles_as_views

COUNT = 5


def write_tiles(folder: Path, side_px: int = 40) -> Path:
    """A folder of tiles: blurred noise, so that squares of pixels do not average to grey."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(COUNT):
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(small).resize((side_px, side_px))
        image.save(folder / f"{number}.png")
    return folder


def views_of(tiles: Path, side_px: int) -> npt.NDArray[np.uint8]:
    """The views that an export of such an encoder is compared on."""
    return tiles_as_views([tiles], side_px, COUNT)


def deploy(encoder: object, out: Path, tiles: Path, **options: Any) -> Exported:
    """Export an encoder; of a name that is no folder with random weights."""
    if not Path(str(encoder)).is_dir():
        options = {"random_weights": 1, **options}
    return g2l.export(str(encoder), out, patches=[tiles], views=COUNT, **options)
