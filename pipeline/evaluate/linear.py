"""Linear probe: logistic regression on frozen features, its strength of regularisation chosen on validation.

G2L's paper does not say how it probes. Here: features standardised by the training samples, scikit-learn's
``LogisticRegression`` (lbfgs, L2), C from 1e-4 to 1e4, the one with the best AUC on the validation samples, of
equals the one with the smallest log loss there.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from pipeline.metrics.checks import require_classes, require_features
from pipeline.metrics.classification import Classification
from stores.errors import EvaluationError

CS = tuple(10.0**power for power in range(-4, 5))
_ITERATIONS = 2000


@dataclass(frozen=True, slots=True)
class Fold:
    """Indices of the samples that train, choose and test."""

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Probe:
    """Predictions for the test samples."""

    scores: npt.NDArray[np.float64]
    """(m, n_classes), sums to 1."""
    c: float
    converged: bool


def logistic_probe(
    x: npt.NDArray[Any], labels: npt.NDArray[np.int64], fold: Fold, n_classes: int, cs: Sequence[float] = CS
) -> Probe:
    """Fit on the training samples of a fold, choose C on its validation samples, score its test samples.

    Raises
    ------
    EvaluationError
        When training or validation samples hold one class only, or a value is not finite.
    """
    require_features("linear", x)
    require_classes("labels of the training samples", labels[fold.train])
    require_classes("labels of the validation samples", labels[fold.val])
    train = x[fold.train].astype(np.float64)
    mean, std = train.mean(axis=0), train.std(axis=0)
    std[std == 0] = 1  # a constant feature says nothing, and stays constant
    train, val, test = (((x[rows] - mean) / std) for rows in (fold.train, fold.val, fold.test))
    best: tuple[tuple[float, float], float, LogisticRegression, bool] | None = None
    for c in sorted(cs):
        # two threads took five times as long as one at 378 x 256, and 1.4 times at 6,000 x 1,536
        with threadpool_limits(1, user_api="blas"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ConvergenceWarning)
            model = LogisticRegression(C=c, max_iter=_ITERATIONS).fit(train, labels[fold.train])
        scores = _scores(model, val, n_classes)
        own = scores[np.arange(len(fold.val)), labels[fold.val]]
        rank = _auc(labels[fold.val], scores, n_classes), float(np.log(np.maximum(own, 1e-15)).mean())
        if best is None or rank > best[0]:
            best = rank, c, model, not caught
    assert best is not None
    return Probe(_scores(best[2], test, n_classes), best[1], best[3])


def _scores(model: LogisticRegression, x: npt.NDArray[np.float64], n_classes: int) -> npt.NDArray[np.float64]:
    result = np.zeros((len(x), n_classes))
    if len(x):
        result[:, model.classes_] = model.predict_proba(x)
    return result


def _auc(labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], n_classes: int) -> float:
    """Of the classes that occur."""
    there = np.unique(labels)
    number = np.searchsorted(there, labels)
    part = scores[:, there]
    figures = Classification(number, part.argmax(axis=1), len(there), part).figures(np.ones(len(labels)))
    return float(figures[-1])


def folds_by_group(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], n_folds: int, seed: int
) -> list[Fold]:
    """Cross-validation in which no group is split: a fold tests, the next one chooses, the others train.

    Classes are spread as evenly as the groups allow (scikit-learn's ``StratifiedGroupKFold``).
    """
    n_groups = len(np.unique(groups))
    if n_folds < 3:
        raise EvaluationError(f"folds {n_folds}: at least 3, one to test, one to choose and one to train on")
    if n_groups < n_folds:
        raise EvaluationError(f"folds {n_folds}: there are only {n_groups} groups")
    cut = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer members than folds
        tests = [test for _, test in cut.split(np.zeros(len(labels)), labels, groups)]
    result = []
    for i, test in enumerate(tests):
        val = tests[(i + 1) % n_folds]
        train = np.setdiff1d(np.arange(len(labels)), np.concatenate([test, val]))
        result.append(Fold(train, val, test))
    return result


def fold_of_splits(splits: Sequence[str]) -> Fold:
    """The one fold that a column of ``train``, ``val`` and ``test`` gives; without ``val`` it is an error.

    Without ``test`` samples the validation samples are tested, as eva does with data sets that have no test split.
    """
    other = sorted(set(splits) - {"train", "val", "test"})
    if other:
        raise EvaluationError(f"split {other[0]!r}: allowed are train, val, test")
    text = np.array(splits)
    train, val, test = (np.flatnonzero(text == name) for name in ("train", "val", "test"))
    if not len(train) or not len(val):
        raise EvaluationError(f"splits: {len(train)} train and {len(val)} val samples; both are needed")
    return Fold(train, val, test if len(test) else val)
