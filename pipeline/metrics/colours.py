"""Principal components as colours, for maps of features."""

import numpy as np
import numpy.typing as npt


def as_rgb(space: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Three components (n, 3) as red, green and blue from 30 to 240, from their 2nd to their 98th percentile."""
    low, high = np.percentile(space, [2, 98], axis=0)
    scaled = np.clip((space - low) / np.where(high > low, high - low, 1), 0, 1)
    return np.rint(30 + 210 * scaled).astype(np.int64)
