"""Mean and variance of features per dimension, of a block and of many blocks together."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


def mean_and_variance(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    """Mean and variance of each dimension over the rows that are not NaN, float64 (2, dim)."""
    wide = features.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a block without one readable row: NaN
        return np.stack([np.nanmean(wide, axis=0), np.nanvar(wide, axis=0)])


_PIECE_ROWS = 64
TOLERANCE = 1e-3
"""How far stored statistics may be from the features, in standard deviations of a dimension."""


def are_statistics_of(
    stored: npt.NDArray[np.float64],
    features: npt.NDArray[np.float16],
    slack: npt.NDArray[np.float32] | float = 0.0,
) -> bool:
    """Whether `stored` (2, dim) are mean and variance of `features` (rows, dim), to `TOLERANCE`; NaN without rows.

    In float32, around the stored mean, and in pieces that stay in the processor's cache: a block of 1,024 features of
    1,536 numbers takes 3.4 ms, `mean_and_variance` 11.8 ms.

    Parameters
    ----------
    features
        Finite.
    slack : float32 (dim,)
        How far each value may be from the one that the statistics are of.
    """
    if not len(features):
        return bool(np.isnan(stored).all())
    mean, variance = stored
    if not (np.isfinite(stored).all() and (variance >= 0).all()):
        return False
    centre, total, squares = mean.astype(np.float32), *np.zeros((2, len(mean)), np.float32)
    away = np.empty((_PIECE_ROWS, len(mean)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # of a damaged mean
        for start in range(0, len(features), _PIECE_ROWS):
            piece = features[start : start + _PIECE_ROWS]
            part = np.subtract(piece, centre, out=away[: len(piece)])
            total += part.sum(axis=0)
            squares += np.square(part, out=part).sum(axis=0)
        shift, spread = total / len(features), np.sqrt(squares / len(features))
    deviation = np.sqrt(variance)
    allowed = TOLERANCE * deviation + 1e-6 * np.abs(mean) + 1e-7 + slack
    return bool((np.abs(shift) <= allowed).all() and (np.abs(spread - deviation) <= allowed).all())


def all_finite(values: npt.NDArray[np.float16]) -> bool:
    """As ``np.isfinite(values).all()``, five times as fast: by the bits of the exponent, piece by piece."""
    flat = values.reshape(-1)
    pieces = (flat[at : at + (1 << 19)].view(np.uint16) for at in range(0, len(flat), 1 << 19))
    return all(int(np.left_shift(bits, 1).max()) < 0x7C00 << 1 for bits in pieces)


@dataclass(slots=True)
class RunningStats:
    """Per-dimension mean and variance, combined block by block (Chan, Golub & LeVeque 1979)."""

    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0  # sum of squared deviations

    def add(self, count: int, mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> None:
        """Add a block of `count` rows with its own mean and variance, (dim,) each."""
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + variance * count + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        """Population variance, (dim,)."""
        return np.asarray(self.squares / max(self.count, 1))
