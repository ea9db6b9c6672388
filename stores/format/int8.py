"""Features in one byte for each value: standardised per dimension of a slide, scaled per row; and the error of it.

A feature is rebuilt as ``mean + std * scale * q`` with int8 ``q``, float32 arithmetic, and rounded to float16. Without
the standardisation a few large dimensions decide the scale of a row and the others lose their digits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

LOSSLESS, INT8 = "lossless", "int8"
KINDS = (LOSSLESS, INT8)
SAMPLE_ROWS = 2000
NEIGHBOURS = 10
_FLOAT16_MAX = np.float32(65504)
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
    # scales of a hostile store give values that readers refuse
    with np.errstate(over="ignore", invalid="ignore"):
        wide = mean + divisor * (scales[:, None] * values.astype(np.float32))
    wide[(values == ABSENT).any(axis=1)] = np.nan
    # the largest float16 may be rebuilt a little larger
    np.clip(wide, -_FLOAT16_MAX, _FLOAT16_MAX, out=wide, where=np.isfinite(wide))
    return wide.astype(np.float16)


def relative_error(
    features: npt.NDArray[np.float16], rebuilt: npt.NDArray[np.float16]
) -> npt.NDArray[np.float64]:
    """Norm of the difference over the norm of the feature, float64 (rows,); NaN in absent rows."""
    wide = features.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1)
    return np.asarray(np.linalg.norm(wide - rebuilt.astype(np.float64), axis=1) / np.where(norm > 0, norm, 1))


def neighbour_overlap(
    features: npt.NDArray[np.float16], rebuilt: npt.NDArray[np.float16], k: int = NEIGHBOURS
) -> float | None:
    """Share of the `k` nearest other rows (cosine) that a row keeps when all rows are rebuilt, averaged over the rows.

    None when there are not `k` other rows.
    """
    if len(features) <= k:
        return None
    before, after = _nearest(features, k), _nearest(rebuilt, k)
    kept = (before[:, :, None] == after[:, None, :]).any(axis=2)
    return float(kept.mean())


def _nearest(features: npt.NDArray[np.float16], k: int) -> npt.NDArray[np.int64]:
    wide = features.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


class Cost:
    """What int8 costs: the error of every committed row, and neighbours among a sample of the rows of seed 0.

    Parameters
    ----------
    n_rows
        How many rows of seed 0 will be added; the sample is spread evenly over them.
    """

    def __init__(self, n_rows: int) -> None:
        chosen = np.linspace(0, max(n_rows - 1, 0), min(n_rows, SAMPLE_ROWS)).round().astype(np.int64)
        self._chosen = np.unique(chosen)
        self._seen = self._rows = 0
        self._sum = self._largest = 0.0
        self._sample: list[tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]] = []

    def add(self, seed: int, features: npt.NDArray[np.float16], rebuilt: npt.NDArray[np.float16]) -> None:
        """Add committed rows, (rows, dim) each, as they were and as a reader gets them."""
        if not len(features):
            return
        errors = relative_error(features, rebuilt)
        self._sum += float(errors.sum())
        self._largest = max(self._largest, float(errors.max()))
        self._rows += len(errors)
        if seed == 0:
            chosen = self._chosen - self._seen
            chosen = chosen[(chosen >= 0) & (chosen < len(features))]
            self._sample.append((features[chosen], rebuilt[chosen]))
            self._seen += len(features)

    def to_json(self) -> dict[str, Any]:
        """The recipe's part: kind, mean and largest relative error, and the 10-NN overlap when it could be measured."""
        result: dict[str, Any] = {
            "kind": INT8,
            "rows": self._rows,
            "relative_error": _readable(self._sum / max(self._rows, 1)),
            "max_relative_error": _readable(self._largest),
        }
        if self._sample:
            before, after = (np.concatenate([pair[i] for pair in self._sample]) for i in (0, 1))
            overlap = neighbour_overlap(before, after)
            if overlap is not None:
                result |= {"nn10_overlap": round(overlap, 4), "nn10_rows": len(before)}
        return result


def _readable(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")
