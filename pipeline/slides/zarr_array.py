"""Chunks of the arrays of an OME-Zarr image: Zarr 2 and 3, sharded or not, one byte a value.

Zarr itself takes a chunk's word for its size. Here codecs come from a list, sizes are known before memory is taken, and
no file is opened through a link or outside of the image's folder. Sources: the Zarr specifications 2.0 and 3.0, and the
codec ``sharding_indexed`` of the latter.
"""

import io
import math
import os
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs
import numcodecs
import numpy as np

from pipeline.slides.contract import Pixels
from pipeline.slides.pyramid import MAX_SIDE_PX, MAX_TILE_BYTES
from stores.errors import CorruptStore, SlideError
from stores.format.chunks import blosc_fault
from stores.format.layout import MAX_METADATA_BYTES
from stores.io.files import parse_json
from stores.io.foreign import open_regular, read_regular

CODECS = ("zstd", "blosc", "zlib", "gzip", "lz4")
"""Compressors of chunks."""
_BLOSC_CODECS = (0, 1, 3, 4)  # blosclz, lz4 and lz4hc, zlib, zstd
_MAX_AXES, _MAX_SHARD_BYTES, _MAX_INNER = 5, 1 << 40, 1 << 20
_ABSENT = (1 << 64) - 1
_KEPT_BYTES, _ENTRY_BYTES = 1 << 24, 512
"""Memory for the indexes of shards that an array keeps, the last one always; and of an entry beside its index."""


