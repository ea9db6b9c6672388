"""Memory for windows of views, used again as soon as nobody holds a part of the window that it was."""

import math
import weakref

import numpy as np
import numpy.typing as npt


class WindowMemory:
    """Hands out arrays whose memory is used again: the system would clear fresh memory for every window.

    Whoever takes one may keep views of it as long as he likes; its memory is free when the last of them is gone.
    """

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """uint8 of that shape, holding anything."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        # every view of an array refers to the first array on the same buffer, so that is gone when the last view is
        first = np.frombuffer(memory.data, np.uint8, size)
        weakref.finalize(first, self._free.append, memory).atexit = False
        return first.reshape(shape)
