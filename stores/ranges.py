"""Numbers as ranges of neighbours."""

from collections.abc import Iterable


def runs_of(numbers: Iterable[int]) -> list[range]:
    """The ranges that make up a set of numbers, ascending.

    >>> runs_of([4, 0, 1])
    [range(0, 2), range(4, 5)]
    """
    runs: list[range] = []
    for number in sorted(numbers):
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs
