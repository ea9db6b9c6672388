"""Chunks of arrays, read and written whole; sizes are checked before memory is taken.

A chunk is a file of its own, or in a packed array a part of a shard (`stores.format.shards`), which is only read.
"""

import os
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt

from stores.errors import CorruptStore, OptionError
from stores.format.encoding import Encoder
from stores.format.layout import MAX_CHUNK_FILE_BYTES, MAX_METADATA_BYTES, chunk_file, metadata_file
from stores.format.metadata import ArraySpec
from stores.format.shards import file_of, index_bytes, place_in
from stores.io.files import first_line, write_bytes
from stores.io.location import RemoteFiles, StoreLike, open_file, read_file, read_range

_BLOSC_HEADER, _BLOSC_MIN_BLOCK, _BLOSC_ZSTD = 16, 1 << 12, 4


def require_decodable(body: bytes | memoryview, spec: ArraySpec, where: str) -> None:
    """Raise CorruptStore unless a compressed chunk is of the form that a store has, and decodes to its array's size.

    The C libraries take its word for offsets and lengths, so all of them are compared with what there is.

    Parameters
    ----------
    body
        The chunk without its crc32c.
    """
    fault = None
    if spec.compressor == "zstd":
        fault = _zstd_fault(body, spec.chunk_bytes)
    elif spec.compressor == "blosc":
        fault = blosc_fault(body, spec.chunk_bytes, (_BLOSC_ZSTD,))
    if fault is not None:
        raise CorruptStore(f"{where}: {fault}")


def _zstd_fault(body: bytes | memoryview, expected: int) -> str | None:
    """What is wrong with a Zstandard frame, which has to be the only one. Source: RFC 8878, section 3.1.1."""
    if len(body) < 6 or body[:4] != b"\x28\xb5\x2f\xfd":
        return "is no Zstandard frame"
    size_flag, single_segment, checksum, dictionary = (
        body[4] >> 6,
        body[4] >> 5 & 1,
        body[4] >> 2 & 1,
        body[4] & 3,
    )
    if dictionary or body[4] & 8:
        return "is a Zstandard frame with a dictionary or a reserved bit"
    size = None
    at = 5 + (not single_segment)
    if size_flag or single_segment:
        length = (1, 2, 4, 8)[size_flag]
        size = int.from_bytes(body[at : at + length], "little") + (256 if length == 2 else 0)
        at += length
    if size != expected:
        return f"decodes to {size} bytes, expected {expected}"
    last = False
    while not last:
        block = int.from_bytes(body[at : at + 3], "little")
        last, kind, length = bool(block & 1), block >> 1 & 3, block >> 3
        if at + 3 > len(body) or kind == 3 or (length == 0 and not last):
            return "is a Zstandard frame with a wrong block"
        at += 3 + (1 if kind == 1 else length)
    at += 4 * checksum
    return None if at == len(body) else f"is a Zstandard frame of {at} bytes in {len(body)}"


