"""HDF5 from elsewhere: a data set takes no more memory than its shape says.

HDF5 unpacks a chunk into as much memory as comes out of it: a few megabytes of zeros under gzip become gigabytes. So
chunks are unpacked here first, up to the size that they must have.
"""

import itertools
import math
import zlib
from typing import Any

MAX_CHUNK_BYTES = 1 << 28
_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_ORDERS = (_SHUFFLE,), (_DEFLATE, _LZF), (_FLETCHER32,)
"""Filters that HDF5 and h5py have without a plugin, in the order in which h5py writes them; one of each at most."""
_LZF_BYTES = 1 << 22
"""The most that a chunk under LZF may have: it grows 88 times at most, and h5py's own chunks have 1 MiB."""


def require_plain(found: Any) -> None:
    """Judge how a data set is packed; reads nothing of it.

    Parameters
    ----------
    found : h5py.Dataset

    Raises
    ------
    ValueError
        When its filters are others than gzip or LZF, shuffle and Fletcher-32, or its chunks are too large.
    """
    used = _filters(found)
    left = list(used)
    for allowed in _ORDERS:
        if left and left[0] in allowed:
            del left[0]
    if left:
        raise ValueError(f"compressed by HDF5 filter {left[0]} in {used}; write it with gzip")
    most = _LZF_BYTES if _LZF in used else MAX_CHUNK_BYTES
    if found.chunks and _chunk_bytes(found) > most:
        raise ValueError(f"in chunks of {found.chunks}; at most {most >> 20} MiB are read")


def require_bounded(found: Any, start: int, stop: int) -> None:
    """Unpack the chunks of rows from `start` up to `stop`, and keep none: call it before these rows are read.

    Parameters
    ----------
    found : h5py.Dataset
        That `require_plain` let pass.

    Raises
    ------
    ValueError
        When one of them unpacks to another size than a chunk has.
    """
    used = _filters(found)
    if found.chunks is None or not {_DEFLATE, _LZF} & set(used):
        return
    size = _chunk_bytes(found)
    rows = range(start // found.chunks[0] * found.chunks[0], stop, found.chunks[0])
    for at in itertools.product(rows, *map(range, *_others(found))):
        stored = found.id.get_chunk_info_by_coord(at)
        if not stored.size:
            continue  # never written
        if stored.size > size + size // 100 + 1024:
            raise ValueError(f"the chunk at {at} has {stored.size} bytes, and {size} when it is unpacked")
        is_packed = _DEFLATE in used and not stored.filter_mask & 1 << used.index(_DEFLATE)
        if is_packed and _unpacked_bytes(found.id.read_direct_chunk(at)[1], size) != size:
            raise ValueError(f"the chunk at {at} does not unpack to {size} bytes")


def _unpacked_bytes(data: bytes, most: int) -> int:
    """How many bytes deflated data has, counted up to one more than `most`; 0 where it is damaged."""
    try:
        return len(zlib.decompressobj().decompress(data, most + 1))
    except zlib.error:
        return 0


def _others(found: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Beginnings, ends and steps of the chunks along all axes but the first."""
    return (0,) * (len(found.shape) - 1), found.shape[1:], found.chunks[1:]


def _chunk_bytes(found: Any) -> int:
    return math.prod(found.chunks) * int(found.dtype.itemsize)


def _filters(found: Any) -> tuple[int, ...]:
    plan = found.id.get_create_plist()
    return tuple(plan.get_filter(i)[0] for i in range(plan.get_nfilters()))
