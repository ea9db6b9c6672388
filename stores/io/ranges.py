"""Whole numbers as ranges."""

from collections.abc import Iterable, Iterator

import numpy as np


def ranges_of(numbers: Iterable[int]) -> list[range]:
    """The ranges that make up a set of numbers, ascending.

    >>> ranges_of([4, 0, 1])
    [range(0, 2), range(4, 5)]
    """
    found: list[range] = []
    for number in sorted(numbers):
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def aligned(numbers: range, length: int) -> Iterator[range]:
    """Cut a range of step 1 before every multiple of `length`.

    >>> list(aligned(range(5, 18), 8))
    [range(5, 8), range(8, 16), range(16, 18)]
    """
    start = numbers.start
    while start < numbers.stop:
        stop = min((start // length + 1) * length, numbers.stop)
        yield range(start, stop)
        start = stop


def spread(n: int, most: int) -> list[int]:
    """At most `most` of the numbers below `n`, evenly spread, the first and the last among them.

    >>> spread(9, 3), spread(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()
