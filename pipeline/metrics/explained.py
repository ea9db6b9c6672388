"""How much of the teacher's features a linear map from the student's explains on samples that it was not fitted on."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.checks import require_features
from stores.errors import EvaluationError

_PENALTIES = 10.0 ** np.arange(-4, 4)
"""Of the ridge regression, as multiples of the mean variance of a direction of the student's features."""


def explained_variance(
    x_fit: npt.NDArray[Any], y_fit: npt.NDArray[Any], x: npt.NDArray[Any], y: npt.NDArray[Any]
) -> float:
    """Share of the variance of `y` that the best linear map from `x` explains, in float64.

    1 - (squared error of the map) / (squared error of the mean of `y_fit`), over all samples and dimensions. The map is
    a ridge regression on `x_fit` and `y_fit`. Its penalty is the one of eight with the greatest result: a student fits
    the samples that it was trained on too well for cross-validation on them, and one number chosen on all of `y`
    flatters little. Each dimension of y is divided by its standard deviation in `y_fit`, so that all count alike; one
    that does not vary there is left out.

    Parameters
    ----------
    x_fit : (m, p)
        The student's features of training samples.
    y_fit : (m, q)
        The teacher's features of the same.
    x, y : (n, p), (n, q)
        The same of held-out samples.

    Returns
    -------
    float
        1 for a perfect map, about 0 for one that is no better than a constant.

    Raises
    ------
    EvaluationError
        When shapes do not match, a value is not finite, or the teacher's features are constant.
    """
    for name, features in (("x_fit", x_fit), ("y_fit", y_fit), ("x", x), ("y", y)):
        require_features(f"explained variance, {name}", features)
    if (len(x_fit), len(x), x_fit.shape[1], y_fit.shape[1]) != (len(y_fit), len(y), x.shape[1], y.shape[1]):
        raise EvaluationError(
            f"explained variance: {x_fit.shape}, {y_fit.shape}, {x.shape} and {y.shape} do not match"
        )
    wide = y_fit.astype(np.float64)
    mean_y, std_y = wide.mean(axis=0), wide.std(axis=0)
    varies = std_y > 1e-6 * np.abs(mean_y)
    target = (wide - mean_y)[:, varies] / std_y[varies]
    wanted = (y.astype(np.float64) - mean_y)[:, varies] / std_y[varies]
    if not wanted.any():
        raise EvaluationError("explained variance: the teacher's features are constant over all samples")
    mean_x = x_fit.astype(np.float64).mean(axis=0)
    u, s, vt = np.linalg.svd(x_fit.astype(np.float64) - mean_x, full_matrices=False)
    fitted, scores, variance = u.T @ target, (x.astype(np.float64) - mean_x) @ vt.T, np.square(s)

    def result(penalty: float) -> float:
        weights = s / (variance + max(penalty * variance.mean(), np.finfo(float).tiny))
        return float(1 - np.square(wanted - (scores * weights) @ fitted).sum() / np.square(wanted).sum())

    return max(result(penalty) for penalty in _PENALTIES)
