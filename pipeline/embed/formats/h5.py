"""``trident-h5`` and ``clam``: what TRIDENT, Patho-Bench and CLAM read, a file for each slide."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.embed.formats.base import Format, Parts, Unit, ok_rows, slides_only
from pipeline.embed.parts import feature_matrix
from stores.io import files

_BASE_MAGNIFICATION_MPP = 10.0  # 10x is 1 micrometre a pixel
_H5_CHUNK_ROWS = 64


def write_h5(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    path = folder / f"{unit.name}.h5"
    row, patch = unit.row, unit.about["patch"]
    with files.replacing(path) as partial, _new_h5(partial) as file:
        made = {
            "features": file.create_dataset(
                "features",
                (0, unit.dim),
                np.float32,
                maxshape=(None, unit.dim),
                chunks=(_H5_CHUNK_ROWS, unit.dim),
            ),
            "coords": file.create_dataset("coords", (0, 2), np.int64, maxshape=(None, 2), chunks=(4096, 2)),
        }
        for part in parts:
            good = ok_rows(part)
            if not len(good):
                continue
            _append(made["features"], feature_matrix(good["features"]))
            _append(made["coords"], np.stack([good["x_px0"].to_numpy(), good["y_px0"].to_numpy()], axis=1))
        made["coords"].attrs.update(
            {
                "patch_size": patch["size_px"],
                "patch_size_level0": row["patch_px0"],
                "level0_magnification": round(_BASE_MAGNIFICATION_MPP / row["mpp"]),
                "target_magnification": round(_BASE_MAGNIFICATION_MPP / row["patch_mpp"]),
                "overlap": 0,
                "name": unit.name,
                "savetodir": "",
                "level0_width": row["width_px0"],
                "level0_height": row["height_px0"],
            }
        )
        made["features"].attrs.update({"name": unit.about["encoder"]["name"], "savetodir": ""})
        file.attrs["g2l"] = json.dumps(unit.about, sort_keys=True)
    return [path]


@contextlib.contextmanager
def _new_h5(path: Path) -> Iterator[Any]:
    """An HDF5 file to write into; OSError when the disk fails or is full.

    HDF5 does not see that failure: a file that it could not close makes it crash when the process ends, with a signal
    instead of an exit code (2 of 13 calls at which one write failed).
    """
    import h5py

    with _Disk(path) as disk:
        with h5py.File(disk, "w") as file:
            yield file
        if disk.failed is not None:
            raise disk.failed


class _Disk(io.FileIO):
    """A file that remembers its first failed write and takes every further one for done."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+")
        self.failed: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            left = memoryview(data).cast("B")
            while self.failed is None and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.failed = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failed = self.failed or error
            return size or 0


def _append(dataset: Any, values: npt.NDArray[Any]) -> None:
    n = len(dataset)
    dataset.resize(n + len(values), axis=0)
    dataset[n:] = values


def write_clam(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    import h5py
    import torch

    from pipeline.encoders.tensor_files import save_torch

    (h5,) = write_h5(folder / "h5_files", unit, parts)
    path = folder / "pt_files" / f"{unit.name}.pt"
    with h5py.File(h5) as file:
        features = file["features"][:]
    save_torch(path, torch.from_numpy(features))
    return [h5, path]


TRIDENT_H5 = Format(slides_only("trident-h5"), write_h5)
CLAM = Format(slides_only("clam"), write_clam)
