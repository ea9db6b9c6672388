"""Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, equation 3 with a linear kernel).

`cka` is exact, in memory that does not grow with the number of samples. Its first form comes out too high when samples
are few and features many. The second has the unbiased estimator of HSIC (Song et al., JMLR 13, equation 5): it is near
0 for representations that have nothing in common.
`minibatch_cka` averages that estimator over batches (Nguyen et al., arXiv 2010.15327, equations 3 and 4).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.checks import require_features, row_blocks
from stores.errors import EvaluationError

_BATCH_MIN = 4
_ROUNDING_HSIC = 1e-12
"""More than the share of the sum of squares that rounding leaves of an estimate of HSIC that is 0."""
_ROUNDING = 1e-26
"""More than the share of the sum of squares that rounding leaves when the mean of a constant is subtracted."""


@dataclass(frozen=True, slots=True)
class Cka:
    """Similarity of two representations of the same samples, in two forms."""

    linear: float
    """0 to 1; too high when samples are few."""
    unbiased: float | None
    """-1 to 1; below 0 where two representations have less in common than chance. None where it is not defined: fewer
    than four samples, or a representation with any two samples equally far apart."""


def cka(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Cka:
    """Linear CKA of two representations of the same n samples, invariant to rotation, scale and shift, in float64.

    With centred columns, ``||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)``; the unbiased form has an unbiased estimate of
    HSIC in the place of each of the three.

    Parameters
    ----------
    x : (n, p)
    y : (n, q)

    Raises
    ------
    EvaluationError
        When the samples do not match, a value is not finite, or a representation is constant.
    """
    _require_pair(x, y, 2)
    n, found = len(x), _moments(x, y)
    linear = float(found.cross / np.sqrt(found.own_x * found.own_y))
    if n < _BATCH_MIN:
        return Cka(linear, None)

    def hsic(cross: float, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        # a row of the Gram matrix of centred samples sums to 0, and to minus its diagonal element without that one
        return float(cross - n / (n - 2) * (a @ b) + a.sum() * b.sum() / ((n - 1) * (n - 2)))

    own_x = hsic(found.own_x, found.norms_x, found.norms_x)
    own_y = hsic(found.own_y, found.norms_y, found.norms_y)
    if min(own_x / found.own_x, own_y / found.own_y) <= _ROUNDING_HSIC:
        return Cka(linear, None)
    return Cka(linear, float(hsic(found.cross, found.norms_x, found.norms_y) / np.sqrt(own_x * own_y)))


def linear_cka(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """`cka`, in the first form alone."""
    return cka(x, y).linear


def flattered(samples: int, *dims: int) -> str | None:
    """A warning where samples are fewer than dimensions; else None.

    >>> flattered(82, 576, 1280)
    '82 samples are fewer than 1,280 dimensions: CKA comes out too high; the unbiased form does not'
    >>> flattered(2000, 576, 1280)
    """
    if samples >= max(dims):
        return None
    return (
        f"{samples:,} samples are fewer than {max(dims):,} dimensions: CKA comes out too high; the unbiased form "
        "does not"
    )


def minibatch_cka(x: npt.NDArray[Any], y: npt.NDArray[Any], batch: int, rng: np.random.Generator) -> float:
    """CKA from unbiased estimates of HSIC, averaged over batches; with ``batch=n`` the unbiased CKA of all samples.

    Parameters
    ----------
    x : (n, p)
    y : (n, q)
    batch : int, 4 or more
        Samples are shuffled by `rng` and cut into batches of almost equal size, at most `batch`.

    Returns
    -------
    float
        At most about 1; below 0 where two representations have less in common than chance.
    """
    _require_pair(x, y, _BATCH_MIN)
    if batch < _BATCH_MIN:
        raise EvaluationError(f"CKA: batches of {batch}; at least {_BATCH_MIN} samples are needed")
    order = rng.permutation(len(x))
    n_batches = min(-(-len(x) // batch), len(x) // _BATCH_MIN)
    mean_x, mean_y = _centre(x), _centre(y)  # HSIC is invariant to the mean; this only reduces rounding
    totals = np.zeros(3)
    for part in np.array_split(order, n_batches):
        rows = np.sort(part)
        a, b = x[rows].astype(np.float64) - mean_x, y[rows].astype(np.float64) - mean_y
        k, m = _hollow(a @ a.T), _hollow(b @ b.T)
        totals += _hsic(k, m), _hsic(k, k), _hsic(m, m)
    cross, own_x, own_y = totals
    if own_x <= 0 or own_y <= 0:
        raise EvaluationError(
            f"CKA: the unbiased estimate over batches of {batch} is not positive: larger batches, or more samples"
        )
    return float(cross / np.sqrt(own_x * own_y))


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of two representations with centred columns: all that both forms of CKA need."""

    cross: float
    """``||Y^T X||_F^2``"""
    own_x: float
    own_y: float
    norms_x: npt.NDArray[np.float64]
    """Squared length of each sample, (n,): the diagonal of the Gram matrix."""
    norms_y: npt.NDArray[np.float64]


