"""Figures of a classification against scikit-learn, and the bootstrap."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pipeline.metrics.bootstrap import bootstrap
from pipeline.metrics.checks import codes_of
from pipeline.metrics.classification import Classification
from stores.errors import EvaluationError


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.integers(2, 60), st.integers(2, 4), st.integers(0, 999), st.booleans(), st.booleans())
def test_figures_equal_scikit_learn(n: int, n_classes: int, seed: int, tied: bool, drawn: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    labels[:n_classes] = np.arange(n_classes)[:n]
    scores = rng.random((n, n_classes)) + 0.06
    if tied:
        scores = scores.round(1)
    scores /= scores.sum(axis=1, keepdims=True)
    predicted = scores.argmax(axis=1)
    weights = rng.integers(0, 3, n).astype(float) if drawn else np.ones(n)
    if not weights.any():
        weights[:] = 1
    # scikit-learn sees the samples as often as they count
    rows = np.repeat(np.arange(n), weights.astype(int))
    found = Classification(labels, predicted, n_classes, scores).figures(weights)
    truth, guess = labels[rows], predicted[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a predicted class that is not there
        expected = [
            sk.accuracy_score(truth, guess),
            sk.balanced_accuracy_score(truth, guess),
            sk.f1_score(truth, guess, average="macro"),
        ]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-9)
    if len(np.unique(truth)) < n_classes:
        assert np.isnan(found[3])
    elif n_classes == 2:
        assert found[3] == pytest.approx(sk.roc_auc_score(truth, scores[rows, 1]))
    else:
        assert found[3] == pytest.approx(sk.roc_auc_score(truth, scores[rows], multi_class="ovr"))


def test_scores_of_two_models_are_not_compared() -> None:
    """The AUC over folds is the mean of scikit-learn's by fold, weighted by their pairs."""
    rng = np.random.default_rng(0)
    labels, fold = rng.integers(0, 2, 90), rng.integers(0, 3, 90) * 4
    scores = rng.random(90).round(1) + 0.5 * labels + 7 * fold
    both = np.stack([-scores, scores], axis=1)
    found = Classification(labels, labels, 2, both, fold).figures(np.ones(90))[3]
    aucs, pairs = [], []
    for number in np.unique(fold):
        own = labels[fold == number]
        aucs.append(sk.roc_auc_score(own, scores[fold == number]))
        pairs.append(own.sum() * (1 - own).sum())
    assert found == pytest.approx(np.average(aucs, weights=pairs))
    assert found > sk.roc_auc_score(labels, scores) + 0.1


def test_one_class_has_no_auc() -> None:
    found = Classification(np.zeros(3, np.int64), np.zeros(3, np.int64), 2, np.full((3, 2), 0.5))
    figures = found.figures(np.ones(3))
    assert figures[:3].tolist() == [1, 1, 1]
    assert np.isnan(figures[3])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.zeros(0, np.int64), None, "0 labels and 2 predictions"),
        (np.zeros(3, np.int64), None, "3 labels and 2 predictions"),
        (np.zeros(2, np.int64), np.full((2, 2), np.nan), "finite numbers"),
        (np.zeros(2, np.int64), np.zeros((2, 3)), r"\(2, 2\) are needed"),
    ],
)
def test_what_is_no_classification(labels: np.ndarray, scores: np.ndarray | None, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        Classification(labels, np.zeros(2, np.int64), 2, scores)


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        values = rng.normal(size=40)

        def mean(weights: np.ndarray, values: np.ndarray = values) -> np.ndarray:
            return np.array([(weights * values).sum() / weights.sum()])

        (estimate,) = bootstrap(mean, 40, None, rng, 300)
        assert estimate.low < estimate.value < estimate.high
        inside += estimate.low < 0 < estimate.high
    assert 0.88 <= inside / 200 <= 0.99


def test_groups_are_drawn_whole() -> None:
    """Ten groups of a hundred equal values: drawn one by one, the interval would be ten times too narrow."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 100) * 7
    values = np.repeat(rng.normal(size=10), 100)

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.array([(weights * values).sum() / weights.sum()])

    (by_group,) = bootstrap(mean, 1000, groups, rng)
    (alone,) = bootstrap(mean, 1000, None, rng)
    assert by_group.high - by_group.low == pytest.approx(2 * 1.96 * values[::100].std() / 10**0.5, rel=0.2)
    assert by_group.high - by_group.low > 5 * (alone.high - alone.low)


def test_without_replicates_there_is_no_interval() -> None:
    (estimate,) = bootstrap(lambda w: np.array([w.sum()]), 3, None, np.random.default_rng(0), 0)
    assert estimate.value == 3
    assert np.isnan([estimate.low, estimate.high]).all()


def test_codes_follow_numbers_where_labels_are_numbers() -> None:
    codes, names = codes_of("label", ["10", "9", "10"], 3)
    assert (codes.tolist(), names) == ([1, 0, 1], ["9", "10"])
    with pytest.raises(EvaluationError, match="label: sample 1 has none"):
        codes_of("label", ["a", ""], 2)
    with pytest.raises(EvaluationError, match="label: 1 values for 2 samples"):
        codes_of("label", ["a"], 2)
