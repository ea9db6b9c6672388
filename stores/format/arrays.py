"""Zarr arrays that may come from another lab: metadata are checked before Zarr reads them, chunks before decoding.

A name such as ``features.zarr/a/features`` is both the path of an array below the store and the prefix of its files, so
that a local folder and a remote store are read in one way.
"""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from stores.errors import CorruptStore, StoreError
from stores.format.chunks import read_chunk, read_stored, require_decodable, require_loose
from stores.format.encoding import BYTE_SHUFFLE, Encoder, Form
from stores.format.layout import MAX_METADATA_BYTES, MAX_READ_BYTES, METADATA, metadata_file, parse_chunk
from stores.format.metadata import GROUP, ArraySpec, loose, parse_metadata
from stores.io.files import first_line, parse_json, write_bytes, write_text
from stores.io.location import StoreLike, read_file


def read_metadata(store: StoreLike, name: str) -> ArraySpec:
    """The checked metadata of the array `name`.

    Raises
    ------
    StoreError
        When there is no such array.
    """
    raw = read_file(store, metadata_file(name), MAX_METADATA_BYTES)
    if raw is None:
        raise StoreError(f"{store}/{name}: no such array; is the store complete?")
    return parse_metadata(raw, f"{store}/{name}")


class ReadOnlyStore(Store):
    """An array as a Zarr store; refuses a chunk that would decode to another size than its array says.

    Zarr sees a packed array as a loose one, so that each of its chunks passes the same checks.
    """

    def __init__(self, store: StoreLike, name: str, spec: ArraySpec) -> None:
        super().__init__(read_only=True)
        self._files, self._name, self._spec = store, name, spec

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"ReadOnlyStore({self._name!r})"

    def with_read_only(self, read_only: bool = False) -> "ReadOnlyStore":
        if not read_only:
            raise NotImplementedError
        return self

    def _get(self, key: str) -> bytes | None:
        if key == METADATA:
            raw = read_file(self._files, metadata_file(self._name), MAX_METADATA_BYTES)
            if raw is None or self._spec.shard is None:
                return raw
            return json.dumps(loose(parse_json(raw.decode()))).encode()
        chunk = parse_chunk(f"{self._name}/{key}")
        if chunk is None:
            return None
        stored = read_stored(self._files, self._name, self._spec, chunk[1])
        if stored is None:
            return None
        require_decodable(stored[:-4], self._spec, f"{self._name}/{key}")
        return bytes(stored)

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
    try:
        return zarr.open_array(ReadOnlyStore(store, name, spec), mode="r", zarr_format=3)
    except Exception as error:  # zarr has no base class for what bad metadata raises
        raise CorruptStore(f"{store}/{name}: unreadable array metadata ({first_line(error)})") from None


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


def read_whole(array: zarr.Array[Any], what: str) -> npt.NDArray[Any]:
    """Read an array that is small by its nature; CorruptStore when its shape asks for more memory than that."""
    size = math.prod(array.shape) * array.dtype.itemsize
    if size > MAX_READ_BYTES:
        raise CorruptStore(
            f"{what}: shape {array.shape} asks for {size} bytes, more than {MAX_READ_BYTES >> 20} MiB"
        )
    return read_selection(array, (slice(None),), what)


def ensure_array(store: Path, name: str, form: Form, grows: bool = False) -> None:
    """Make the metadata of an array where there are none. Files of chunks are never touched.

    Parameters
    ----------
    grows : bool
        The first axis of an array that is there may be longer, and grows where it is shorter.

    Raises
    ------
    OptionError
        When the array is packed.
    CorruptStore
        When the array is of another form, or its metadata are missing and its chunks are not of this form.
    """
    raw = read_file(store, metadata_file(name), MAX_METADATA_BYTES)
    if raw is None:
        return write_metadata(store, name, fitting_metadata(store, name, form))
    spec = read_spec(store, name, len(form.shape), form.dtype)
    require_loose(spec, f"{store / name}")
    first = form.shape[0]
    shape = (max(first, spec.shape[0]) if grows else first, *form.shape[1:])
    if (*spec.shape[1:], *spec.chunks) != (*shape[1:], *form.chunks) or not (grows or spec.shape == shape):
        raise CorruptStore(
            f"{store / name}: shape {spec.shape} in chunks {spec.chunks}, expected {shape} in {form.chunks}"
        )
    if shape != spec.shape:
        write_bytes(store / metadata_file(name), Encoder(raw).resized(shape[0]))


def fitting_metadata(store: Path, name: str, form: Form) -> bytes:
    """Metadata with which the chunks that are there can be read: those of `form`, or of a lossless copy of it.

    Raises
    ------
    CorruptStore
        When no chunk can be read with either.
    """
    forms = [form]
    if form.dtype == "float16" and not form.codecs:
        forms.append(replace(form, codecs=(BYTE_SHUFFLE,)))
    choices = [each.metadata() for each in forms]
    files = (path.relative_to(store).as_posix() for path in (store / name).glob("c/**/*"))
    parsed = [chunk[1] for chunk in map(parse_chunk, files) if chunk is not None]
    found = sorted(index for index in parsed if len(index) == len(form.shape))
    for index in found:
        for metadata in choices:
            with contextlib.suppress(StoreError):
                read_chunk(store, name, parse_metadata(metadata, name), index)
                return metadata
    if found:
        raise CorruptStore(
            f"{store / metadata_file(name)}: cannot be made again, since none of the {len(found)} chunks beside it is "
            "readable as such an array; restore this file from a copy of the store"
        )
    return choices[0]


def write_metadata(store: Path, name: str, metadata: bytes) -> None:
    """Write the metadata of an array, and those of the groups above it where there are none."""
    parts = name.split("/")[:-1]
    for depth in range(len(parts)):
        ensure_group(store, "/".join(parts[: depth + 1]))
    write_bytes(store / metadata_file(name), metadata)


def ensure_group(store: Path, name: str) -> None:
    """Make the metadata of a group where there are none; without attributes, which may hold any text."""
    path = store / metadata_file(name)
    if not path.exists():
        write_group(store, name)


def write_group(store: Path, name: str) -> None:
    """Write the metadata of a group, in the place of what may be there."""
    write_text(store / metadata_file(name), json.dumps(GROUP, indent=2))
