"""HDF5 whose chunks unpack to more than they have, and PNG that promises more pixels than fit."""

import struct
import zlib
from pathlib import Path
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


def write_png(path: Path, width_px: int, height_px: int) -> Path:
    """A PNG of 8-bit RGB in a valid header, and of no pixel."""
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    return path
