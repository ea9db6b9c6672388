"""Tiles in an HDF5 file as PatchCamelyon has them: a dataset ``x``, uint8 (n, h, w, 3), and ``y`` in a file beside it.

The file may come from elsewhere: its links, shapes, filters and sizes are looked at before memory is taken.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import OptionError, ReadError, StoreError
from stores.io import hdf5
from stores.io.files import first_line
from stores.io.foreign import is_regular, open_regular

_MAX_BYTES = 1 << 42
MAX_TILE_PX = 40_000_000
"""The most pixels of a tile, in whatever file."""
_MAX_LABELS = 1 << 24
_MAX_DIGITS = 18
_MAX_PACKED = 2000
"""The most that gzip makes of a byte is about 1,030."""
_SPLIT = re.compile(r"_(train|valid|val|test)_x$")


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5 by its ending."""
    return path.suffix.lower() in (".h5", ".hdf5")


def file_and_row(name: str) -> tuple[str, int | None]:
    """The file of a tile by its name, and its row; None where the file is an image.

    >>> file_and_row("a.h5#3"), file_and_row("a.png")
    (('a.h5', 3), ('a.png', None))
    """
    file, _, row = name.rpartition("#")
    has_row = row.isdecimal() and len(row) <= _MAX_DIGITS and is_hdf5(Path(file))
    return (file, int(row)) if has_row else (name, None)


class Stacked:
    """The dataset ``x`` of an HDF5 file, open for reading row by row; ReadError when there is none."""

    def __init__(self, path: Path) -> None:
        import h5py

        self._bounded: set[int] = set()  # numbers of chunks, which are unpacked once more than they are read
        try:
            open_regular(path, _MAX_BYTES).close()
            self._file = h5py.File(path, "r")
        except (FileNotFoundError, NotADirectoryError):
            raise ReadError("no such file") from None
        except (OSError, StoreError) as error:
            said = first_line(error).replace(str(path), path.name)  # a reason stands in the store
            raise ReadError(f"{path.name}: not a readable HDF5 file ({said})") from None
        try:
            self._x = _dataset(self._file, "x")
            shape = self._x.shape
            if self._x.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
                raise ValueError(f"x is {self._x.dtype} {shape}; uint8 (n, h, w, 3) is expected")
            if not 0 < shape[1] * shape[2] <= MAX_TILE_PX:
                raise ValueError(f"tiles of {shape[2]}x{shape[1]} px; at most {MAX_TILE_PX} pixels are read")
        except (ValueError, KeyError, OSError, RuntimeError, AttributeError, TypeError) as error:
            self._file.close()
            raise ReadError(f"{path.name}: {first_line(error)}") from None

    def __len__(self) -> int:
        return int(self._x.shape[0])

    def read(self, row: int) -> npt.NDArray[np.uint8]:
        """A tile, uint8 (h, w, 3); ReadError when the file does not have it, or is damaged there."""
        if not row < len(self):
            raise ReadError(f"row {row}; the file has {len(self)}")
        try:
            chunk = row // (self._x.chunks or self._x.shape)[0]
            if chunk not in self._bounded:
                hdf5.require_bounded(self._x, row, row + 1)
                self._bounded.add(chunk)
            return np.asarray(self._x[row], np.uint8)
        except (OSError, RuntimeError, MemoryError, ValueError) as error:
            raise ReadError(f"row {row} is damaged ({first_line(error)})") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _dataset(file: Any, name: str) -> Any:
    """A dataset whose numbers are in the file itself, behind filters that HDF5 has; ValueError otherwise."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"no dataset {name} of its own")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise ValueError(f"{name} is no dataset in this file")
    try:
        hdf5.require_plain(found)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from None
    if found.nbytes > max(found.id.get_storage_size(), 1) * _MAX_PACKED:
        raise ValueError(f"{name} has {found.nbytes} bytes, hardly any of them in the file")
    return found


def columns_of(path: Path) -> tuple[int, dict[str, list[str]]]:
    """How many tiles a file has, and what is known of each: ``label`` from the file of ``y``, ``split`` from its name.

    Raises
    ------
    OptionError
        When it has no tiles, or the labels are not one for each.
    """
    import h5py

    try:
        opened = Stacked(path)
    except ReadError as error:
        raise OptionError(f"{path}: {error}") from None
    n = len(opened)
    opened.close()
    columns: dict[str, list[str]] = {}
    split = _SPLIT.search(path.stem)
    if split is not None:
        columns["split"] = [split[1].replace("valid", "val")] * n
    beside = path.with_name(f"{path.stem.removesuffix('_x')}_y{path.suffix}")
    if path.stem.endswith("_x") and is_regular(beside):
        try:
            open_regular(beside, _MAX_BYTES).close()
            with h5py.File(beside, "r") as file:
                y = _dataset(file, "y")
                if y.shape != (n, *(1,) * (y.ndim - 1)) or n > _MAX_LABELS or y.dtype.kind not in "iu":
                    raise ValueError(
                        f"y is {y.dtype} {y.shape}; one whole number for each of {n} is expected"
                    )
                hdf5.require_bounded(y, 0, n)
                columns["label"] = [str(value) for value in y[:].reshape(-1).tolist()]
        except (ValueError, KeyError, OSError, RuntimeError, StoreError) as error:
            raise OptionError(f"{beside}: {first_line(error)}") from None
    return n, columns
