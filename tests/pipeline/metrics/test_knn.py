"""Neighbours and kNN against scikit-learn and against their definition, on random and adversarial embeddings."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from pipeline.metrics import neighbours
from pipeline.metrics.knn import knn_predict, knn_votes, leave_out
from pipeline.metrics.neighbours import nearest
from stores.errors import EvaluationError

Floats = npt.NDArray[np.float64]


def naive_nearest(
    reference: Floats, query: Floats, k: int, groups: tuple[Any, Any] | None = None
) -> list[list[int]]:
    """Every similarity written out; the lower index wins a tie."""
    result = []
    for i, q in enumerate(query):
        found = []
        for j, r in enumerate(reference):
            if groups is not None and groups[0][j] == groups[1][i]:
                continue
            norm = float(np.sqrt((q * q).sum()) * np.sqrt((r * r).sum()))
            found.append((-round(float((q * r).sum()) / norm if norm else 0.0, 12), j))
        result.append([j for _, j in sorted(found)[:k]])
    return result


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few samples already fall into several blocks, and more candidates than spare ones exist."""
    for name, value in {"_SPARE": 2, "_QUERIES": 7, "_REFERENCES": 10, "_QUERIES_HELD": 14}.items():
        monkeypatch.setattr(neighbours, name, value)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
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


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(
    st.integers(5, 50),
    st.integers(1, 5),
    st.integers(0, 999),
    st.sampled_from(["random", "ties", "constant", "zeros", "close"]),
    st.booleans(),
)
def test_neighbours_equal_their_definition(n: int, k: int, seed: int, kind: str, excluded: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    if kind == "ties":
        x = rng.integers(-1, 2, (n, 2)).astype(float)  # few directions, each of them many times
    elif kind == "constant":
        x[:] = x[0]
    elif kind == "zeros":
        x[rng.random(n) < 0.5] = 0
    elif kind == "close":  # 1e-9 apart: float32 cannot tell, and 12 decimals are far from being ties
        x = x[:1] + 3e-5 * rng.normal(size=(n, 5))
    groups = rng.integers(0, 3, n) if excluded else np.arange(n)
    smallest = min(n - int((groups == g).sum()) for g in groups)
    if smallest < k:
        with pytest.raises(EvaluationError, match="outside its own group; use a smaller k"):
            nearest(x, x, k, leave_out(groups, n))
        return
    found = nearest(x, x, k, leave_out(groups, n))
    assert found.tolist() == naive_nearest(x, x, k, (groups, groups))


def test_float32_embeddings_in_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 40)).astype(np.float32)
    query = x[:50] + rng.normal(size=(50, 40)).astype(np.float32) / 10
    in_blocks = nearest(x, query, 5)
    for name, value in {"_QUERIES": 1024, "_REFERENCES": 32768, "_QUERIES_HELD": 16384}.items():
        monkeypatch.setattr(neighbours, name, value)
    np.testing.assert_array_equal(in_blocks, nearest(x, query, 5))
    assert in_blocks.tolist() == naive_nearest(x.astype(float), query.astype(float), 5)


def test_leave_one_out_and_groups() -> None:
    """Two slides with two copies of one tissue: only the other slide's copy may vote."""
    x = np.array([[1, 0], [1, 0.01], [1, 0.02], [0, 1], [0.01, 1]], float)
    labels = np.array([0, 1, 0, 1, 1])
    slides = np.array([0, 0, 1, 1, 0])
    assert knn_predict(x, labels, x, 1, leave_out(None, 5)).tolist() == [1, 0, 1, 1, 1]
    assert knn_predict(x, labels, x, 1, leave_out(slides, 5)).tolist() == [0, 0, 1, 1, 1]


def test_several_k_from_one_search() -> None:
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    both = knn_votes(x, labels, x, [7, 1, 3], leave_out(None, 40))
    for column, k in enumerate([7, 1, 3]):
        np.testing.assert_array_equal(both[:, column], knn_predict(x, labels, x, k, leave_out(None, 40)))


def test_a_tie_of_votes_goes_to_the_smallest_label() -> None:
    x = np.eye(4)
    assert knn_predict(x, np.array([3, 2, 1, 0]), np.ones((1, 4)), 4).tolist() == [0]
    # the lower index is nearer
    assert knn_predict(x, np.array([3, 2, 1, 1]), np.ones((1, 4)), 2).tolist() == [2]


@pytest.mark.parametrize(
    ("reference", "query", "k", "message"),
    [
        (np.eye(3), np.eye(3), 4, "k 4: allowed is 1 to the number of reference samples, 3"),
        (np.eye(3), np.eye(3), 0, "k 0: allowed is 1 to"),
        (np.eye(3) * np.nan, np.eye(3), 1, "reference: the embedding of sample 0 is not finite"),
        (np.eye(3), np.diag([1, np.inf, 1]), 1, "query: the embedding of sample 1 is not finite"),
        (np.eye(3), np.eye(4), 1, "queries have 4 numbers, reference samples 3"),
        (np.eye(3, dtype=int), np.eye(3), 1, r"reference: int64 \(3, 3\); a matrix"),
        (np.ones(3), np.eye(3), 1, r"reference: float64 \(3,\); a matrix"),
        (np.empty((0, 3)), np.eye(3), 1, "reference: 0 samples; at least 1 are needed"),
    ],
)
def test_what_has_no_neighbours(reference: Floats, query: Floats, k: int, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        knn_predict(reference, np.zeros(len(reference), np.int64), query, k)


def test_labels_have_to_fit() -> None:
    with pytest.raises(EvaluationError, match="labels: 2 for 3 samples"):
        knn_predict(np.eye(3), np.zeros(2, np.int64), np.eye(3), 1)
    with pytest.raises(EvaluationError, match="one each, 0 or more"):
        knn_predict(np.eye(3), np.array([-1, 0, 0]), np.eye(3), 1)
    with pytest.raises(EvaluationError, match="k: no value is given"):
        knn_votes(np.eye(3), np.zeros(3, np.int64), np.eye(3), [])