def _moments(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> _Moments:
    mean_x, mean_y = _centre(x), _centre(y)
    n, p, q = len(x), x.shape[1], y.shape[1]
    norms_x, norms_y = np.zeros(n), np.zeros(n)
    if n < min(p, q):  # the same figures from the (n, n) Gram matrices, smaller here
        wide_x, wide_y = x.astype(np.float64) - mean_x, y.astype(np.float64) - mean_y
        k, m = wide_x @ wide_x.T, wide_y @ wide_y.T
        norms_x, norms_y = k.diagonal(), m.diagonal()
        return _Moments(float((k * m).sum()), float((k * k).sum()), float((m * m).sum()), norms_x, norms_y)
    products = np.zeros((q, p)), np.zeros((p, p)), np.zeros((q, q))
    for rows in row_blocks(n, 8 * (p + q)):
        a, b = x[rows].astype(np.float64) - mean_x, y[rows].astype(np.float64) - mean_y
        products[0][:] += b.T @ a
        products[1][:] += a.T @ a
        products[2][:] += b.T @ b
        norms_x[rows], norms_y[rows] = np.square(a).sum(axis=1), np.square(b).sum(axis=1)
    cross, own_x, own_y = (float(np.square(product).sum()) for product in products)
    return _Moments(cross, own_x, own_y, norms_x, norms_y)


def _hollow(gram: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(k: npt.NDArray[np.float64], m: npt.NDArray[np.float64]) -> float:
    """The unbiased estimator of HSIC from Gram matrices without their diagonals."""
    n = len(k)
    rows_k, rows_m = k.sum(axis=1), m.sum(axis=1)
    total = (
        (k * m).sum() + rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_k @ rows_m)
    )
    return float(total / (n * (n - 3)))


def _centre(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mean of every column; EvaluationError when no column varies beyond rounding."""
    total, square = np.zeros(x.shape[1]), 0.0
    for rows in row_blocks(len(x), 8 * x.shape[1]):
        wide = x[rows].astype(np.float64)
        total += wide.sum(axis=0)
        square += np.square(wide).sum()
    mean = total / len(x)
    varying = sum(
        np.square(x[rows].astype(np.float64) - mean).sum() for rows in row_blocks(len(x), 8 * x.shape[1])
    )
    if varying <= _ROUNDING * square:
        raise EvaluationError("CKA: a representation is constant over all samples")
    return mean


def _require_pair(x: npt.NDArray[Any], y: npt.NDArray[Any], n_min: int) -> None:
    if len(x) != len(y) or len(x) < n_min:
        raise EvaluationError(
            f"CKA of {len(x)} and {len(y)} samples: needs the same samples, at least {n_min}"
        )
    require_features("CKA", x)
    require_features("CKA", y)
