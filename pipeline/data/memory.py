"""Memory for windows of views. It is used again as soon as no array refers to the earlier window."""

import math
import weakref

import numpy as np
import numpy.typing as npt


class WindowMemory:
    """Gives arrays whose memory is used again, because clearing new memory for every window takes time.

    An array, and any view of it, may be kept for any length of time. Its memory is free when the last of them is gone.
    """

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """An uninitialised uint8 array of this shape."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        # every view of an array refers to the first array on the buffer, so the first array lives as long as any view
        first = np.frombuffer(memory.data, np.uint8, size)
        weakref.finalize(first, self._free.append, memory).atexit = False
        return first.reshape(shape)
