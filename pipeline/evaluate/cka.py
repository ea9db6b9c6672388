"""Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, equation 3 with a linear kernel)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import OptionError


def linear_cka(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """Similarity of two representations of the same n samples, 0 to 1, blind to rotation and scale.

    ``||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)`` with centred columns, in float64.

    Parameters
    ----------
    x : (n, p)
    y : (n, q)

    Raises
    ------
    OptionError
        When the samples do not match, a value is not finite, or a representation is constant.
    """
    if len(x) != len(y) or len(x) < 2:
        raise OptionError(f"CKA of {len(x)} and {len(y)} samples: needs the same samples, at least 2")
    x, y = x.astype(np.float64), y.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise OptionError("CKA: a feature is not finite")
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    if len(x) < min(x.shape[1], y.shape[1]):  # the same figure from the (n, n) Gram matrices, smaller here
        k, m = x @ x.T, y @ y.T
        cross, own_x, own_y = (k * m).sum(), (k * k).sum(), (m * m).sum()
    else:
        cross, own_x, own_y = (np.square(a.T @ b).sum() for a, b in ((y, x), (x, x), (y, y)))
    if own_x == 0 or own_y == 0:
        raise OptionError("CKA: a representation is constant over all samples")
    return float(cross / np.sqrt(own_x * own_y))
