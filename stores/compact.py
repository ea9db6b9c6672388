"""Features in one byte a value: standardised per dimension of a slide, then scaled per row.

A feature is rebuilt as ``mean + std * scale * q`` with int8 ``q``, float32 arithmetic, and rounded to float16. Without
the standardisation a few large dimensions decide the scale of a row and the others lose their digits.
"""

import numpy as np
import numpy.typing as npt

ABSENT = -128
"""Fill value of the int8 array, no value that `quantise` writes: it rebuilds as NaN."""


def quantise(
    features: npt.NDArray[np.float16], standard: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Values and scales, int8 (rows, dim) and float32 (rows,); a row with NaN is absent as a whole.

    Parameters
    ----------
    features : float16 (rows, dim)
    standard : float32 (2, dim)
        Mean and standard deviation of each dimension.
    """
    mean, std = standard
    divisor = np.where(std > 0, std, 1).astype(np.float32)
    z = (features.astype(np.float32) - mean) / divisor
    absent = ~np.isfinite(z).all(axis=1)
    z[absent] = 0
    largest = np.abs(z).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    values = np.clip(np.rint(z / scales[:, None]), -127, 127).astype(np.int8)
    values[absent] = ABSENT
    scales[absent] = np.nan
    return values, scales


def dequantise(
    values: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], standard: npt.NDArray[np.float32]
) -> npt.NDArray[np.float16]:
    """Features, float16 (rows, dim); NaN in rows that are absent or were lost."""
    mean, std = standard
    divisor = np.where(std > 0, std, 1).astype(np.float32)
    wide = mean + divisor * (scales[:, None] * values.astype(np.float32))
    wide[(values == ABSENT).any(axis=1)] = np.nan
    with np.errstate(over="ignore"):  # scales of a hostile store: becomes inf, which readers refuse
        return wide.astype(np.float16)


def relative_error(
    features: npt.NDArray[np.float16], rebuilt: npt.NDArray[np.float16]
) -> npt.NDArray[np.float64]:
    """Norm of the difference over the norm of the feature, float64 (rows,); NaN in absent rows."""
    wide = features.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1)
    return np.asarray(np.linalg.norm(wide - rebuilt.astype(np.float64), axis=1) / np.where(norm > 0, norm, 1))
