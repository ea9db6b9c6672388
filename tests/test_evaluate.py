"""CKA and kNN against independent references."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from pipeline.evaluate.cka import linear_cka
from pipeline.evaluate.knn import knn_predict
from stores.errors import OptionError


def naive_cka(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the centring matrix written out."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, m = x @ x.T, y @ y.T

    def hsic(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        return float(np.trace(a @ h @ b @ h))

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_cka_equals_its_definition(n: int, p: int, q: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + 5
    y = rng.normal(size=(n, q)) * 3 + x[:, :1]
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), rel=1e-8, abs=1e-12)


def test_cka_is_blind_to_rotation_scale_and_shift() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 8))
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert linear_cka(x, x @ rotation * 7 + 3) == pytest.approx(1)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y @ rotation - 1, x))


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (np.ones((5, 2)), np.eye(5), "constant"),
        (np.eye(5), np.eye(4), "same samples"),
        (np.eye(1), np.eye(1), "at least 2"),
        (np.full((5, 2), np.nan), np.eye(5), "not finite"),
    ],
)
def test_cka_of_nonsense(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        linear_cka(x, y)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 60), st.integers(1, 30), st.integers(1, 15), st.integers(0, 99))
def test_knn_equals_scikit_learn(n: int, m: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, query = rng.normal(size=(n, 6)), rng.normal(size=(m, 6))
    labels = rng.integers(0, 4, n)
    k = min(k, n)
    expected = (
        KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(reference, labels).predict(query)
    )
    np.testing.assert_array_equal(knn_predict(reference, labels, query, k), expected)


def test_knn_refuses_k_beyond_the_samples_and_nan() -> None:
    labels = np.zeros(3, np.int64)
    with pytest.raises(OptionError, match="k 4: allowed is 1 to the number of reference samples, 3"):
        knn_predict(np.eye(3), labels, np.eye(3), 4)
    with pytest.raises(OptionError, match="not finite"):
        knn_predict(np.eye(3) * np.nan, labels, np.eye(3), 1)
