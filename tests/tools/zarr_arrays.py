"""Arrays that Zarr itself writes, as another program would."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec

_EVERY_CHUNK: Any = {"write_empty_chunks": True}


def create(
    store: Path,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    fill: float,
    *codecs: Any,
) -> zarr.Array[Any]:
    """The array `name`, ``root.zarr/path``, with crc32c as its last codec; one that is there is replaced."""
    root, _, path = name.partition("/")
    group = zarr.open_group(store / root, mode="a", zarr_format=3)
    return group.create_array(
        path,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        filters=None,
        compressors=[*codecs, Crc32cCodec()],
        config=_EVERY_CHUNK,
        overwrite=True,
    )


def writable(store: Path, name: str) -> zarr.Array[Any]:
    """An array that is there."""
    return zarr.open_array(store / name, mode="r+", zarr_format=3).with_config(_EVERY_CHUNK)


def whole(store: Path, name: str) -> npt.NDArray[Any]:
    """All of an array that is there, as Zarr reads it."""
    return np.asarray(zarr.open_array(store / name, mode="r", zarr_format=3)[...])
