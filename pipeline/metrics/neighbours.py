"""The nearest neighbours of embeddings by cosine similarity, exact and in bounded memory.

A pass in float32, block against block, keeps more candidates than are needed. Their similarities are computed again in
float64, and these decide. Similarities that agree to 12 decimals are a tie, and the sample with the lower index wins.
Where ties or near ties reach beyond the candidates, a pass in float64 over all samples decides. So the result does not
depend on blocks, threads or devices.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.metrics.checks import require_features
from stores.errors import EvaluationError

DECIMALS = 12
_SPARE = 32
_ERROR = 4e-6
"""More than the float32 error of a similarity: at most 5e-7 among 3,000 samples of 1,536 and of 2,560 numbers."""
_QUERIES, _REFERENCES = 1024, 32768
_QUERIES_HELD = 16384


def nearest(
    reference: npt.NDArray[Any],
    query: npt.NDArray[Any],
    k: int,
    exclude: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None,
    device: str = "cpu",
) -> npt.NDArray[np.int64]:
    """Indices of the `k` most similar reference samples of every query, most similar first.

    Parameters
    ----------
    reference : (n, d)
    query : (m, d)
    k : int, 1 to n
    exclude : int (n,), int (m,), optional
        Groups of reference and query: no neighbour is taken from a query's own group.
    device
        Where the float32 pass runs.

    Returns
    -------
    int64 (m, k)

    Raises
    ------
    EvaluationError
        When a value is not finite, or a query has fewer than `k` samples outside its group.
    """
    require_features("reference", reference)
    if query is not reference:
        require_features("query", query)
    if reference.shape[1] != query.shape[1]:
        raise EvaluationError(
            f"queries have {query.shape[1]} numbers, reference samples {reference.shape[1]}"
        )
    if not 1 <= k <= len(reference):
        raise EvaluationError(f"k {k}: allowed is 1 to the number of reference samples, {len(reference)}")
    _require_enough(len(reference), k, exclude)
    result = np.empty((len(query), k), np.int64)
    for start in range(0, len(query), _QUERIES_HELD):
        part = slice(start, min(start + _QUERIES_HELD, len(query)))
        groups = None if exclude is None else (exclude[0], exclude[1][part])
        result[part] = _nearest(reference, query[part], k, groups, device)
    return result


def _require_enough(
    n: int, k: int, exclude: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None
) -> None:
    if exclude is None:
        return
    groups, counts = np.unique(exclude[0], return_counts=True)
    place = np.searchsorted(groups, exclude[1]).clip(max=len(groups) - 1)
    left = n - np.where(groups[place] == exclude[1], counts[place], 0)
    if left.min() < k:
        worst = int(left.argmin())
        raise EvaluationError(
            f"k {k}: query {worst} has only {int(left[worst])} samples outside its own group; use a smaller k"
        )


def _nearest(
    reference: npt.NDArray[Any],
    query: npt.NDArray[Any],
    k: int,
    exclude: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None,
    device: str,
) -> npt.NDArray[np.int64]:
    n_candidates = min(k + _SPARE, len(reference))
    rough, candidates = _candidates(reference, query, n_candidates, exclude, device)
    similarity = _similarity(reference, query, candidates)
    similarity[np.isneginf(rough)] = -np.inf  # of the own group
    order = np.lexsort((candidates, -similarity), axis=1)[:, :k]
    result = np.take_along_axis(candidates, order, axis=1)
    if n_candidates < len(reference):
        kth = np.take_along_axis(similarity, order[:, -1:], axis=1)[:, 0]
        open_ = np.flatnonzero(kth <= rough.min(axis=1) + 2 * _ERROR)
        if len(open_):
            groups = None if exclude is None else (exclude[0], exclude[1][open_])
            result[open_] = _by_float64(reference, query[open_], k, groups)
    return result


def _candidates(
    reference: npt.NDArray[Any],
    query: npt.NDArray[Any],
    n_candidates: int,
    exclude: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None,
    device: str,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The most similar samples in float32, in no certain order: similarity and index, each (m, n_candidates)."""
    where = torch.device(device)
    queries = torch.from_numpy(_unit(query, np.float32)).to(where)
    best = torch.full((len(query), n_candidates), -torch.inf, device=where)
    index = torch.zeros((len(query), n_candidates), dtype=torch.int64, device=where)
    for start in range(0, len(reference), _REFERENCES):
        block = torch.from_numpy(_unit(reference[start : start + _REFERENCES], np.float32)).to(where)
        of_block = (
            None if exclude is None else torch.from_numpy(exclude[0][start : start + _REFERENCES]).to(where)
        )
        for first in range(0, len(query), _QUERIES):
            part = slice(first, first + _QUERIES)
            found = queries[part] @ block.T
            if exclude is not None and of_block is not None:
                own = torch.from_numpy(exclude[1][part]).to(where)
                found.masked_fill_(own[:, None] == of_block[None, :], -torch.inf)
            value, place = found.topk(min(n_candidates, found.shape[1]), sorted=False)
            values = torch.cat([best[part], value], dim=1)
            places = torch.cat([index[part], place + start], dim=1)
            best[part], kept = values.topk(n_candidates, sorted=False)
            index[part] = places.gather(1, kept)
    return best.cpu().numpy(), index.cpu().numpy()


def _similarity(
    reference: npt.NDArray[Any], query: npt.NDArray[Any], candidates: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Cosine similarity of every query to its candidates, in float64, rounded."""
    result = np.empty(candidates.shape)
    step = max(1, (32 << 20) // (candidates.shape[1] * reference.shape[1] * 8))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        chosen = _unit(reference[candidates[part].reshape(-1)], np.float64)
        chosen = chosen.reshape(*candidates[part].shape, -1)
        # a sum whose order depends on its length alone: equal embeddings have equal similarities
        result[part] = (chosen * _unit(query[part], np.float64)[:, None, :]).sum(axis=2)
    return result.round(DECIMALS)


def _by_float64(
    reference: npt.NDArray[Any],
    query: npt.NDArray[Any],
    k: int,
    exclude: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None,
) -> npt.NDArray[np.int64]:
    """The nearest samples by a pass over all of them in float64."""
    result = np.empty((len(query), k), np.int64)
    for first in range(0, len(query), _QUERIES):
        part = slice(first, first + _QUERIES)
        queries = _unit(query[part], np.float64)
        best, index = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
        for start in range(0, len(reference), _REFERENCES // 2):
            rows = slice(start, start + _REFERENCES // 2)
            found = (queries @ _unit(reference[rows], np.float64).T).round(DECIMALS)
            if exclude is not None:
                found[exclude[1][part][:, None] == exclude[0][rows][None, :]] = -np.inf
            here = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
            best, index = _largest(
                np.concatenate([best, found], axis=1), np.concatenate([index, here], axis=1), k
            )
        order = np.lexsort((index, -best), axis=1)
        result[part] = np.take_along_axis(index, order, axis=1)
    return result


def _largest(
    values: npt.NDArray[np.float64], index: npt.NDArray[np.int64], k: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The `k` largest of every row, the first ones of ties, in their order."""
    if values.shape[1] <= k:
        return values, index
    kth = np.partition(values, values.shape[1] - k, axis=1)[:, -k, None]
    above, tied = values > kth, values == kth
    wanted = above | (tied & (tied.cumsum(axis=1) <= k - above.sum(axis=1, keepdims=True)))
    return values[wanted].reshape(-1, k), index[wanted].reshape(-1, k)


def _unit(x: npt.NDArray[Any], dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
    """Rows scaled to length one; a row of zeros stays zero."""
    wide = x.astype(dtype)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(dtype).tiny)
    return wide
