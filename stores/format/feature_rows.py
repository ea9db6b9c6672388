"""Rows of the features of a store, in any order within a block."""

import functools
import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from stores.errors import CorruptStore
from stores.format import features
from stores.format.chunks import chunk_limit
from stores.format.statistics import are_statistics_of
from stores.io.location import StoreLike

_OPEN_SLIDES = 256
_COMPARED = 16
"""Dimensions, or up to twice as many, in which a block that is read is compared with its statistics."""


class RowReader:
    """Reads rows and holds the last few blocks, in memory that is used again: fresh memory costs more than reading.

    Threads may share it; they take turns.

    Parameters
    ----------
    blocks
        How many blocks, each under one seed, are held.
    """

    def __init__(self, store: StoreLike, blocks: int) -> None:
        self._open = functools.lru_cache(_OPEN_SLIDES)(functools.partial(features.open_features, store))
        self._blocks = blocks
        self._held: OrderedDict[
            tuple[str, int, int], tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]
        ] = OrderedDict()
        self._proved: set[tuple[str, int, int]] = set()
        """Blocks that were compared with their statistics, once: later epochs have their checksums."""
        self._turn = threading.Lock()

    def read(
        self, slide_id: str, seed: int, block: int, rows: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float16]:
        """Features of some committed rows of a block under a seed, float16 (n, dim).

        Parameters
        ----------
        rows : integer (n,)
            Numbers of the slide's rows, in any order.

        Raises
        ------
        CorruptStore
            When the block does not have such a row, a feature is not finite, or the block's statistics are not its own.
        """
        offsets = rows - features.block_range(self._open(slide_id).n_rows, block).start
        with self._turn:
            values = self._block(slide_id, seed, block)
            if len(offsets) and (offsets.min() < 0 or offsets.max() >= len(values)):
                raise CorruptStore(
                    f"{slide_id} block {block}: the manifest lists rows that the block does not have"
                )
            found = features.require_finite(values[offsets], f"{slide_id} seed {seed} block {block}")
            if (slide_id, seed, block) not in self._proved:
                self._require_statistics(self._open(slide_id), seed, block, values)
                self._proved.add((slide_id, seed, block))
        return found

    def _block(self, slide_id: str, seed: int, block: int) -> npt.NDArray[np.float16]:
        key = slide_id, seed, block
        if key not in self._held:
            opened = self._open(slide_id)
            memory = np.empty(0, np.uint8)
            if len(self._held) == self._blocks:
                _, (_, memory) = self._held.popitem(last=False)
            if len(memory) < chunk_limit(opened.spec):
                memory = np.empty(chunk_limit(opened.spec), np.uint8)
            self._held[key] = opened.read_block(seed, block, memory), memory
        self._held.move_to_end(key)
        return self._held[key][0]

    def _require_statistics(
        self, opened: features.SlideFeatures, seed: int, block: int, values: npt.NDArray[np.float16]
    ) -> None:
        """Compare the block with its statistics, on a few dimensions; `g2l store verify` compares all of them."""
        some = slice(0, None, max(1, opened.dim // _COMPARED))
        chosen = values[:, some]
        finite = np.isfinite(chosen).all(axis=1)
        stored = features.read_block_stats(opened.store, opened.slide_id, seed, block)
        rounding = opened.rounding(seed, block)
        slack = rounding if isinstance(rounding, float) else rounding[some]
        if stored.shape[1] != opened.dim or not are_statistics_of(stored[:, some], chosen[finite], slack):
            raise CorruptStore(
                f"{opened.slide_id} seed {seed} block {block}: its statistics are not the mean and variance of its "
                "features; run `g2l store verify`, and `g2l store reindex` if nothing else is wrong"
            )
