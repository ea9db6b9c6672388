"""Training-free k nearest neighbours: majority vote over L2-normalised features, cosine similarity."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import OptionError


def knn_predict(
    reference: npt.NDArray[Any], labels: npt.NDArray[np.int64], query: npt.NDArray[Any], k: int
) -> npt.NDArray[np.int64]:
    """The label that most of the `k` most similar reference samples have; ties go to the smallest label.

    Parameters
    ----------
    reference : (n, d)
    labels : int (n,), 0 or more
    query : (m, d)
    k : int, 1 to n

    Returns
    -------
    int (m,)
    """
    if not 1 <= k <= len(reference):
        raise OptionError(f"k {k}: allowed is 1 to the number of reference samples, {len(reference)}")
    similarity = _unit(query) @ _unit(reference).T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(query), int(labels.max()) + 1), np.int64)
    np.add.at(votes, (np.arange(len(query))[:, None], labels[nearest]), 1)
    return votes.argmax(axis=1)


def _unit(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    if not np.isfinite(wide).all():
        raise OptionError("kNN: a feature is not finite")
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))
