"""CKA against its definition."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import checks
from pipeline.metrics.cka import cka, flattered, linear_cka, minibatch_cka
from stores.errors import EvaluationError

Floats = npt.NDArray[np.float64]


def naive_cka(x: Floats, y: Floats) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the centring matrix written out."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, m = x @ x.T, y @ y.T

    def hsic(a: Floats, b: Floats) -> float:
        return float(np.trace(a @ h @ b @ h))

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def naive_unbiased_hsic(k: Floats, m: Floats) -> float:
    """Song et al., equation 5, sample by sample."""
    n = len(k)
    k, m = k.copy(), m.copy()
    for i in range(n):
        k[i, i] = m[i, i] = 0
    trace = sum(k[i, j] * m[j, i] for i in range(n) for j in range(n))
    sums = sum(k[i, j] for i in range(n) for j in range(n)) * sum(m[i, j] for i in range(n) for j in range(n))
    chain = sum(k[i, j] * m[j, q] for i in range(n) for j in range(n) for q in range(n))
    return float(trace + sums / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)) / (n * (n - 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_cka_equals_its_definition(n: int, p: int, q: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + 5
    y = rng.normal(size=(n, q)) * 3 + x[:, :1]
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), rel=1e-8, abs=1e-12)


def test_cka_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 101, 8)).astype(np.float32)
    whole = linear_cka(x, y)
    monkeypatch.setattr(checks.row_blocks, "__defaults__", (1000,))
    assert linear_cka(x, y) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(naive_cka(x.astype(float), y.astype(float)), rel=1e-9)


def test_cka_is_blind_to_rotation_scale_and_shift() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 8))
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert linear_cka(x, x @ rotation * 7 + 3) == pytest.approx(1)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y @ rotation - 1, x))
    rng_a, rng_b = np.random.default_rng(1), np.random.default_rng(1)
    turned = minibatch_cka(x @ rotation * 7 + 3, y, 20, rng_a)
    assert turned == pytest.approx(minibatch_cka(x, y, 20, rng_b))


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 14), st.integers(1, 6), st.integers(0, 99))
def test_the_unbiased_form_equals_its_definition(n: int, p: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + 3
    y = x[:, :1] + rng.normal(size=(n, p)) / 3
    k, m = x @ x.T, y @ y.T
    own = naive_unbiased_hsic(k, k) * naive_unbiased_hsic(m, m)
    if min(naive_unbiased_hsic(k, k), naive_unbiased_hsic(m, m)) <= 1e-9:
        return
    expected = naive_unbiased_hsic(k, m) / np.sqrt(own)
    assert minibatch_cka(x, y, n, rng) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert cka(x, y).unbiased == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert cka(x, y).linear == linear_cka(x, y)


def test_batches_are_averaged_before_the_ratio() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(25, 3))
    y = x + rng.normal(size=(25, 3))
    order = np.random.default_rng(9).permutation(25)
    totals = np.zeros(3)
    for rows in np.array_split(order, 3):
        k, m = x[rows] @ x[rows].T, y[rows] @ y[rows].T
        totals += [naive_unbiased_hsic(k, m), naive_unbiased_hsic(k, k), naive_unbiased_hsic(m, m)]
    expected = totals[0] / np.sqrt(totals[1] * totals[2])
    assert minibatch_cka(x, y, 9, np.random.default_rng(9)) == pytest.approx(expected, rel=1e-9)


def test_few_samples_of_many_features_look_alike_only_to_the_biased_form() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 100, 1500))
    assert linear_cka(x, y) > 0.9
    assert abs(minibatch_cka(x, y, 100, rng)) < 0.05
    found = cka(x, y)
    assert found.unbiased is not None
    assert abs(found.unbiased) < 0.05
    assert "100 samples are fewer than 1,500 dimensions" in str(flattered(100, 8, 1500))
    assert flattered(1500, 8, 1500) is None


def test_the_unbiased_form_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 101, 8)).astype(np.float32) + np.float32(100)
    monkeypatch.setattr(checks.row_blocks, "__defaults__", (1000,))
    assert cka(x, y).unbiased == pytest.approx(minibatch_cka(x, y, 101, rng), rel=1e-9)


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (np.eye(3), "fewer than four samples"),
        (np.eye(5), "any two samples are equally far apart: the unbiased estimate of HSIC is 0"),
    ],
)
def test_where_the_unbiased_form_is_not_defined(x: Floats, why: str) -> None:
    assert cka(x, x).unbiased is None, why
    assert cka(x, x).linear == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (np.ones((5, 2)), np.eye(5), "constant"),
        (np.full((5, 2), 0.1), np.eye(5), "constant"),
        (np.eye(5), np.eye(4), "same samples"),
        (np.eye(1), np.eye(1), "at least 2"),
        (np.full((5, 2), np.nan), np.eye(5), "not finite"),
    ],
)
def test_cka_of_nonsense(x: Floats, y: Floats, match: str) -> None:
    with pytest.raises(EvaluationError, match=match):
        linear_cka(x, y)


@pytest.mark.parametrize(
    ("x", "y", "batch", "match"),
    [
        (np.full((9, 2), 0.1), np.eye(9), 5, "constant"),
        (np.eye(3), np.eye(3), 5, "at least 4"),
        (np.eye(9), np.eye(9), 3, "batches of 3; at least 4"),
        (np.full((9, 2), np.inf), np.eye(9), 5, "not finite"),
    ],
)
def test_the_unbiased_form_of_nonsense(x: Floats, y: Floats, batch: int, match: str) -> None:
    with pytest.raises(EvaluationError, match=match):
        minibatch_cka(x, y, batch, np.random.default_rng(0))
