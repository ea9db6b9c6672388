"""Optional pixels of a store: the un-augmented patches, for labs that have no slides.

``pixels.zarr/<slide_id>``  uint8 (row, size_px, size_px, 3), chunk (32, ...), zstd and crc32c.

Of the 197 kB of a 256 px patch zstd leaves 164 kB on CMU-1-Small-Region and 180 kB on a dense TCGA slide.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from stores.errors import StoreError
from stores.format.arrays import ensure_array, open_checked, read_selection, read_spec
from stores.format.encoding import Encoder, Form
from stores.format.features import ROW_QUANTUM
from stores.format.layout import MAX_METADATA_BYTES, metadata_file, pixel_array
from stores.io.files import write_bytes
from stores.io.location import StoreLike, read_file


def has_pixels(store: StoreLike, slide_id: str) -> bool:
    """Whether the store keeps the patches of a slide."""
    return read_file(store, metadata_file(pixel_array(slide_id)), MAX_METADATA_BYTES) is not None


def form(n_rows: int, size_px: int) -> Form:
    """The array of a slide's patches."""
    chunk = (min(ROW_QUANTUM, n_rows), size_px, size_px, 3)
    return Form((n_rows, size_px, size_px, 3), chunk, "uint8", 0, (ZstdCodec(level=3),))


def create_slide(store: Path, slide_id: str, n_rows: int, size_px: int) -> None:
    """Make a slide's pixel array if it is not there.

    Raises
    ------
    CorruptStore
        When there is one of another shape.
    """
    ensure_array(store, pixel_array(slide_id), form(n_rows, size_px))


def write_rows(store: Path, slide_id: str, start: int, patches: npt.NDArray[np.uint8]) -> None:
    """Write the patches of whole chunks, (rows, size_px, size_px, 3), from row `start`, and flush them.

    `start` is a multiple of 32 (blocks of features are), so that no chunk has two writers.
    """
    name = pixel_array(slide_id)
    spec = read_spec(store, name, 4, "uint8")
    size = spec.chunks[0]
    if start % size or (len(patches) % size and start + len(patches) != spec.shape[0]):
        raise StoreError(
            f"{slide_id}: rows {start}..{start + len(patches)} do not fill whole chunks of {size}"
        )
    metadata = read_file(store, metadata_file(name), MAX_METADATA_BYTES)
    region = (slice(start, start + len(patches)), *map(slice, spec.shape[1:]))
    for key, raw in Encoder(metadata or b"").chunks(region, patches).items():
        write_bytes(store / name / key, raw)


@dataclass(frozen=True, slots=True)
class SlidePixels:
    """A slide's patches, open for reading by whole chunks."""

    slide_id: str
    array: zarr.Array[Any]

    @property
    def chunk_rows(self) -> int:
        return int(self.array.chunks[0])

    def read_chunk(self, index: int) -> npt.NDArray[np.uint8]:
        """uint8 (rows of the chunk, size_px, size_px, 3)."""
        start = index * self.chunk_rows
        what = f"{self.slide_id} pixels of rows {start}-{start + self.chunk_rows - 1}"
        return read_selection(self.array, (slice(start, start + self.chunk_rows),), what)


def open_pixels(store: StoreLike, slide_id: str) -> SlidePixels:
    """Open a slide's patches for reading."""
    return SlidePixels(slide_id, open_checked(store, pixel_array(slide_id), 4, "uint8"))