@dataclass(frozen=True, slots=True)
class Array:
    """What the metadata of an array say, checked; belongs to one thread."""

    root: Path
    """The folder of the image, which no file may lie outside of."""
    folder: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    """Of what is decoded at once; within a shard, when there are shards."""
    compressor: str | None
    checksum: bool
    """A crc32c ends every chunk."""
    fill: int
    prefix: str
    """Before the key of a chunk, ``c/`` in Zarr 3."""
    separator: str
    shards: tuple[int, ...] | None = None
    """Shape of a shard, or None."""
    index_first: bool = False
    indexes: OrderedDict[tuple[object, ...], bytes] = field(
        default_factory=OrderedDict, compare=False, repr=False
    )
    """Of the shards that were read last, by place and state of the file."""

    @property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk."""
        return math.prod(self.chunks)

    def chunk(self, index: tuple[int, ...]) -> Pixels | None:
        """A decoded chunk, of the shape `chunks`; None when it was not written, which stands for the fill value.

        Raises
        ------
        OSError, ValueError, CorruptStore
            When it is damaged.
        """
        raw = self._file(index) if self.shards is None else self._of_shard(index)
        if raw is None:
            return None
        if self.checksum:
            raw, stored = raw[:-4], raw[-4:]
            if google_crc32c.value(raw) != int.from_bytes(stored, "little"):
                raise ValueError("its crc32c differs")
        return np.frombuffer(_decode(self.compressor, raw, self.chunk_bytes), np.uint8).reshape(self.chunks)

    def _path(self, index: tuple[int, ...]) -> Path:
        return self.folder / (self.prefix + self.separator.join(map(str, index)))

    def _file(self, index: tuple[int, ...]) -> bytes | None:
        try:
            return read_regular(self._path(index), _limit(self.chunk_bytes), self.root)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _of_shard(self, index: tuple[int, ...]) -> bytes | None:
        """The stored bytes of a chunk within its shard, found by the shard's index."""
        assert self.shards is not None
        per_shard = [shard // chunk for shard, chunk in zip(self.shards, self.chunks, strict=True)]
        outer = tuple(i // n for i, n in zip(index, per_shard, strict=True))
        number = 0
        for i, n in zip(index, per_shard, strict=True):
            number = number * n + i % n
        try:
            file = open_regular(self._path(outer), _MAX_SHARD_BYTES, self.root)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with file:
            size = file.seek(0, 2)
            table = self._index(file, outer, size, 16 * math.prod(per_shard) + 4)
            offset, stored = struct.unpack_from("<QQ", table, 16 * number)
            if offset == stored == _ABSENT:
                return None
            if stored > _limit(self.chunk_bytes) or offset + stored > size:
                raise ValueError(f"{stored} bytes at {offset} of its shard")
            file.seek(offset)
            return file.read(stored)

    def _index(self, file: io.BufferedReader, outer: tuple[int, ...], size: int, length: int) -> bytes:
        """The index of a shard, read once while the file stays the same; ValueError when it is damaged."""
        status = os.fstat(file.fileno())
        key = outer, size, status.st_mtime_ns, status.st_ino
        table = self.indexes.pop(key, None)
        if table is None:
            file.seek(0 if self.index_first else max(0, size - length))
            table = file.read(length)
            if len(table) != length or google_crc32c.value(table[:-4]) != int.from_bytes(
                table[-4:], "little"
            ):
                raise ValueError("the index of its shard is damaged")
        self.indexes[key] = table
        while len(self.indexes) > 1 and (length + _ENTRY_BYTES) * len(self.indexes) > _KEPT_BYTES:
            self.indexes.popitem(last=False)
        return table


def _limit(decoded: int) -> int:
    return decoded * 9 // 8 + 1024


def _decode(compressor: str | None, raw: bytes, expected: int) -> bytes:
    """The bytes of a chunk, in no more memory than it should take."""
    if compressor == "blosc":
        fault = blosc_fault(raw, expected, _BLOSC_CODECS)
        if fault is not None:
            raise ValueError(fault)
        found = bytes(numcodecs.Blosc().decode(raw))
    elif compressor == "zstd":
        found = bytes(imagecodecs.zstd_decode(raw, out=expected))
    elif compressor in ("zlib", "gzip"):
        found = zlib.decompressobj(wbits=47).decompress(raw, expected + 1)  # either header
    elif compressor == "lz4":
        if int.from_bytes(raw[:4], "little") != expected:
            raise ValueError("an LZ4 chunk of another size")
        found = bytes(numcodecs.LZ4().decode(raw))
    else:
        found = raw
    if len(found) != expected:
        raise ValueError(f"{len(found)} bytes, {expected} expected")
    return found


def read_json(root: Path, *names: str) -> dict[str, Any] | None:
    """A JSON object below the folder of an image; None when there is no such file.

    Raises
    ------
    CorruptStore, ValueError
        When it is a link, too large or no JSON object.
    """
    try:
        raw = read_regular(root.joinpath(*names), MAX_METADATA_BYTES * 16, root)
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = parse_json(raw.decode("utf-8"))
    if not isinstance(found, dict):
        raise CorruptStore(f"{names[-1]}: is no JSON object")
    return found


def open_array(root: Path, path: str) -> Array:
    """An array of an image; SlideError when it is missing, or not of the kind that is read."""
    where = f"{root.name}: array {path}"
    parts = path.split("/")
    new = read_json(root, *parts, "zarr.json")
    old = read_json(root, *parts, ".zarray") if new is None else None
    try:
        if new is not None:
            array = _array_3(root, root.joinpath(*parts), new)
        elif old is not None:
            array = _array_2(root, root.joinpath(*parts), old)
        else:
            raise SlideError(f"{where}: is missing, though the image lists it; copy the whole folder")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise SlideError(
            f"{where}: metadata of a form that is not read ({type(error).__name__}: {error})"
        ) from None
    sides = (*array.shape, *array.chunks, *(array.shards or ()))
    plain = (
        1 <= len(array.shape) == len(array.chunks) == len(array.shards or array.chunks) <= _MAX_AXES
        and all(type(n) is int and 0 < n < MAX_SIDE_PX for n in sides)
        and array.separator in (".", "/")
        and all(s % c == 0 for s, c in zip(array.shards or array.chunks, array.chunks, strict=True))
        and math.prod(array.shards or array.chunks) // math.prod(array.chunks) <= _MAX_INNER
        and type(array.fill) is int
        and 0 <= array.fill <= 255
    )
    if not plain:
        raise SlideError(f"{where}: shape {array.shape} in chunks {array.chunks} of fill {array.fill!r:.20}")
    if array.chunk_bytes > MAX_TILE_BYTES:
        raise SlideError(f"{where}: chunks of {array.chunks}; each may have {MAX_TILE_BYTES >> 20} MiB")
    if array.compressor not in (None, *CODECS):
        raise SlideError(f"{where}: codec {array.compressor!r:.40}; read are {', '.join(CODECS)}")
    return array


def _array_2(root: Path, folder: Path, found: dict[str, Any]) -> Array:
    _require_uint8(root, found["dtype"], ("|u1", "u1"))
    if found.get("filters") or found.get("order", "C") != "C":
        raise SlideError(f"{root.name}: filters or column order; plain chunks are read")
    compressor = found["compressor"]
    return Array(
        root,
        folder,
        tuple(found["shape"]),
        tuple(found["chunks"]),
        None if compressor is None else compressor["id"],
        checksum=False,
        fill=found.get("fill_value") or 0,
        prefix="",
        separator=found.get("dimension_separator", "."),
    )


def _array_3(root: Path, folder: Path, found: dict[str, Any]) -> Array:
    _require_uint8(root, found["data_type"], ("uint8",))
    grid, encoding, codecs = found["chunk_grid"], found["chunk_key_encoding"], found["codecs"]
    if grid["name"] != "regular" or found.get("storage_transformers"):
        raise SlideError(f"{root.name}: chunk grid {grid['name']!r:.40}; a regular one is read")
    chunks, shards, index_first = tuple(grid["configuration"]["chunk_shape"]), None, False
    if codecs[0]["name"] == "sharding_indexed" and len(codecs) == 1:
        inner = codecs[0]["configuration"]
        if [codec["name"] for codec in inner["index_codecs"]] != ["bytes", "crc32c"]:
            raise SlideError(f"{root.name}: a shard whose index is compressed")
        shards, chunks, codecs = chunks, tuple(inner["chunk_shape"]), inner["codecs"]
        index_first = inner.get("index_location", "end") == "start"
    names = [codec["name"] for codec in codecs]
    checksum = names[-1] == "crc32c"
    between = names[1 : len(names) - checksum]
    if names[0] != "bytes" or len(between) > 1:
        raise SlideError(
            f"{root.name}: codecs {names!r:.120}; read are bytes, at most one compressor, crc32c"
        )
    is_default = encoding["name"] == "default"
    separator = encoding.get("configuration", {}).get("separator", "/" if is_default else ".")
    return Array(
        root,
        folder,
        tuple(found["shape"]),
        chunks,
        between[0] if between else None,
        checksum,
        found["fill_value"],
        f"c{separator}" if is_default else "",
        separator,
        shards,
        index_first,
    )


def _require_uint8(root: Path, kind: object, allowed: tuple[str, ...]) -> None:
    if kind not in allowed:
        raise SlideError(
            f"{root.name}: values of type {kind!r:.20}; 8-bit RGB (uint8) is read: convert the image"
        )
