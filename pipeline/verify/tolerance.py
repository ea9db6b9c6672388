"""How far a feature that is computed again may honestly be from the stored one, by the arithmetic of both."""

import numpy as np
import numpy.typing as npt

from stores.format import recipe

OF_ARITHMETIC = {"float32": 5e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest relative error. Measured on a CPU: 4e-4, 1e-3 and 1.2e-2.

See docs/decisions/0028-what-a-teacher-may-differ.md.
"""
MOST_OF_INT8 = 0.1
"""The most that a compact copy may claim as its largest error."""


def distance(stored: npt.NDArray[np.float16], fresh: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Smallest cosine and largest relative error of vectors (n, dim) to new ones.

    The relative error is ``|new - stored| / |stored|`` in the Euclidean norm or in the maximum norm, whichever is
    larger: the first counts a feature that was scaled, the second a single value that was changed.
    """
    old, new = stored.astype(np.float64), fresh.astype(np.float64)
    away = new - old
    norms = np.maximum(np.linalg.norm(old, axis=1), 1e-12)
    cosine = (old * new).sum(axis=1) / (norms * np.maximum(np.linalg.norm(new, axis=1), 1e-12))
    largest = np.maximum(np.abs(old).max(axis=1), 1e-12)
    errors = np.maximum(np.linalg.norm(away, axis=1) / norms, np.abs(away).max(axis=1) / largest)
    return float(cosine.min()), float(errors.max())


def allowed(stored: recipe.CompleteRecipe, dtype: str) -> float:
    """The largest relative error between features of a store and those computed in `dtype`."""
    most = max(OF_ARITHMETIC.get(name, 0.0) for name in (stored.teacher.dtype, dtype))
    if stored.compact is not None:
        claimed = stored.compact.get("max_relative_error")
        # claimed in the Euclidean norm; in the maximum norm it is up to twice as much
        most += 2 * min(max(claimed, 0.0), MOST_OF_INT8) if isinstance(claimed, int | float) else MOST_OF_INT8
    return most
