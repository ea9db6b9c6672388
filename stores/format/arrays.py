"""Zarr arrays that may come from another lab: metadata is judged before Zarr sees it, chunks before they decode.

A name such as ``features.zarr/a/features`` is both the path of an array below the store and the prefix of its files, so
that a local folder and a remote store are read through one function, ``name -> bytes``.
"""

import asyncio
import math
import stat
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype

from stores.errors import CorruptStore, StoreError
from stores.format.metadata import MAX_READ_BYTES, ArraySpec, parse_metadata
from stores.io.files import first_line, fsync_path, write_bytes
from stores.io.location import StoreLike

_EVERY_CHUNK: Any = {
    "write_empty_chunks": True
}  # one that equals the fill value is a chunk too, not a lost one
_MAX_METADATA_BYTES = 64 << 10
_T = TypeVar("_T")


def read_metadata(store: StoreLike, name: str) -> ArraySpec:
    """The checked metadata of the array `name`.

    Raises
    ------
    StoreError
        When there is no such array.
    """
    raw = read_file(store, f"{name}/zarr.json", _MAX_METADATA_BYTES)
    if raw is None:
        raise StoreError(f"{store}/{name}: no such array; is the store complete?")
    return parse_metadata(raw, f"{store}/{name}")


def read_file(store: StoreLike, name: str, limit_bytes: int) -> bytes | None:
    """A file of the store, None when it is absent; CorruptStore when it is no regular file, or too large."""
    if not isinstance(store, Path):
        return store.read(name, limit_bytes)
    return _read_local(store / name, limit_bytes, lambda path, _: path.read_bytes())


def _read_local(path: Path, limit_bytes: int, read: Callable[[Path, int], _T]) -> _T | None:
    """What `read` makes of a file and its size, as `read_file`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            what = "larger than" if stat.S_ISREG(status.st_mode) else "not a file; expected one of at most"
            raise CorruptStore(f"{path}: {what} {limit_bytes} bytes")
        return read(path, status.st_size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptStore(f"{path}: cannot be read ({first_line(error)})") from None


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


class ReadOnlyStore(Store):
    """A Zarr store over ``name -> bytes``; refuses a chunk that would decode to another size than its array says."""

    def __init__(self, read: Callable[[str, int], bytes | None], name: str, spec: ArraySpec) -> None:
        super().__init__(read_only=True)
        self._read, self._name, self._spec = read, name, spec

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"ReadOnlyStore({self._name!r})"

    def with_read_only(self, read_only: bool = False) -> "ReadOnlyStore":
        if not read_only:
            raise NotImplementedError
        return self

    def _get(self, key: str) -> bytes | None:
        is_chunk = not key.endswith("zarr.json")
        limit = chunk_limit(self._spec) if is_chunk else _MAX_METADATA_BYTES
        raw = self._read(f"{self._name}/{key}", limit)
        if raw is not None and is_chunk:
            require_decoded_size(raw, self._spec, f"{self._name}/{key}")
        return raw

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        raw = await asyncio.to_thread(self._get, key)
        return None if raw is None else prototype.buffer.from_bytes(_cut(raw, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._get, key) is not None

    @property
    def supports_writes(self) -> bool:
        return False

    @property
    def supports_deletes(self) -> bool:
        return False

    @property
    def supports_listing(self) -> bool:
        return False

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError


def _cut(raw: bytes, byte_range: ByteRequest | None) -> bytes:
    if isinstance(byte_range, RangeByteRequest):
        return raw[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return raw[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return raw[-byte_range.suffix :]
    return raw


def read_spec(store: StoreLike, name: str, ndim: int, dtypes: str | tuple[str, ...]) -> ArraySpec:
    """As `read_metadata`; CorruptStore when the array has other dimensions or another type."""
    spec = read_metadata(store, name)
    allowed = (dtypes,) if isinstance(dtypes, str) else dtypes
    if len(spec.shape) != ndim or str(spec.dtype) not in allowed:
        raise CorruptStore(
            f"{store}/{name}: {spec.dtype} with {len(spec.shape)} dimensions, "
            f"expected {' or '.join(allowed)} with {ndim}"
        )
    return spec


def open_checked(store: StoreLike, name: str, ndim: int, dtypes: str | tuple[str, ...]) -> zarr.Array[Any]:
    """Open an array for reading that may come from another lab.

    Raises
    ------
    StoreError
        When there is no such array.
    CorruptStore
        When it is not what the format says.
    """
    spec = read_spec(store, name, ndim, dtypes)

    def read(file: str, limit: int) -> bytes | None:
        return read_file(store, file, limit)

    try:
        return zarr.open_array(ReadOnlyStore(read, name, spec), mode="r", zarr_format=3)
    except Exception as error:  # zarr has no base class for what bad metadata raises
        raise CorruptStore(f"{store}/{name}: unreadable array metadata ({first_line(error)})") from None


def open_for_writing(store: Path, name: str, ndim: int, dtype: str) -> zarr.Array[Any]:
    """Open an array of a local store for writing, with the same checks."""
    open_checked(store, name, ndim, dtype)
    return zarr.open_array(store / name, mode="r+", zarr_format=3).with_config(_EVERY_CHUNK)


def read_selection(array: zarr.Array[Any], selection: tuple[Any, ...], what: str) -> npt.NDArray[Any]:
    """Read a part of an array.

    Raises
    ------
    CorruptStore
        When a chunk is damaged; names `what` was read.
    """
    try:
        return np.asarray(array[selection])
    except StoreError as error:
        raise type(error)(f"{what}: {error}") from None
    except Exception as error:  # codecs raise ValueError, RuntimeError, OSError ... on damaged bytes
        raise CorruptStore(f"{what}: damaged chunk ({first_line(error)})") from error


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
        To hold the chunk, until it is used for another one. Fresh memory costs more than reading into it.

    Raises
    ------
    CorruptStore
        When the chunk is damaged.
    """
    file = f"{name}/c/{'/'.join(map(str, index))}"
    raw = _read_chunk_file(store, file, chunk_limit(spec), memory)
    if raw is None:
        return None
    body = raw[:-4]
    # an array, for the library takes no view of bytes
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

    return _read_local(store / file, limit_bytes, into_room)


