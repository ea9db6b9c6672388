"""How many views are mixed in memory: as many as make batches close to a perfect shuffle, where memory allows.

The window is a part of the order of views, so of what a training learns. It is chosen once, when a run begins, kept in
its options, and never changed by the memory of a machine that continues it.
"""

from collections.abc import Sequence

from stores.io.text import human_bytes

MIXED_WELL = 8192
"""Views of a window from which the slides of a batch of 32 are nearly those of a perfect shuffle."""
_LEAST = 512
_SHARE = 0.5
"""Of the free memory, for the window that trains and the next one; the rest is for student, readers and others."""


def default_window(batch_size: int, world: int) -> int:
    """The window that depends on nothing else: 64 views for each view of a step, at least 2048."""
    return max(2048, 64 * batch_size * world)


def choices(batch_size: int, world: int, views: int) -> list[int]:
    """The windows among which memory decides, the largest first: halves of each other, so that they are few.

    Parameters
    ----------
    views : int
        Those that the training takes: the first step waits for a whole window, which should be no longer than that.

    >>> choices(32, 1, 10**6), choices(256, 2, 10**6), choices(32, 1, 640)
    ([8192, 4096, 2048, 1024, 512], [32768, 16384, 8192, 4096], [1024, 512])
    """
    found = [max(MIXED_WELL, 64 * batch_size * world)]
    least = max(_LEAST, 8 * batch_size * world)
    while found[0] // 2 >= max(least, views):
        found[0] //= 2
    while found[-1] // 2 >= least:
        found.append(found[-1] // 2)
    return found


def needed(window: int, epoch_views: int, view_bytes: int) -> int:
    """Bytes of two windows, of which none is longer than an epoch."""
    return 2 * min(window, epoch_views) * view_bytes


def fitting(sizes: Sequence[int], epoch_views: int, view_bytes: int, free_bytes: float) -> list[bool]:
    """Which windows take no more than half of the free memory.

    >>> fitting([8192, 4096], 10**6, 150_000, 4e9), fitting([8192], 1000, 150_000, 4e9)
    ([False, True], [True])
    """
    return [needed(size, epoch_views, view_bytes) <= _SHARE * free_bytes for size in sizes]


def said(chosen: int, wanted: int, epoch_views: int, view_bytes: int, free_bytes: float) -> str:
    """A line on the window that was chosen."""
    size = human_bytes(needed(chosen, epoch_views, view_bytes))
    mixed = "all views of an epoch" if chosen >= epoch_views else f"{chosen:,} views"
    line = f"window: {mixed} mixed in memory, {size} with those that come next"
    if chosen == wanted:
        return line
    more = human_bytes(needed(wanted, epoch_views, view_bytes))
    return (
        f"{line}; {wanted:,} would take {more} of {human_bytes(free_bytes)} that are free. A machine with more memory "
        f"has another order of views: --window {chosen} gives this one everywhere"
    )
