"""Is an encoder as good as another? The paired difference of their figures, with a bootstrap over groups.

Both encoders are judged on the same samples, so their figures rise and fall together from draw to draw: a group that
is hard for one is mostly hard for the other. Whether two intervals overlap says little then, the interval of the
difference says it all. In every replicate the same groups are drawn for both.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.evaluate.result import Difference, Judged, Result, number_or_none
from pipeline.metrics.bootstrap import Estimate, bootstrap
from stores.errors import EvaluationError


def verdict(low: float | None, high: float | None, margin: float | None) -> str:
    """What the 95 % interval of (encoder - reference) shows; more is better in all figures that are compared.

    ``better``: it lies above 0. ``non-inferior``: above minus the margin, so the encoder is at most `margin` worse (a
    one-sided test at 2.5 %). ``inferior``: below minus the margin. ``inconclusive``: it holds minus the margin, and
    more groups are needed. Empty without a margin or an interval.

    >>> [verdict(low, high, 0.02) for low, high in ((0.001, 0.01), (-0.019, 0.01), (-0.03, 0.01), (-0.05, -0.021))]
    ['better', 'non-inferior', 'inconclusive', 'inferior']
    """
    if margin is None or low is None or high is None:
        return ""
    if low > 0:
        return "better"
    if low > -margin:
        return "non-inferior"
    return "inferior" if high < -margin else "inconclusive"


def compare(
    result: Result, reference: Judged, to: str, margin: float | None, seed: int, replicates: int
) -> None:
    """Add to the rows of `result` their differences to the figures of `reference`, and say what was compared.

    Samples that one of the two lacks (a patch that could not be read) do not count in the difference.
    """
    assert result.judged is not None
    own = result.judged
    rng = np.random.default_rng([seed, 4])
    try:
        found, n_samples = paired(own, reference, rng, replicates)
    except EvaluationError as error:
        result.notes.append(f"not compared with {to}: {error}")
        return
    differences = {
        figure: Difference(to, value, low, high, verdict(low, high, margin))
        for figure, (value, low, high) in (
            (figure, tuple(map(number_or_none, (e.value, e.low, e.high))))
            for figure, e in zip(own.figures, found, strict=True)
        )
    }
    result.rows = [
        dataclasses.replace(row, difference=differences.get((row.figure, row.k))) for row in result.rows
    ]
    if n_samples < result.samples:
        result.notes.append(f"compared with {to} on the {n_samples} samples that both have")


def paired(
    own: Judged, reference: Judged, rng: np.random.Generator, replicates: int
) -> tuple[list[Estimate], int]:
    """Estimates of the figures of `own` minus those of `reference`, and the number of samples that both have.

    Raises
    ------
    EvaluationError
        When samples cannot be matched, or have another label or group in the other.
    """
    if list(own.figures) != list(reference.figures):
        raise EvaluationError("it has other figures")
    mine, theirs = _by_name(own), _by_name(reference)
    both = [name for name in mine if name in theirs]
    if not both:
        raise EvaluationError("no sample in common")
    for name in both:
        if mine[name][1:] != theirs[name][1:]:
            raise EvaluationError(
                f"sample {name} has label and group {mine[name][1:]} here and {theirs[name][1:]} there"
            )
    rows_own, rows_reference = (np.array([by_name[name][0] for name in both]) for by_name in (mine, theirs))

    def difference(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        parts = []
        for judged, rows, n in ((own, rows_own, len(mine)), (reference, rows_reference, len(theirs))):
            spread = np.zeros(n)
            spread[rows] = weights
            parts.append(judged.statistic(spread))
        with np.errstate(invalid="ignore"):  # an index that is infinite for both
            return parts[0] - parts[1]

    groups = [mine[name][2] for name in both]
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    return bootstrap(difference, len(both), codes, rng, replicates), len(both)


def _by_name(judged: Judged) -> dict[object, tuple[int, str, str]]:
    samples: Sequence[tuple[object, str, str]] = judged.samples()
    result = {name: (i, label, group) for i, (name, label, group) in enumerate(samples)}
    if len(result) < len(samples):
        raise EvaluationError("two samples have one name")
    return result
