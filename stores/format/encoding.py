"""What Zarr makes of an array, in memory. Only `stores.io.files` writes to a disk: flushed first, renamed then.

Zarr's own store renames files that are not flushed, never flushes a folder, and deletes the chunks of an array that is
created again.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.core.buffer.core import default_buffer_prototype
from zarr.storage import MemoryStore

from stores.format.layout import METADATA

EVERY_CHUNK: Any = {"write_empty_chunks": True}
"""Configuration of Zarr: a chunk that equals the fill value is written too, so that it is not taken for a lost one."""
BYTE_SHUFFLE = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=2, blocksize=1 << 20)
"""Of a lossless copy. Higher levels save 0.1 % more; Blosc's own, smaller blocks cost 1 to 10 %.

Measured for docs/decisions/0007-blosc-for-byte-shuffle.md.
"""


@dataclass(frozen=True, slots=True)
class Form:
    """What an array is to be."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: float
    codecs: tuple[Any, ...] = ()
    """Before crc32c, which is always the last."""

    def metadata(self) -> bytes:
        """The content of ``zarr.json``."""
        held: dict[str, Buffer] = {}
        zarr.create_array(
            MemoryStore(held),
            shape=self.shape,
            chunks=self.chunks,
            dtype=self.dtype,
            fill_value=self.fill,
            filters=None,
            compressors=[*self.codecs, Crc32cCodec()],
        )
        return held[METADATA].to_bytes()


class Encoder:
    """An array of which one part after another is encoded.

    Parameters
    ----------
    metadata : bytes
        The content of ``zarr.json``, checked where it is foreign.
    """

    def __init__(self, metadata: bytes) -> None:
        self._held: dict[str, Buffer] = {METADATA: default_buffer_prototype().buffer.from_bytes(metadata)}
        self._array = zarr.open_array(MemoryStore(self._held), mode="r+", zarr_format=3).with_config(
            EVERY_CHUNK
        )

    def resized(self, length: int) -> bytes:
        """The metadata with another length of the first axis."""
        self._array.resize((length, *self._array.shape[1:]))
        return self._held[METADATA].to_bytes()

    def chunk(self, index: tuple[int, ...], values: npt.NDArray[Any]) -> bytes:
        """The content of a chunk's file; beyond `values` the chunk has the fill value."""
        starts = [number * side for number, side in zip(index, self._array.chunks, strict=True)]
        (found,) = self.chunks(
            tuple(slice(at, at + n) for at, n in zip(starts, values.shape, strict=True)), values
        ).values()
        return found

    def chunks(self, region: tuple[slice, ...], values: npt.NDArray[Any]) -> dict[str, bytes]:
        """The content of each chunk of a region that begins at a chunk, by key; encoded side by side."""
        self._array[region] = np.asarray(values)
        return {key: self._held.pop(key).to_bytes() for key in sorted(self._held) if key != METADATA}
