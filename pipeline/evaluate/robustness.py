"""Robustness index: do neighbours share the biology, or the centre that the sample came from?

Of the k nearest neighbours of every sample, by L2-normalised Euclidean distance (the order of cosine similarity),
with those of its own slide left out, count by same or other class and same or other centre: SS, SO, OS, OO.

- version 1 (de Jong et al., arXiv 2501.18055, used by G2L): ``(SS + SO) / (SS + OS)``; above 1 is good, unbounded.
- version 2 (PathoROB): ``SO / (SO + OS)``, from 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.bootstrap import REPLICATES, Estimate, Statistic, bootstrap
from pipeline.metrics.checks import require_classes
from pipeline.metrics.neighbours import nearest
from stores.errors import EvaluationError


@dataclass(frozen=True, slots=True)
class Robustness:
    """The index at one k."""

    k: int
    v1: Estimate
    """Infinite when no neighbour is of the same centre."""
    v2: Estimate
    """NaN when no neighbour agrees in exactly one of class and centre."""
    counts: tuple[int, int, int, int]
    """SS, SO, OS, OO."""
    statistic: Statistic = field(compare=False, repr=False)
    """Both indices from weights of the samples that were looked at."""
    rows: npt.NDArray[np.int64] = field(compare=False, repr=False)
    """Those samples."""


def robustness(
    x: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    sites: npt.NDArray[np.int64],
    slides: npt.NDArray[np.int64] | None,
    ks: Sequence[int],
    rng: np.random.Generator,
    queries: int | None = None,
    replicates: int = REPLICATES,
    device: str = "cpu",
    subsets: npt.NDArray[np.int64] | None = None,
) -> list[Robustness]:
    """The index for every k of `ks`, with intervals over slides (over samples without them).

    Parameters
    ----------
    x : (n, d)
    labels, sites : int (n,)
        Class and centre.
    slides : int (n,), optional
        Neighbours from the same slide do not count. Without slides, only the sample itself does not count.
    queries
        How many samples, drawn by `rng`, to look at the neighbours of. None takes all.
    subsets : int (n,), optional
        Only samples of the same subset are neighbours; the counts of all subsets are added up.

    Raises
    ------
    EvaluationError
        When there is one class or one centre only, or a sample has too few neighbours.
    """
    if not len(x) == len(labels) == len(sites):
        raise EvaluationError(
            f"{len(x)} samples, {len(labels)} labels, {len(sites)} sites; one each is needed"
        )
    require_classes("label", labels)
    require_classes("site", sites)
    if not ks:
        raise EvaluationError("k: none is given")
    chosen = np.arange(len(x))
    if queries is not None and queries < len(x):
        chosen = np.sort(rng.permutation(len(x))[:queries])
    own = np.arange(len(x)) if slides is None else slides
    found = np.empty((len(chosen), max(ks)), np.int64)
    part_of = np.zeros(len(x), np.int64) if subsets is None else subsets
    for part in np.unique(part_of):
        rows, asking = np.flatnonzero(part_of == part), np.flatnonzero(part_of[chosen] == part)
        query = chosen[asking]
        if len(query):
            reference = x if subsets is None else x[rows]
            found[asking] = rows[nearest(reference, x[query], max(ks), (own[rows], own[query]), device)]
    same_label = labels[found] == labels[chosen, None]
    same_site = sites[found] == sites[chosen, None]
    kinds = np.stack(
        [same_label & same_site, same_label & ~same_site, ~same_label & same_site, ~same_label & ~same_site]
    )
    groups = None if slides is None else slides[chosen]
    return [
        _at(k, chosen, kinds[:, :, :k].sum(axis=2).astype(np.float64), groups, rng, replicates) for k in ks
    ]


def _at(
    k: int,
    rows: npt.NDArray[np.int64],
    counts: npt.NDArray[np.float64],
    groups: npt.NDArray[np.int64] | None,
    rng: np.random.Generator,
    replicates: int,
) -> Robustness:
    def indices(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        ss, so, os, _ = counts @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.array([np.divide(ss + so, ss + os), np.divide(so, so + os)])

    v1, v2 = bootstrap(indices, counts.shape[1], groups, rng, replicates)
    ss, so, os, oo = (int(total) for total in counts.sum(axis=1))
    return Robustness(k, v1, v2, (ss, so, os, oo), indices, rows)
