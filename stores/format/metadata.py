"""The metadata of an array, checked before Zarr reads them, because they may come from another lab.

A packed array keeps its chunks in shards, by Zarr's codec ``sharding_indexed``: see `stores.format.shards`. What the
metadata say of its chunks is the same as in a loose one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stores.errors import CorruptStore
from stores.format.layout import MAX_READ_BYTES
from stores.io.files import first_line, parse_json

_MAX_SIDE, _MAX_AXES = 1 << 31, 4
_COMPRESSORS = ("zstd", "blosc")
_CODECS = ("bytes", *_COMPRESSORS, "crc32c")
_SHARDING = "sharding_indexed"
MAX_SHARD_CHUNKS = 1 << 16
"""The most chunks of a shard: its index has 16 bytes for each."""
_METADATA_KEYS = {
    "attributes",
    "chunk_grid",
    "chunk_key_encoding",
    "codecs",
    "data_type",
    "fill_value",
    "node_type",
    "shape",
    "storage_transformers",
    "zarr_format",
}
ANY, SEEDS = -1, -2
"""Sides of an expected shape: whatever there is; enough for the committed seeds."""
GROUP = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""Metadata of a group: no attributes, which may contain anything, and no list of its members."""
Codecs = tuple[list[dict[str, Any]], ...]
"""Chains of codecs; an array has one of them."""
_BYTES: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C: dict[str, Any] = {"name": "crc32c"}
_ZSTD: dict[str, Any] = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
_BLOSC = {"typesize": 2, "cname": "zstd", "clevel": 3, "shuffle": "shuffle", "blocksize": 1 << 20}
PLAIN: Codecs = ([_BYTES, _CRC32C],)
FLOAT16: Codecs = (
    [_BYTES, _CRC32C],
    [_BYTES, {"name": "blosc", "configuration": _BLOSC}, _CRC32C],
)
"""Features and tokens as extracted, and of a lossless copy."""
ONE_BYTE: Codecs = ([{"name": "bytes"}, _ZSTD, _CRC32C],)
"""Features of an int8 copy, and pixels."""
_INDEX: dict[str, Any] = {"index_codecs": [_BYTES, _CRC32C], "index_location": "start"}
"""At the start, so that a reader over a network needs no size of the file."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What the metadata of an array say, once they are known to be plain."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    compressor: str | None
    """``zstd``, ``blosc`` or None."""
    shard: tuple[int, ...] | None = None
    """Sides of a shard, multiples of those of a chunk; None when each chunk is a file of its own."""

    @property
    def per_shard(self) -> tuple[int, ...]:
        """Chunks of a shard, by axis; 1 where there are no shards."""
        sides = self.shard or self.chunks
        return tuple(side // chunk for side, chunk in zip(sides, self.chunks, strict=True))

    @property
    def array_bytes(self) -> int:
        """Size of the whole array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk."""
        return math.prod(self.chunks) * self.dtype.itemsize


def packed(found: Mapping[str, Any], shard: Sequence[int]) -> dict[str, Any]:
    """Metadata of the same array with its chunks in shards of these sides; `found` was checked."""
    inner = {"chunk_shape": found["chunk_grid"]["configuration"]["chunk_shape"], "codecs": found["codecs"]}
    codec = {"name": _SHARDING, "configuration": inner | _INDEX}
    return {**found, "chunk_grid": _regular(shard), "codecs": [codec]}


def loose(found: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of the same array with a file for each chunk; `found` was checked. Equal to them where it is loose."""
    if found["codecs"][0]["name"] != _SHARDING:
        return dict(found)
    inner = found["codecs"][0]["configuration"]
    return {**found, "chunk_grid": _regular(inner["chunk_shape"]), "codecs": inner["codecs"]}


def _regular(sides: Sequence[int]) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(sides)}}


def _shard_of(found: Mapping[str, Any], where: str) -> list[Any] | None:
    """The sides of a shard as the metadata of an array say; None when they have no such codec."""
    codecs = found["codecs"]
    if _SHARDING not in [codec["name"] for codec in codecs]:
        return None
    about = codecs[0].get("configuration")
    expected = {"chunk_shape", "codecs", *_INDEX}
    plain = len(codecs) == 1 and set(codecs[0]) == {"name", "configuration"} and isinstance(about, dict)
    if not plain or set(about) != expected or any(about[key] != _INDEX[key] for key in _INDEX):
        raise CorruptStore(
            f"{where}: codec {_SHARDING} of a form that no store has; expected it alone, with its index at the start, "
            "in little endian with crc32c"
        )
    sides: list[Any] = found["chunk_grid"]["configuration"]["chunk_shape"]
    return sides


