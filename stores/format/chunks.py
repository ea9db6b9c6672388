"""Chunks of arrays, read and written as whole files; sizes are checked before memory is taken."""

from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt

from stores.errors import CorruptStore
from stores.format.encoding import Encoder
from stores.format.layout import chunk_file, metadata_file
from stores.format.metadata import MAX_METADATA_BYTES, ArraySpec
from stores.io.files import first_line, write_bytes
from stores.io.location import StoreLike, read_file, read_local


def decoded_size(raw: bytes | memoryview, compressor: str) -> int | None:
    """The size that a compressed chunk says it decodes to; None when it does not say.

    Sources: RFC 8878, section 3.1.1 (Zstandard frame header); the Blosc 1 header.
    """
    if compressor == "blosc":
        return int.from_bytes(raw[4:8], "little") if len(raw) >= 16 else None
    if len(raw) < 6 or raw[:4] != b"\x28\xb5\x2f\xfd":
        return None
    size_flag, single_segment, dictionary_flag = raw[4] >> 6, raw[4] >> 5 & 1, raw[4] & 3
    if size_flag == 0 and not single_segment:
        return None
    start = 5 + (not single_segment) + (0, 1, 2, 4)[dictionary_flag]
    length = (1, 2, 4, 8)[size_flag]
    return int.from_bytes(raw[start : start + length], "little") + (256 if length == 2 else 0)


def require_decoded_size(raw: bytes | memoryview, spec: ArraySpec, where: str) -> None:
    """Raise CorruptStore unless a compressed chunk decodes to the size that its array says."""
    if spec.compressor is not None:
        size = decoded_size(raw, spec.compressor)
        if size != spec.chunk_bytes:
            raise CorruptStore(f"{where}: decodes to {size} bytes, expected {spec.chunk_bytes}")


def chunk_limit(spec: ArraySpec) -> int:
    """The most bytes that the file of a chunk may have."""
    return spec.chunk_bytes * 9 // 8 + 1024  # what cannot be compressed grows by a header per block


def read_chunk(
    store: StoreLike,
    name: str,
    spec: ArraySpec,
    index: tuple[int, ...],
    memory: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[Any] | None:
    """A whole chunk, padding included and read-only, or None when there is none.

    Decodes without Zarr, whose way through an event loop costs more than reading, checksum and decoding together.

    Parameters
    ----------
    memory : uint8 (at least chunk_limit(spec),)
        Holds the chunk, until it is used again. Fresh memory costs more than reading into it.

    Raises
    ------
    CorruptStore
        When the chunk is damaged.
    """
    file = chunk_file(name, index)
    raw = _read_chunk_file(store, file, chunk_limit(spec), memory)
    if raw is None:
        return None
    body = raw[:-4]
    # as an array, because the library does not accept a memoryview
    if len(raw) < 4 or google_crc32c.value(np.frombuffer(body, np.uint8)) != int.from_bytes(
        raw[-4:], "little"
    ):
        raise CorruptStore(f"{store}/{file}: its crc32c differs")
    if spec.compressor is not None:
        require_decoded_size(raw, spec, f"{store}/{file}")
        codec = numcodecs.Zstd() if spec.compressor == "zstd" else numcodecs.Blosc()
        try:
            body = memoryview(codec.decode(body))
        except Exception as error:  # numcodecs raises RuntimeError and ValueError
            raise CorruptStore(f"{store}/{file}: cannot be decoded ({first_line(error)})") from None
    if len(body) != spec.chunk_bytes:
        raise CorruptStore(f"{store}/{file}: {len(body)} bytes, expected {spec.chunk_bytes}")
    return np.frombuffer(body, spec.dtype).reshape(spec.chunks)


def _read_chunk_file(
    store: StoreLike, file: str, limit_bytes: int, memory: npt.NDArray[np.uint8] | None
) -> memoryview | None:
    if memory is None or not isinstance(store, Path):
        raw = read_file(store, file, limit_bytes)
        return None if raw is None else memoryview(raw)
    room = memory.data

    def into_room(path: Path, size: int) -> memoryview:
        with path.open("rb") as opened:
            return room[: opened.readinto(room[:size])].toreadonly()

    return read_local(store / file, limit_bytes, into_room)


def write_chunk(
    store: Path, name: str, spec: ArraySpec, index: tuple[int, ...], values: npt.NDArray[Any], fill: float
) -> None:
    """Write a chunk, flushed to the disk before it appears; beyond `values` the chunk is `fill`.

    The bytes are those that Zarr writes, and Zarr encodes compressed chunks.

    Parameters
    ----------
    values
        With the chunk's number of axes; shorter than the chunk where that reaches over the end of the array.
    """
    file = store / chunk_file(name, index)
    if spec.compressor is not None:
        metadata = read_file(store, metadata_file(name), MAX_METADATA_BYTES)
        return write_bytes(file, Encoder(metadata or b"").chunk(index, values))
    if values.shape != spec.chunks:
        whole = np.full(spec.chunks, fill, spec.dtype)
        whole[tuple(slice(0, n) for n in values.shape)] = values
        values = whole
    body = np.ascontiguousarray(values, spec.dtype.newbyteorder("<"))
    checksum = google_crc32c.value(body.reshape(-1).view(np.uint8))
    write_bytes(file, body.data, checksum.to_bytes(4, "little"))
