"""Paired differences against a bootstrap that is written out."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.evaluate.compare import compare, paired, verdict
from pipeline.evaluate.options import KnnOptions
from pipeline.evaluate.result import Judged, Result, Row
from pipeline.metrics.classification import Classification
from stores.errors import EvaluationError

N, GROUPS = 240, 24


def judged(labels: Any, predicted: Any, names: Any, groups: Any) -> Judged:
    found = Classification(np.array(labels), np.array(predicted), 2)
    samples = [(name, str(label), group) for name, label, group in zip(names, labels, groups, strict=True)]
    return Judged(lambda: samples, [(name, None) for name in found.names], found.figures)


def two_encoders(seed: int = 0) -> tuple[npt.NDArray[np.int64], ...]:
    """Labels and predictions of two encoders that err on the same hard groups; the second errs a little more."""
    rng = np.random.default_rng(seed)
    groups = np.arange(N) // (N // GROUPS)
    labels = rng.integers(0, 2, N)
    hard = rng.uniform(0, 0.6, GROUPS)[groups]
    luck = rng.uniform(size=N)
    return (
        labels,
        np.where(luck < hard, 1 - labels, labels),
        np.where(luck < hard + 0.05, 1 - labels, labels),
        groups,
    )


def test_the_same_groups_are_drawn_for_both() -> None:
    labels, good, worse, groups = two_encoders()
    names, texts = [f"t{i}" for i in range(N)], [f"{g:02}" for g in groups]
    estimates, n = paired(
        judged(labels, worse, names, texts),
        judged(labels, good, names, texts),
        np.random.default_rng(5),
        300,
    )
    rng, drawn, alone = np.random.default_rng(5), [], []
    for _ in range(300):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(0, GROUPS, GROUPS)])
        own, reference = (labels[rows] == worse[rows]).mean(), (labels[rows] == good[rows]).mean()
        drawn.append(own - reference)
        alone.append((own, reference))
    assert n == N
    assert estimates[0].value == pytest.approx((labels == worse).mean() - (labels == good).mean())
    assert (estimates[0].low, estimates[0].high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    (low_own, low_reference), (high_own, high_reference) = np.percentile(alone, [2.5, 97.5], axis=0)
    assert high_own - low_reference > 0.5 * (high_reference - low_own)  # the two intervals overlap widely ...
    assert estimates[0].high < 0  # ... and the worse one is worse all the same


def test_samples_are_matched_by_name_and_those_of_one_alone_do_not_count() -> None:
    labels, good, worse, groups = two_encoders(1)
    names, texts = np.array([f"t{i}" for i in range(N)]), np.array([f"{g:02}" for g in groups])
    order = np.random.default_rng(2).permutation(N)[:200]
    own = judged(labels[order], worse[order], names[order], texts[order])
    whole = judged(labels, good, names, texts)
    kept = np.sort(order)
    straight = judged(labels[kept], worse[kept], names[kept], texts[kept])
    same = judged(labels[kept], good[kept], names[kept], texts[kept])
    found, n = paired(own, whole, np.random.default_rng(0), 50)
    expected, _ = paired(straight, same, np.random.default_rng(0), 50)
    assert (n, found) == (200, expected)


def test_rows_have_differences_and_a_verdict() -> None:
    labels, good, _, groups = two_encoders()
    names, texts = [f"t{i}" for i in range(N)], [f"{g:02}" for g in groups]
    own, reference = judged(labels, good, names, texts), judged(labels, good, names, texts)
    result = Result("knn", "", "", N, KnnOptions(), [Row("accuracy", 0.7), Row("other", 1.0)], judged=own)
    compare(result, reference, "teacher", 0.02, 0, 50)
    difference = result.rows[0].difference
    assert difference is not None
    assert (difference.to, difference.value, difference.low, difference.high) == ("teacher", 0, 0, 0)
    assert (difference.verdict, result.rows[1].difference) == ("non-inferior", None)
    compare(result, reference, "teacher", None, 0, 50)
    assert result.rows[0].difference is not None
    assert result.rows[0].difference.verdict == ""
    assert "difference" in result.to_json()["figures"][0]
    assert "difference" not in result.to_json()["figures"][1]


def test_what_cannot_be_compared_is_said() -> None:
    labels, good, _, groups = two_encoders()
    names, texts = [f"t{i}" for i in range(N)], [f"{g:02}" for g in groups]
    own = judged(labels, good, names, texts)

    def nameless() -> list[tuple[str, str, str]]:
        raise EvaluationError("samples have no names")

    for reference, why in (
        (judged(1 - labels, good, names, texts), "sample t0 has label and group"),
        (judged(labels, good, [f"u{i}" for i in range(N)], texts), "no sample in common"),
        (judged(labels, good, ["t0"] * N, texts), "two samples have one name"),
        (Judged(nameless, own.figures, own.statistic), "samples have no names"),
        (Judged(own.samples, [("auc", None)], own.statistic), "it has other figures"),
    ):
        result = Result("knn", "", "", N, KnnOptions(), [Row("accuracy", 0.7)], judged=own)
        compare(result, reference, "teacher", 0.02, 0, 10)
        assert result.rows[0].difference is None
        assert result.notes[0].startswith(f"not compared with teacher: {why}")


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.001, 0.01, 0.02, "better"),
        (0.0, 0.01, 0.02, "non-inferior"),
        (-0.019, 0.01, 0.02, "non-inferior"),
        (-0.02, 0.01, 0.02, "inconclusive"),
        (-0.03, -0.02, 0.02, "inconclusive"),
        (-0.05, -0.021, 0.02, "inferior"),
        (-0.05, -0.021, None, ""),
        (None, None, 0.02, ""),
    ],
)
def test_the_verdict_is_that_of_the_interval(
    low: float | None, high: float | None, margin: float | None, expected: str
) -> None:
    assert verdict(low, high, margin) == expected
