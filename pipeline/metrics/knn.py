"""Training-free k nearest neighbours: majority vote over L2-normalised features, cosine similarity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.neighbours import nearest
from stores.errors import EvaluationError


def knn_predict(
    reference: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    query: npt.NDArray[Any],
    k: int,
    exclude: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None,
) -> npt.NDArray[np.int64]:
    """The label that most of the `k` most similar reference samples have; ties go to the smallest label.

    Parameters
    ----------
    reference : (n, d)
    labels : int (n,), 0 or more
    query : (m, d)
    k : int, 1 to n
    exclude : int (n,), int (m,), optional
        Groups of reference and query: samples of the query's own group do not vote.

    Returns
    -------
    int (m,)
    """
    return knn_votes(reference, labels, query, [k], exclude)[:, 0]


def knn_votes(
    reference: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    query: npt.NDArray[Any],
    ks: Sequence[int],
    exclude: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None,
    device: str = "cpu",
) -> npt.NDArray[np.int64]:
    """`knn_predict` for several `ks` from one search, int (m, len(ks))."""
    if len(labels) != len(reference) or labels.min(initial=0) < 0:
        raise EvaluationError(
            f"labels: {len(labels)} for {len(reference)} samples; one each, 0 or more, is needed"
        )
    if not ks:
        raise EvaluationError("k: no value is given")
    if min(ks) < 1:
        raise EvaluationError(
            f"k {min(ks)}: allowed is 1 to the number of reference samples, {len(reference)}"
        )
    neighbours = labels[nearest(reference, query, max(ks), exclude, device)]
    result = np.empty((len(query), len(ks)), np.int64)
    n_classes = int(labels.max()) + 1
    for column, k in enumerate(ks):
        votes = np.zeros((len(query), n_classes), np.int32)
        for rank in range(k):
            votes[np.arange(len(query)), neighbours[:, rank]] += 1
        result[:, column] = votes.argmax(axis=1)
    return result


def leave_out(
    groups: npt.NDArray[np.int64] | None, n: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What to exclude when all `n` samples are reference and query at once: the own group, or just the sample."""
    own = np.arange(n) if groups is None else groups
    return own, own