def read_whole(array: zarr.Array[Any], what: str) -> npt.NDArray[Any]:
    """Read an array that is small by its nature; CorruptStore when its shape asks for more memory than that."""
    size = math.prod(array.shape) * array.dtype.itemsize
    if size > MAX_READ_BYTES:
        raise CorruptStore(
            f"{what}: shape {array.shape} asks for {size} bytes, more than {MAX_READ_BYTES >> 20} MiB"
        )
    return read_selection(array, (slice(None),), what)


def chunk_file(store: Path, name: str, index: tuple[int, ...]) -> Path:
    """The file that holds a chunk of an array of a local store."""
    return store / name / "c" / "/".join(map(str, index))


def write_chunk(
    store: Path, name: str, spec: ArraySpec, index: tuple[int, ...], values: npt.NDArray[Any], fill: float
) -> None:
    """Write a chunk and flush it to the disk; what is left of the chunk is `fill`.

    The bytes are those that Zarr writes, whose way takes twice as long and renames before it flushes; it is left to
    Zarr where chunks are compressed, as they are in a copy.

    Parameters
    ----------
    values
        With the chunk's number of axes; shorter than the chunk where that reaches over the end of the array.
    """
    if spec.compressor is not None:
        array = zarr.open_array(store / name, mode="r+", zarr_format=3).with_config(_EVERY_CHUNK)
        starts = [number * side for number, side in zip(index, spec.chunks, strict=True)]
        array[tuple(slice(at, at + n) for at, n in zip(starts, values.shape, strict=True))] = values
        flush_chunk(store, name, index)
        return
    if values.shape != spec.chunks:
        whole = np.full(spec.chunks, fill, spec.dtype)
        whole[tuple(slice(0, n) for n in values.shape)] = values
        values = whole
    body = np.ascontiguousarray(values, spec.dtype.newbyteorder("<"))
    checksum = google_crc32c.value(body.reshape(-1).view(np.uint8))
    write_bytes(chunk_file(store, name, index), body.data, checksum.to_bytes(4, "little"))


def flush_chunk(store: Path, name: str, index: tuple[int, ...]) -> None:
    """Force a written chunk to the disk: Zarr renames it into place but does not fsync."""
    path = chunk_file(store, name, index)
    fsync_path(path)
    fsync_path(path.parent)


def create_array(
    store: Path,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    fill: float,
    *codecs: Any,
) -> zarr.Array[Any]:
    """Create the array `name`, ``root.zarr/path``, with crc32c as its last codec, in place of one that a kill left."""
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
