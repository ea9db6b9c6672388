"""Mean and variance of features per dimension, of a block and of many blocks together."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_COLUMNS = 512
_UNIT = 2.0 ** (127 - 15)


def mean_and_variance(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    """Per-dimension mean and variance over the rows that are not NaN, (2, dim)."""
    if len(features) and all_finite(features):
        return _mean_and_variance(features)
    wide = features.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a block without one readable row: NaN
        return np.stack([np.nanmean(wide, axis=0), np.nanvar(wide, axis=0)])


def _mean_and_variance(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    """Of finite rows, to the bit what NumPy makes of them, a few columns at a time: those stay in the cache."""
    rows, dim = features.shape
    out = np.empty((2, dim))
    bits, wide = np.empty((rows, _COLUMNS), np.int32), np.empty((rows, _COLUMNS))
    for start in range(0, dim, _COLUMNS):
        part, (mean, variance) = features[:, start : start + _COLUMNS], out[:, start : start + _COLUMNS]
        width = part.shape[1]
        values = _widen(part, bits[:, :width], wide[:, :width])
        np.divide(values.sum(axis=0), rows, out=mean)
        np.subtract(values, mean, out=values)
        np.multiply(values, values, out=values)
        np.divide(values.sum(axis=0), rows, out=variance)
    out[0] *= _UNIT
    out[1] *= _UNIT**2
    return out


def _widen(
    values: npt.NDArray[np.float16], bits: npt.NDArray[np.int32], out: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Finite values in float64, exactly, in units of `_UNIT`; twice as fast as by ``astype``.

    Sign, exponent and fraction are moved to where float32 has them (`bits` holds them). Its exponent counts from 127,
    that of float16 from 15.
    """
    np.copyto(bits, values.view(np.int16))  # extends the sign
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
    np.copyto(out, bits.view(np.float32))
    return out


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
        """Take in a block of `count` rows with its own mean and variance, (dim,) each."""
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
