"""Tiles for tests: small images of smooth noise, as files, as a table, or in one HDF5 file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image


def tile_pixels(number: int, height: int = 64, width: int = 64) -> npt.NDArray[np.uint8]:
    """The tile of a number, uint8 (height, width, 3)."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(40, 250, (8, 8, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)


def write_tiles(folder: Path, numbers: Sequence[int], ending: str = ".png", labels: int = 2) -> list[str]:
    """Write tiles into a folder for each class, and return their names."""
    names = []
    for number in numbers:
        name = f"class{number % labels}/t{number}{ending}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(tile_pixels(number)).save(folder / name)
        names.append(name)
    return names


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write a CSV with the columns of the first row."""
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_hdf5(path: Path, numbers: Sequence[int], labels: int = 2) -> Path:
    """Write tiles as PatchCamelyon has them: ``x`` here, ``y`` in the file beside it."""
    import h5py

    with h5py.File(path, "w") as file:
        stacked = np.stack([tile_pixels(number) for number in numbers])
        file.create_dataset("x", data=stacked, chunks=(2, *stacked.shape[1:]), compression="gzip")
    with h5py.File(path.with_name(f"{path.stem.removesuffix('_x')}_y.h5"), "w") as file:
        file["y"] = np.array([number % labels for number in numbers], np.uint8).reshape(-1, 1, 1, 1)
    return path