def parse_metadata(raw: bytes, where: str) -> ArraySpec:
    """Parse the ``zarr.json`` of an array; only the few forms that the format has are accepted.

    Raises
    ------
    CorruptStore
        When it is anything else: other keys, a codec that is not allowed, no crc32c at the end, chunks beyond
        `MAX_READ_BYTES`.
    """
    try:
        found = parse_json(raw.decode("utf-8"))
        shard = _shard_of(found, where)
        found = loose(found)
        grid, encoding = found["chunk_grid"], found["chunk_key_encoding"]
        shape, chunks = found["shape"], grid["configuration"]["chunk_shape"]
        names = [codec["name"] for codec in found["codecs"]]
        dtype = str(found["data_type"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptStore(f"{where}: unreadable array metadata ({first_line(error)})") from None
    plain = (
        set(found) <= _METADATA_KEYS
        and found.get("zarr_format") == 3
        and found.get("node_type") == "array"
        and not found.get("storage_transformers")
        and grid.get("name") == "regular"
        and encoding in ({"name": "default", "configuration": {"separator": "/"}}, {"name": "default"})
    )
    if not plain:
        raise CorruptStore(f"{where}: array metadata of a form that no store has: {found!r:.200}")
    foreign = [name for name in names if name not in _CODECS]
    if foreign:
        raise CorruptStore(f"{where}: codec {foreign[0]!r:.80}; allowed: {', '.join(_CODECS)}")
    if (
        [n for n in names if n not in _COMPRESSORS] != ["bytes", "crc32c"]
        or names[-1] != "crc32c"
        or len(names) > 3
    ):
        raise CorruptStore(
            f"{where}: codecs {', '.join(names)}; expected bytes, at most one compressor, crc32c last"
        )
    for codec in found["codecs"]:
        configuration = codec.get("configuration", {})
        plain = set(codec) <= {"name", "configuration"} and isinstance(configuration, dict)
        if not plain or (codec["name"] == "bytes" and configuration.get("endian", "little") != "little"):
            raise CorruptStore(f"{where}: codec {codec!r:.120}; expected little endian and a configuration")
    if dtype not in ("float16", "float32", "float64", "int8", "int32", "uint8"):
        raise CorruptStore(f"{where}: data type {dtype!r:.80}, which no array of a store has")
    if not isinstance(shape, list) or not isinstance(chunks, list):
        raise CorruptStore(
            f"{where}: shape {shape!r:.80} in chunks {chunks!r:.80}; expected lists of numbers"
        )
    sides = [*shape, *chunks]
    if (
        not 1 <= len(shape) == len(chunks) <= _MAX_AXES
        or not all(type(n) is int and 0 <= n < _MAX_SIDE for n in sides)
        or 0 in chunks
    ):
        raise CorruptStore(f"{where}: shape {shape!r:.80} in chunks {chunks!r:.80}")
    compressor = names[1] if len(names) == 3 else None
    spec = ArraySpec(tuple(shape), tuple(chunks), np.dtype(dtype), compressor)
    if spec.chunk_bytes > MAX_READ_BYTES:
        raise CorruptStore(f"{where}: chunks of {spec.chunks} exceed {MAX_READ_BYTES >> 20} MiB")
    return spec if shard is None else replace(spec, shard=_checked_shard(shard, spec, where))


def _checked_shard(shard: Any, spec: ArraySpec, where: str) -> tuple[int, ...]:
    fits = isinstance(shard, list) and len(shard) == len(spec.chunks)
    fits = fits and all(
        type(side) is int and 0 < side < _MAX_SIDE and side % n == 0
        for side, n in zip(shard, spec.chunks, strict=True)
    )
    if not fits:
        raise CorruptStore(f"{where}: shards of {shard!r:.80} of chunks of {spec.chunks}; expected multiples")
    chunks = math.prod(side // n for side, n in zip(shard, spec.chunks, strict=True))
    if chunks > MAX_SHARD_CHUNKS or chunks * spec.chunk_bytes > MAX_READ_BYTES:
        raise CorruptStore(
            f"{where}: shards of {shard} have {chunks} chunks of {spec.chunk_bytes} bytes; allowed are at most "
            f"{MAX_SHARD_CHUNKS} chunks and {MAX_READ_BYTES >> 20} MiB"
        )
    return tuple(shard)
