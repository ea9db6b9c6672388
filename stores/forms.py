"""The forms that a store's arrays have: codecs, and sides of shapes that are not one number."""

from typing import Any

ANY, SEEDS = -1, -2
"""Sides of an expected shape: whatever there is; enough for the committed seeds."""
GROUP = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""Metadata of a group: no attributes, which may tell anything, and no listing of what is in it."""
Codecs = tuple[list[dict[str, Any]], ...]
"""Chains of codecs, any of which will do."""

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
