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
