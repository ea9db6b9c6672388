"""The metadata of an array, checked before Zarr reads them, because they may come from another lab."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stores.errors import CorruptStore
from stores.format.layout import MAX_READ_BYTES
from stores.io.files import first_line, parse_json

_MAX_SIDE, _MAX_AXES = 1 << 31, 4
_COMPRESSORS = ("zstd", "blosc")
_CODECS = ("bytes", *_COMPRESSORS, "crc32c")
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


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What the metadata of an array say, once they are known to be plain."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    compressor: str | None
    """``zstd``, ``blosc`` or None."""

    @property
    def array_bytes(self) -> int:
        """Size of the whole array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk."""
        return math.prod(self.chunks) * self.dtype.itemsize


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
        grid, encoding = found["chunk_grid"], found["chunk_key_encoding"]
        shape, chunks = found["shape"], grid["configuration"]["chunk_shape"]
        names = [codec["name"] for codec in found["codecs"]]
        dtype = str(found["data_type"])
    except (ValueError, KeyError, TypeError) as error:
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
    return spec
