"""Optional pixels of a store: the un-augmented patches, for labs that have no slides.

``pixels.zarr/<slide_id>``  uint8 (row, size_px, size_px, 3), chunk (32, ...), zstd and crc32c.

Of the 197 kB of a 256 px patch zstd leaves 164 kB on CMU-1-Small-Region and 180 kB on a dense TCGA slide.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from zarr.codecs import ZstdCodec

from stores.errors import CorruptStore, StoreError
from stores.format.arrays import ensure_array, read_spec
from stores.format.chunks import read_chunk
from stores.format.encoding import Encoder, Form
from stores.format.features import ROW_QUANTUM
from stores.format.layout import MAX_METADATA_BYTES, METADATA, PIXELS, metadata_file, pixel_array
from stores.format.metadata import ArraySpec
from stores.format.shards import file_of
from stores.io.files import write_bytes
from stores.io.location import StoreLike, entries, read_file


def has_pixels(store: StoreLike, slide_id: str) -> bool:
    """Whether the store keeps the patches of a slide."""
    return read_file(store, metadata_file(pixel_array(slide_id)), MAX_METADATA_BYTES) is not None


def slides_with_pixels(store: StoreLike) -> set[str]:
    """The slides whose patches the store keeps: one listing, where `has_pixels` of each would be a request to a URL."""
    return entries(store, PIXELS).keys() - {METADATA}


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

    store: StoreLike
    slide_id: str
    spec: ArraySpec

    @property
    def n_rows(self) -> int:
        return self.spec.shape[0]

    @property
    def chunk_rows(self) -> int:
        return self.spec.chunks[0]

    def require_row(self, row: int) -> None:
        """Raise CorruptStore when the array ends before a row that the manifest lists."""
        if row >= self.n_rows:
            raise CorruptStore(
                f"{self.store}: keeps {self.n_rows} patches of slide {self.slide_id}, and the manifest lists row {row}"
            )

    def read_chunk(self, index: int) -> npt.NDArray[np.uint8]:
        """uint8 (rows of the chunk, size_px, size_px, 3), read-only.

        Raises
        ------
        CorruptStore
            When the chunk is missing or damaged.
        """
        rows = range(index * self.chunk_rows, min((index + 1) * self.chunk_rows, self.n_rows))
        what = f"{self.slide_id} pixels of rows {rows.start}-{rows.stop - 1}"
        name, at = pixel_array(self.slide_id), (index, 0, 0, 0)
        try:
            chunk = read_chunk(self.store, name, self.spec, at)
        except StoreError as error:
            raise type(error)(f"{what}: {error}") from None
        if chunk is None:
            raise CorruptStore(f"{what}: {self.store}/{file_of(name, self.spec, at)} is missing")
        return chunk[: len(rows)]


def open_pixels(store: StoreLike, slide_id: str) -> SlidePixels:
    """Open a slide's patches for reading.

    Raises
    ------
    StoreError
        When the store does not keep them.
    CorruptStore
        When they are not what the format says.
    """
    name = pixel_array(slide_id)
    spec = read_spec(store, name, 4, "uint8")
    if spec.chunks[1:] != spec.shape[1:]:
        raise CorruptStore(
            f"{store}/{name}: chunks {spec.chunks} do not hold whole patches of {spec.shape[1:]}"
        )
    return SlidePixels(store, slide_id, spec)
