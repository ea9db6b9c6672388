"""HDF5 whose chunks unpack to more than they have."""

import zlib
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

UNPACKED = 16 << 20


def write_bomb(file: h5py.File, name: str, values: npt.NDArray[Any], **how: object) -> h5py.Dataset:
    """A data set in one chunk, with its attributes kept, whose bytes are followed by zeros up to `UNPACKED`."""
    about = dict(file[name].attrs) if name in file else {}
    if name in file:
        del file[name]
    chunk = {"chunks": values.shape, "compression": "gzip", **how}
    found = file.create_dataset(name, values.shape, values.dtype, **chunk)
    found.attrs.update(about)
    raw = np.ascontiguousarray(values).tobytes()
    found.id.write_direct_chunk((0,) * values.ndim, zlib.compress(raw.ljust(UNPACKED, b"\0")))
    return found
