"""How near the features of an export are to those of the original."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.export.graph import Views
from stores.io.text import counted

Features = npt.NDArray[np.float32]
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Agreement:
    """Figures over the views that were compared."""

    views: int
    cosine_min: float | None
    """None when no view has finite features."""
    cosine_median: float | None
    difference_max: float | None
    """Largest difference of a number of a feature."""
    rms: float
    """Root mean square of the original's numbers, to judge a difference by."""
    not_finite: int
    """Views with numbers that are infinite or NaN."""

    def passes(self, least_cosine: float) -> bool:
        """Whether every view is finite and as near as that."""
        return self.not_finite == 0 and self.cosine_min is not None and self.cosine_min >= least_cosine

    @property
    def rank(self) -> tuple[int, float]:
        """The nearer to the original, the greater."""
        return -self.not_finite, -1.0 if self.cosine_min is None else self.cosine_min

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def line(self) -> str:
        """The same to read."""
        if self.cosine_min is None:
            return f"{counted(self.views, 'view')} compared with the original: no feature is finite"
        bad = f"; {counted(self.not_finite, 'view is', 'views are')} not finite" if self.not_finite else ""
        return (
            f"{counted(self.views, 'view')} compared with the original: smallest cosine {self.cosine_min:.6f}, median "
            f"{self.cosine_median:.6f}, largest difference {self.difference_max:.2g} (numbers have a root mean square "
            f"of {self.rms:.2g}){bad}"
        )


def compare(original: Features, found: Features) -> Agreement:
    """Compare features (n, dim) with those of the original, view by view. Two zero vectors are equal.

    >>> compare(np.float32([[3, 4], [0, 0]]), np.float32([[6, 8], [0, 0]])).cosine_min
    1.0
    """
    a, b = original.astype(np.float64), found.astype(np.float64)
    whole = np.isfinite(b).all(axis=1)
    rms = float(np.sqrt(np.mean(a**2)))
    if not whole.any():
        return Agreement(len(a), None, None, None, rms, len(a))
    cosines = _cosines(a[whole], b[whole])
    return Agreement(
        len(a),
        float(cosines.min()),
        float(np.median(cosines)),
        float(np.abs(a[whole] - b[whole]).max()),
        rms,
        int((~whole).sum()),
    )


def _cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    zero = lengths == 0
    both = np.abs(a - b).max(axis=1) == 0
    found = np.sum(a * b, axis=1) / np.where(zero, 1, lengths)
    return np.where(zero, both, found).clip(-1, 1)


def features_of(run: Callable[[Views], Features], views: Views) -> Features:
    """Features of `views`: the first alone, then batches, the last of which may be short.

    So an export that keeps the batch size it was traced with fails here.
    """
    parts = [run(views[:1])]
    for start in range(1, len(views), _BATCH):
        parts.append(run(views[start : start + _BATCH]))
    return np.concatenate(parts)
