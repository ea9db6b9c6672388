"""Figures of a classification. Samples have weights, so that the bootstrap is cheap."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.bootstrap import REPLICATES, Estimate, bootstrap
from stores.errors import EvaluationError

FIGURES = ("accuracy", "balanced_accuracy", "f1_macro", "auc")


class Classification:
    """Labels and predictions.

    Parameters
    ----------
    labels : int (n,)
        From 0 to ``n_classes - 1``.
    predicted : int (n,)
    scores : float (n, n_classes), optional
        For the AUC, which is left out without them.
    folds : int (n,), optional
        Which model a score comes from. Scores of two models are not comparable: the AUC compares samples of one fold
        only, over all folds.
    """

    def __init__(
        self,
        labels: npt.NDArray[np.int64],
        predicted: npt.NDArray[np.int64],
        n_classes: int,
        scores: npt.NDArray[Any] | None = None,
        folds: npt.NDArray[np.int64] | None = None,
    ) -> None:
        if len(labels) == 0 or len(labels) != len(predicted):
            raise EvaluationError(
                f"{len(labels)} labels and {len(predicted)} predictions; one each is needed"
            )
        if scores is not None and (scores.shape != (len(labels), n_classes) or not np.isfinite(scores).all()):
            raise EvaluationError(f"scores: finite numbers ({len(labels)}, {n_classes}) are needed")
        self._labels, self._n_classes = labels, n_classes
        self._cell = labels * n_classes + predicted
        self._ranked: list[_Ranked] | None = None
        if scores is not None:
            self._ranked = [_Ranked(scores[:, c], labels == c, folds) for c in self._ranked_classes()]
        self.names = FIGURES if scores is not None else FIGURES[:3]

    def _ranked_classes(self) -> range:
        """With two classes, one ranking is enough."""
        return range(1, 2) if self._n_classes == 2 else range(self._n_classes)

    def figures(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The figures of `names` when sample i counts ``weights[i]`` times.

        Accuracy; mean recall over the classes that occur; mean F1 over the classes that occur or are predicted; AUC,
        for several classes the mean of one against the rest. They are scikit-learn's ``accuracy_score``,
        ``balanced_accuracy_score``, ``f1_score(average="macro")`` and ``roc_auc_score(multi_class="ovr")``.
        """
        c = self._n_classes
        table = np.bincount(self._cell, weights, c * c).reshape(c, c)
        there, predicted, right = table.sum(axis=1), table.sum(axis=0), np.diag(table)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = (right / there)[there > 0].mean()
            f1 = (2 * right / (there + predicted))[there + predicted > 0].mean()
            result = [right.sum() / table.sum(), recall, f1]
        if self._ranked is not None:
            result.append(float(np.mean([ranked.auc(weights) for ranked in self._ranked])))
        return np.array(result)

    def estimates(
        self,
        groups: npt.NDArray[np.int64] | None,
        rng: np.random.Generator,
        replicates: int = REPLICATES,
    ) -> Mapping[str, Estimate]:
        """All figures with intervals over `groups`."""
        found = bootstrap(self.figures, len(self._labels), groups, rng, replicates)
        return dict(zip(self.names, found, strict=True))


class _Ranked:
    """Scores sorted within each fold, once for all replicates."""

    def __init__(
        self, scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64] | None
    ) -> None:
        fold = np.zeros(len(scores), np.int64) if folds is None else folds
        self._order = np.lexsort((scores, fold))
        ordered, fold = scores[self._order], fold[self._order]
        other_fold = np.concatenate([[True], fold[1:] != fold[:-1]])
        self._starts = np.flatnonzero(other_fold | np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        # of the ties, the first of each fold
        self._first = np.searchsorted(self._starts, np.flatnonzero(other_fold))
        self._positive = positive[self._order]

    def auc(self, weights: npt.NDArray[np.float64]) -> float:
        """Probability that a positive sample scores above a negative one, ties counting half; NaN without both."""
        w = weights[self._order]
        up = np.add.reduceat(w * self._positive, self._starts)
        down = np.add.reduceat(w * ~self._positive, self._starts)
        up_of, down_of = np.add.reduceat(up, self._first), np.add.reduceat(down, self._first)
        total = (up_of * down_of).sum()
        if total == 0:
            return float("nan")
        before = np.repeat(np.cumsum(down_of) - down_of, np.diff([*self._first, len(down)]))
        below = np.cumsum(down) - down - before
        return float((up * (below + down / 2)).sum() / total)
