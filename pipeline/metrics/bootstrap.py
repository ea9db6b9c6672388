"""Bootstrap intervals: whole groups of samples (slides, patients) are drawn with replacement."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

REPLICATES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval (percentiles of the replicates)."""

    value: float
    low: float
    high: float


Statistic = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""Figures (f,) from the weight of each sample, float64 (n,); NaN where a figure is not defined."""


def bootstrap(
    statistic: Statistic,
    n: int,
    groups: npt.NDArray[np.int64] | None,
    rng: np.random.Generator,
    replicates: int = REPLICATES,
) -> list[Estimate]:
    """Estimates of every figure of `statistic`.

    Parameters
    ----------
    n
        Number of samples.
    groups : int (n,), optional
        Samples of one group are drawn together; None draws every sample by itself.
    replicates
        0 leaves the intervals NaN. A replicate in which a figure is not defined (a class is missing) does not count
        for that figure.
    """
    value = statistic(np.ones(n))
    if not replicates:
        return [Estimate(float(v), float("nan"), float("nan")) for v in value]
    place = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_groups = int(place.max()) + 1
    drawn = np.empty((replicates, len(value)))
    for i in range(replicates):
        counts = np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups)
        drawn[i] = statistic(counts[place].astype(np.float64))
    result = []
    for v, column in zip(value, drawn.T, strict=True):
        known = column[np.isfinite(column)]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
        result.append(Estimate(float(v), float(low), float(high)))
    return result
