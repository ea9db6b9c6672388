"""Rows of the features of a store, in any order within a block."""

import functools
import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from stores.errors import CorruptStore
from stores.format import features
from stores.format.chunks import chunk_limit
from stores.io.location import StoreLike

_OPEN_SLIDES = 256


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
            When the block does not have such a row, or a feature is not finite.
        """
        offsets = rows - features.block_range(self._open(slide_id).n_rows, block).start
        with self._turn:
            values = self._block(slide_id, seed, block)
            if len(offsets) and (offsets.min() < 0 or offsets.max() >= len(values)):
                raise CorruptStore(
                    f"{slide_id} block {block}: the manifest lists rows that the block does not have"
                )
            found = values[offsets]
        return features.require_finite(found, f"{slide_id} seed {seed} block {block}")

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
