"""A pool of threads that read patches, from slide files or from the store's pixels: both stages read with it.

OpenSlide, OpenCV and zstd release the interpreter lock, so threads are enough and share memory.
"""

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.slides import PatchReader, ReadPlan
from stores import pixels
from stores.location import StoreLike

_OPEN_PER_THREAD = 4


class Reader(Protocol):
    """Reads patches of one slide; belongs to one thread."""

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        """The patch, uint8 (size_px, size_px, 3); ReadError or CorruptStore when it cannot be read."""

    def close(self) -> None:
        """Release handles."""


class Source(Protocol):
    """Where the patches of one slide come from."""

    @property
    def slide_id(self) -> str:
        """The slide."""

    def open(self) -> Reader:
        """A reader for one thread."""


@dataclass(frozen=True, slots=True)
class SlideSource:
    """Patches from the slide file."""

    slide_id: str
    path: Path
    plan: ReadPlan

    def open(self) -> Reader:
        return _FromSlide(PatchReader(self.path, self.plan))


@dataclass(frozen=True, slots=True)
class StoreSource:
    """Patches from the store's own pixels."""

    slide_id: str
    store: StoreLike

    def open(self) -> Reader:
        return _FromStore(pixels.open_pixels(self.store, self.slide_id))


@dataclass(frozen=True, slots=True)
class _FromSlide:
    reader: PatchReader

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        return self.reader.read(x_px0, y_px0)

    def close(self) -> None:
        self.reader.close()


class _FromStore:
    """Keeps the last chunk: rows come in runs of neighbours."""

    def __init__(self, array: pixels.SlidePixels) -> None:
        self._array = array
        self._index = -1
        self._chunk: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        index, offset = divmod(row, self._array.chunk_rows)
        if index != self._index:
            self._chunk, self._index = self._array.read_chunk(index), index
        return np.asarray(self._chunk[offset])

    def close(self) -> None: ...


class PatchPool:
    """Threads, each with its own few open readers; a context manager that closes them."""

    def __init__(self, threads: int) -> None:
        cv2.setNumThreads(1)  # the pool is the parallelism; OpenCV's own threads would fight it
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="patches")
        self._local = threading.local()
        self._caches: list[collections.OrderedDict[str, Reader]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and close what they have open."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for cache in self._caches:
            for reader in cache.values():
                reader.close()

    def submit(self, source: Source, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run ``work(reader, *args)`` in a thread, with that thread's reader of `source`."""
        return self._pool.submit(lambda: work(self._reader(source), *args))

    def _reader(self, source: Source) -> Reader:
        if not hasattr(self._local, "cache"):
            self._local.cache = collections.OrderedDict()
            self._caches.append(self._local.cache)
        cache: collections.OrderedDict[str, Reader] = self._local.cache
        if source.slide_id not in cache:
            cache[source.slide_id] = source.open()
            if len(cache) > _OPEN_PER_THREAD:
                cache.popitem(last=False)[1].close()
        cache.move_to_end(source.slide_id)
        return cache[source.slide_id]
