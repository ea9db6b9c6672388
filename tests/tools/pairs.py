"""Pairs of tiles for tests: the same tiles as several simulated scanners would show them, and their table."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image

from tests.tools.tiles import tile_pixels, write_table

SCANNERS = ("a", "b", "c", "d")
"""``a`` shows the tile as it is."""
_SHIFT = {"b": (-12.0, 6.0, 18.0), "c": (14.0, -10.0, -4.0), "d": (10.0, 12.0, -16.0)}
"""Levels by which black and white move, of red, green and blue: a white balance."""
_GAMMA = {"b": 1.25, "c": 0.8, "d": 1.1}
_SIGMA = {"b": 0.8, "c": 0.0, "d": 1.4}
"""Of the blur, in pixels: focus and optics."""
_MIX = {"b": 0.12, "c": -0.10, "d": 0.18}
"""How much each colour takes of the mean of the others: the colour filter, and thereby the saturation."""


def as_scanned(pixels: npt.NDArray[np.uint8], scanner: str) -> npt.NDArray[np.uint8]:
    """A tile as another scanner might show it, **simulated**: colour filter, white balance, gamma and blur.

    Parameters
    ----------
    pixels : uint8 (h, w, 3)
    """
    if scanner == SCANNERS[0]:
        return pixels
    wide = pixels.astype(np.float32) / 255
    wide = wide + _MIX[scanner] * (wide.mean(axis=2, keepdims=True) - wide)
    wide = wide.clip(0, 1) ** _GAMMA[scanner] + np.array(_SHIFT[scanner], np.float32) / 255
    if _SIGMA[scanner]:
        wide = cv2.GaussianBlur(wide, (0, 0), _SIGMA[scanner])
    return (wide.clip(0, 1) * 255).round().astype(np.uint8)


def write_pairs(
    folder: Path, numbers: Sequence[int], scanners: Sequence[str] = SCANNERS[:3], alone: int = 0
) -> Path:
    """Write tiles of several scanners, a group for each and its split, and return their table.

    A quarter of the places is held out. The last `alone` places are shown by the first scanner only.
    """
    rows = []
    for at, number in enumerate(numbers):
        only = at >= len(numbers) - alone
        for scanner in scanners[: 1 if only else None]:
            name = f"{scanner}/t{number}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(as_scanned(tile_pixels(number), scanner)).save(folder / name)
            split = "val" if at % 4 == 3 else "train"
            said = {"group": f"{scanner}-{split}", "patient_id": split, "split": split}
            rows.append({"path": name, "pair": f"n{number}", "site": scanner, **said})
    return write_table(folder / "tiles.csv", rows)
