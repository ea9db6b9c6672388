"""From the results of runs to figures with intervals.

The three runs of an arm leave out one fold each, so that together they judge every tile once, each by a student that
never saw its image. An interval is a bootstrap over images, the same images for everything that is compared: it is
paired, and it holds for these three runs together. How far runs differ among themselves is the range beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.bootstrap import Estimate, bootstrap

Runs = Sequence[Mapping[str, Any]]
"""Results of one arm, a fold each."""


@dataclass(frozen=True)
class Compared:
    """One figure of an arm on one labelled set."""

    accuracy: Estimate
    gain: Estimate
    """Over the untrained student."""
    closed: Estimate
    """``(student - untrained) / (teacher - untrained)``."""


def compare(arm: Runs, untrained: Runs, teacher: Runs, of: str, what: str) -> Compared:
    """`what` (``knn``, ``knn_drawn`` or ``linear``) on the set `of`, against the untrained student and the teacher."""
    images = [image for run in arm for image in run[of]["image"]]
    groups = np.unique(images, return_inverse=True)[1].astype(np.int64)
    for other in (untrained, teacher):
        if [image for run in other for image in run[of]["image"]] != images:
            raise ValueError(f"{of}: the runs that are compared did not judge the same tiles")
    right = np.stack([_joined(runs, of, what) for runs in (arm, untrained, teacher)])

    def statistic(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        own, start, goal = right @ weights / weights.sum()
        return np.array([own, own - start, (own - start) / (goal - start) if goal > start else np.nan])

    return Compared(*bootstrap(statistic, len(images), groups, np.random.default_rng(0), 2000))


def difference(arm: Runs, other: Runs, of: str, what: str) -> Estimate:
    """Paired difference of two arms."""
    return compare(arm, other, other, of, what).gain


def overall(arm: Runs, other: Runs | None, sets: Sequence[str], whats: Sequence[str]) -> Estimate:
    """Mean accuracy over labelled sets and ways to judge, each counting alike; less that of `other` where it is given.

    Images are drawn from all sets together, the same for both.
    """
    right, groups, members = [], [], []
    for of in sets:
        images = [image for run in arm for image in run[of]["image"]]
        if other is not None and [image for run in other for image in run[of]["image"]] != images:
            raise ValueError(f"{of}: the runs that are compared did not judge the same tiles")
        own = np.mean([_joined(arm, of, what) for what in whats], axis=0)
        less = 0.0 if other is None else np.mean([_joined(other, of, what) for what in whats], axis=0)
        right.append(own - less)
        groups += [f"{of} {image}" for image in images]
        members += [of] * len(images)
    values_, of_set = np.concatenate(right), np.array(members)

    def statistic(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        means = [
            (values_ * weights)[of_set == of].sum() / max(weights[of_set == of].sum(), 1e-12) for of in sets
        ]
        return np.array([np.mean(means)])

    index = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    return bootstrap(statistic, len(values_), index, np.random.default_rng(0), 2000)[0]


def pooled(arms: Sequence[Runs]) -> list[dict[str, Any]]:
    """The mean over arms, run by run and tile by tile: what one gets who does not know which arm to take."""
    return [_mean_of(list(of_fold)) for of_fold in zip(*arms, strict=True)]


def _mean_of(found: Sequence[Any]) -> Any:
    first = found[0]
    if isinstance(first, Mapping):
        return {key: _mean_of([one[key] for one in found]) for key in first}
    if isinstance(first, list) and first and isinstance(first[0], float | int):
        return np.mean(found, axis=0).tolist()
    return float(np.mean(found)) if isinstance(first, float | int) else first


def _joined(runs: Runs, of: str, what: str) -> npt.NDArray[np.float64]:
    return np.concatenate([np.asarray(run[of][what], np.float64) for run in runs])


def values(runs: Runs, what: str) -> list[float]:
    """A figure that a run has once (``cka``, ``cka_unbiased``, ``cosine``, ``same``)."""
    return [float(run[what]) for run in runs]


def text(estimate: Estimate, signed: bool = False) -> str:
    """``0.61 (0.55 to 0.67)``."""
    form = "+.2f" if signed else ".2f"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def ranged(found: Sequence[float]) -> str:
    """``0.61 (0.60 to 0.64)``: median, smallest and largest of the runs."""
    return f"{np.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
