"""The explained variance against a ridge regression that is written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.explained import explained_variance
from stores.errors import EvaluationError


def naive(x_fit: np.ndarray, y_fit: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Normal equations, for each penalty."""
    m, p = x_fit.shape
    mean_y, std = y_fit.mean(axis=0), y_fit.std(axis=0)
    target, wanted = (y_fit - mean_y) / std, (y - mean_y) / std
    a, b = x_fit - x_fit.mean(axis=0), x - x_fit.mean(axis=0)
    unit = np.trace(a.T @ a) / min(m, p)
    found = []
    for penalty in 10.0 ** np.arange(-4, 4):
        inverse = np.linalg.inv(a.T @ a + penalty * unit * np.eye(p))
        made = b @ inverse @ a.T @ target
        found.append(1 - np.square(wanted - made).sum() / np.square(wanted).sum())
    return float(max(found))


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 40), st.integers(1, 30), st.integers(1, 6), st.integers(0, 99))
def test_it_equals_the_regression_written_out(m: int, p: int, q: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(m + 9, p)) + 3
    y = x @ rng.normal(size=(p, q)) + 3 * rng.normal(size=(m + 9, q)) - 5
    args = x[:m], y[:m], x[m:], y[m:]
    assert explained_variance(*args) == pytest.approx(naive(*args), rel=1e-6, abs=1e-8)


def test_what_the_values_mean() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(600, 10)), rng.normal(size=(600, 20))
    y = x @ rng.normal(size=(10, 20))
    half = slice(0, 300), slice(300, 600)

    def of(x: np.ndarray, y: np.ndarray) -> float:
        return explained_variance(x[half[0]], y[half[0]], x[half[1]], y[half[1]])

    assert of(x, y) == pytest.approx(1, abs=1e-4)
    assert abs(of(x, noise)) < 0.02  # nothing in common
    assert of(x, y + noise * np.sqrt(np.square(y).mean(axis=0))) == pytest.approx(0.5, abs=0.05)
    scales = 10.0 ** rng.integers(-3, 4, 20)
    assert of(x * 100 + 7, y * scales + 5) == pytest.approx(of(x, y), abs=1e-6)  # units do not count
    assert abs(of(np.ones((600, 3)), y)) < 0.05  # a student that is constant explains nothing
    assert of(x, np.c_[y, np.ones(600)]) == pytest.approx(of(x, y))  # nor does a dimension that is


@pytest.mark.parametrize(
    ("y_fit", "x", "match"),
    [
        (np.ones((9, 2)), np.ones((3, 4)), "constant over all samples"),
        (np.eye(9, 2), np.ones((3, 5)), "do not match"),
        (np.full((9, 2), np.nan), np.ones((3, 4)), "y_fit"),
    ],
)
def test_explained_variance_of_nonsense(y_fit: np.ndarray, x: np.ndarray, match: str) -> None:
    with pytest.raises(EvaluationError, match=match):
        explained_variance(np.eye(9, 4), y_fit, x, np.eye(3, 2))
