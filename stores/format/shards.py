"""Chunks in shards: files that hold many chunks of an array, by Zarr's codec ``sharding_indexed``.

A shard begins with its index: for each of its chunks, in C order, where it begins and how many bytes it has (two
uint64, little endian; all bits set where there is none), then the CRC-32C of the index. The chunks follow in the same
order, without gaps, each as the file of a loose array has it. So packing and unpacking move bytes and decode nothing,
and every byte of a shard is under a checksum.

Source: the specification of ``sharding_indexed``, version 1.0, https://zarr-specs.readthedocs.io.
"""

import math
from collections.abc import Iterator

import google_crc32c
import numpy as np
import numpy.typing as npt

from stores.errors import CorruptStore
from stores.format.layout import MAX_READ_BYTES, chunk_file
from stores.format.metadata import MAX_SHARD_CHUNKS, ArraySpec
from stores.io.location import StoreLike, read_range

_NONE = (1 << 64) - 1
_ENTRY_BYTES, _CRC_BYTES = 16, 4


def shard_sides(spec: ArraySpec) -> tuple[int, ...]:
    """The sides of the shards that a loose array is packed into: as many chunks as fit, the last axes first.

    >>> shard_sides(ArraySpec((4, 10_000, 1536), (1, 1024, 1536), np.dtype("float16"), None))
    (4, 10240, 1536)
    >>> shard_sides(ArraySpec((10_000, 256, 256, 3), (32, 256, 256, 3), np.dtype("uint8"), None))
    (1344, 256, 256, 3)
    """
    sides = list(spec.chunks)
    fit = min(MAX_SHARD_CHUNKS, MAX_READ_BYTES // spec.chunk_bytes)
    for axis in reversed(range(len(sides))):
        there = math.ceil(spec.shape[axis] / spec.chunks[axis])
        count = max(1, min(there, fit))
        sides[axis] *= count
        if count < there:
            break
        fit //= count
    return tuple(sides)


def file_of(name: str, spec: ArraySpec, index: tuple[int, ...]) -> str:
    """The file that holds a chunk: its own in a loose array, else that of its shard."""
    return chunk_file(name, (i // n for i, n in zip(index, spec.per_shard, strict=True)))


def index_bytes(spec: ArraySpec) -> int:
    """Size of the index of a shard."""
    return math.prod(spec.per_shard) * _ENTRY_BYTES + _CRC_BYTES


def make_index(entries: npt.NDArray[np.uint64]) -> bytes:
    """The index of a shard from (offset, bytes) of each of its chunks, (n, 2); see `empty_index`."""
    raw = entries.astype("<u8").tobytes()
    return raw + int(google_crc32c.value(raw)).to_bytes(_CRC_BYTES, "little")


def empty_index(spec: ArraySpec) -> npt.NDArray[np.uint64]:
    """The entries of a shard without chunks."""
    return np.full((math.prod(spec.per_shard), 2), _NONE, np.uint64)


def read_index(store: StoreLike, file: str, spec: ArraySpec) -> npt.NDArray[np.uint64] | None:
    """The entries of the index of a shard, see `parse_index`; None when there is no such file."""
    raw = read_range(store, file, 0, index_bytes(spec))
    return None if raw is None else parse_index(raw, spec, f"{store}/{file}")


def parse_index(raw: bytes, spec: ArraySpec, where: str) -> npt.NDArray[np.uint64]:
    """(offset, bytes) of each chunk of a shard, (n, 2), all bits set where there is none.

    Raises
    ------
    CorruptStore
        When the index is damaged.
    """
    body, crc = raw[:-_CRC_BYTES], raw[-_CRC_BYTES:]
    if len(raw) != index_bytes(spec) or google_crc32c.value(body) != int.from_bytes(crc, "little"):
        raise CorruptStore(f"{where}: the index of the shard is damaged (its crc32c differs)")
    return np.frombuffer(body, "<u8").reshape(-1, 2)


def place_in(
    raw: bytes, spec: ArraySpec, index: tuple[int, ...], limit_bytes: int, where: str
) -> tuple[int, int] | None:
    """(offset, bytes) of a chunk in the shard with the index `raw`; None when there is none.

    Raises
    ------
    CorruptStore
        When the index is damaged, or the chunk is larger than `limit_bytes`.
    """
    entries = parse_index(raw, spec, where)
    inside = [i % n for i, n in zip(index, spec.per_shard, strict=True)]
    offset, size = entries[np.ravel_multi_index(inside, spec.per_shard)].tolist()
    if (offset, size) == (_NONE, _NONE):
        return None
    if not index_bytes(spec) <= offset < 1 << 40 or size > limit_bytes:
        raise CorruptStore(f"{where}: chunk {index} of {size} bytes at {offset}, which no shard has")
    return offset, size


def chunks_in(
    spec: ArraySpec, shard: tuple[int, ...], entries: npt.NDArray[np.uint64]
) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """(index, offset, bytes) of the chunks that a shard holds, in C order.

    Parameters
    ----------
    shard
        The index of the shard.
    entries
        From `read_index`.
    """
    for at in np.flatnonzero((entries != _NONE).any(axis=1)).tolist():
        inside = np.unravel_index(at, spec.per_shard)
        index = tuple(s * n + int(i) for s, n, i in zip(shard, spec.per_shard, inside, strict=True))
        offset, size = entries[at].tolist()
        yield index, offset, size


def shard_fault(
    spec: ArraySpec, shard: tuple[int, ...], entries: npt.NDArray[np.uint64], n_bytes: int
) -> str | None:
    """What is wrong with a shard of `n_bytes` bytes: chunks outside of the array, or bytes that belong to none."""
    end = index_bytes(spec)
    for index, offset, size in chunks_in(spec, shard, entries):
        if any(i * c >= n for i, c, n in zip(index, spec.chunks, spec.shape, strict=True)):
            return f"holds chunk {index}, which is outside of the array"
        if offset != end:
            return f"holds chunk {index} at {offset}, expected at {end}: chunks follow each other in order"
        end += size
    return None if end == n_bytes else f"has {n_bytes} bytes, its index says {end}"