def blosc_fault(body: bytes | memoryview, expected: int, codecs: tuple[int, ...]) -> str | None:
    """What is wrong with a Blosc chunk of `expected` bytes, compressed by one of `codecs` (numbers of c-blosc).

    Source: README_CHUNK_FORMAT.rst of c-blosc 1.21, and its decoder.
    """
    if len(body) < _BLOSC_HEADER:
        return f"is a Blosc chunk of {len(body)} bytes, less than its header has"
    version, inner_version, flags, typesize, size, block_size, stored = struct.unpack_from("<4B3I", body)
    if size != expected:
        return f"decodes to {size} bytes, expected {expected}"
    if stored != len(body):
        return f"says that it has {stored} bytes, and has {len(body)}"
    if version != 2 or typesize == 0 or flags & 0b1000:
        return f"is a Blosc chunk of version {version}, type size {typesize}, flags {flags:#x}"
    if flags & 2:  # stored as it is
        return None if stored == size + _BLOSC_HEADER else "is a plain Blosc chunk of another size"
    if inner_version != 1 or flags >> 5 not in codecs:
        return f"is a Blosc chunk of codec {flags >> 5} version {inner_version}; expected {codecs}"
    if not min(size // 2, _BLOSC_MIN_BLOCK) <= block_size <= size or block_size % typesize:
        return f"is a Blosc chunk with blocks of {block_size} bytes"
    blocks = -(-size // block_size)
    table = _BLOSC_HEADER + 4 * blocks
    if table > stored:
        return "is a Blosc chunk whose table of blocks ends behind it"
    for number, start in enumerate(struct.unpack_from(f"<{blocks}i", body, _BLOSC_HEADER)):
        whole = (number + 1) * block_size <= size
        parts = (
            typesize if not flags & 0x10 and whole and typesize <= 16 and block_size // typesize >= 128 else 1
        )
        at = start
        for _ in range(parts):
            if not table <= at <= stored - 4:
                return f"is a Blosc chunk whose block {number} starts at {at}"
            length = struct.unpack_from("<i", body, at)[0]
            at += 4 + length
            if length < 0 or at > stored:
                return f"is a Blosc chunk whose block {number} ends behind it"
    return None


def chunk_limit(spec: ArraySpec) -> int:
    """The most bytes that a chunk may have as it is stored."""
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
    file = file_of(name, spec, index)
    raw = read_stored(store, name, spec, index, memory)
    if raw is None:
        return None
    body = raw[:-4]
    if spec.compressor is not None:
        require_decodable(body, spec, f"{store}/{file}")
        codec = numcodecs.Zstd() if spec.compressor == "zstd" else numcodecs.Blosc()
        room = np.empty(spec.chunk_bytes, np.uint8)
        try:
            codec.decode(body, out=room)
            body = room.data.toreadonly()
        except Exception as error:  # numcodecs raises RuntimeError and ValueError
            raise CorruptStore(f"{store}/{file}: cannot be decoded ({first_line(error)})") from None
    if len(body) != spec.chunk_bytes:
        raise CorruptStore(f"{store}/{file}: {len(body)} bytes, expected {spec.chunk_bytes}")
    return np.frombuffer(body, spec.dtype).reshape(spec.chunks)


def read_stored(
    store: StoreLike,
    name: str,
    spec: ArraySpec,
    index: tuple[int, ...],
    memory: npt.NDArray[np.uint8] | None = None,
) -> memoryview | None:
    """A chunk as it is stored, with its crc32c, which is right; parameters and errors as for `read_chunk`."""
    file = file_of(name, spec, index)
    raw = _read_bytes(store, file, spec, index, memory)
    if raw is None:
        return None
    # as an array, because the library does not accept a memoryview
    if len(raw) < 4 or google_crc32c.value(np.frombuffer(raw[:-4], np.uint8)) != int.from_bytes(
        raw[-4:], "little"
    ):
        where = "" if spec.shard is None else f"chunk {index}: "
        raise CorruptStore(f"{store}/{file}: {where}its crc32c differs")
    return raw


def is_in_shard(store: StoreLike, name: str, spec: ArraySpec, index: tuple[int, ...]) -> bool:
    """Whether a packed array has a chunk; errors as for `read_chunk`."""
    file = file_of(name, spec, index)
    table = read_range(store, file, 0, index_bytes(spec))
    return table is not None and _place(table, store, file, spec, index) is not None


def _place(
    table: bytes, store: StoreLike, file: str, spec: ArraySpec, index: tuple[int, ...]
) -> tuple[int, int] | None:
    return place_in(table, spec, index, chunk_limit(spec), f"{store}/{file}")


def _read_bytes(
    store: StoreLike,
    file: str,
    spec: ArraySpec,
    index: tuple[int, ...],
    memory: npt.NDArray[np.uint8] | None,
) -> memoryview | None:
    """A chunk as it is stored, from its file or shard; of a local store in `memory`, where there is one."""
    if not isinstance(store, Path):
        return _fetch(store, file, spec, index)
    packed = spec.shard is not None
    opened = open_file(store, file, MAX_CHUNK_FILE_BYTES if packed else chunk_limit(spec))
    if opened is None:
        return None
    with opened:  # once for index and chunk: opening costs more than reading a small chunk
        place: tuple[int, int] | None = (0, os.fstat(opened.fileno()).st_size)
        if packed:
            place = _place(opened.read(index_bytes(spec)), store, file, spec, index)
        if place is None:
            return None
        opened.seek(place[0])
        if memory is None:
            return memoryview(opened.read(place[1]))
        room = memory.data[: place[1]]
        return room[: opened.readinto(room)].toreadonly()


def _fetch(store: RemoteFiles, file: str, spec: ArraySpec, index: tuple[int, ...]) -> memoryview | None:
    if spec.shard is None:
        raw = store.read(file, chunk_limit(spec))
        return None if raw is None else memoryview(raw)
    table = store.read_range(file, 0, index_bytes(spec))
    place = None if table is None else _place(table, store, file, spec, index)
    raw = None if place is None else store.read_range(file, *place)
    return None if raw is None else memoryview(raw)


def write_chunk(
    store: Path, name: str, spec: ArraySpec, index: tuple[int, ...], values: npt.NDArray[Any], fill: float
) -> None:
    """Write a chunk, flushed to the disk before it appears; beyond `values` the chunk is `fill`.

    The bytes are those that Zarr writes, and Zarr encodes compressed chunks.

    Parameters
    ----------
    values
        With the chunk's number of axes; shorter than the chunk where that reaches over the end of the array.

    Raises
    ------
    OptionError
        When the array is packed.
    """
    require_loose(spec, f"{store}/{name}")
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


def require_loose(spec: ArraySpec, where: str) -> None:
    """Raise OptionError when an array is packed: only a file of its own can be written, copied or removed."""
    if spec.shard is not None:
        raise OptionError(
            f"{where}: is packed, and packed arrays are only read; make a loose copy with "
            "`g2l store export STORE --loose --out DIR`, and take that"
        )
