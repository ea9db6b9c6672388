"""The robustness index against its definition, sample by sample."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.robustness import robustness
from stores.errors import EvaluationError


def naive_counts(
    x: npt.NDArray[np.float64], labels: Sequence[int], sites: Sequence[int], slides: Sequence[int], k: int
) -> tuple[int, int, int, int]:
    """SS, SO, OS, OO by Euclidean distance of normalised embeddings; a tie goes to the lower index."""
    unit = [row / max(np.sqrt((row * row).sum()), 1e-300) for row in x]
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for i, own in enumerate(unit):
        distances = [
            (round(1 - ((own - other) ** 2).sum() / 2, 12) * -1, j)
            for j, other in enumerate(unit)
            if slides[j] != slides[i]
        ]
        for _, j in sorted(distances)[:k]:
            counts[labels[i] == labels[j], sites[i] == sites[j]] += 1
    return counts[True, True], counts[True, False], counts[False, True], counts[False, False]


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 40), st.integers(0, 999), st.booleans())
def test_counts_and_indices_equal_their_definition(n: int, seed: int, own_slides: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    labels, sites = rng.integers(0, 2, n), rng.integers(0, 2, n)
    labels[:2], sites[:2] = [0, 1], [0, 1]
    slides = np.arange(n) // 2 if own_slides else np.arange(n)
    ks = [1, 3, 5]
    found = robustness(x, labels, sites, slides if own_slides else None, ks, rng, replicates=20)
    for k, result in zip(ks, found, strict=True):
        ss, so, os, oo = naive_counts(x, labels.tolist(), sites.tolist(), slides.tolist(), k)
        assert (result.k, result.counts) == (k, (ss, so, os, oo))
        assert sum(result.counts) == n * k
        if ss + os:
            assert result.v1.value == pytest.approx((ss + so) / (ss + os))
        if so + os:
            assert result.v2.value == pytest.approx(so / (so + os))
        else:
            assert np.isnan(result.v2.value)


def clusters(by: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.eye(4)[by] + rng.normal(size=(len(by), 4)) / 20


def test_embeddings_of_biology_are_robust_and_embeddings_of_the_centre_are_not() -> None:
    rng = np.random.default_rng(0)
    labels, sites = np.repeat([0, 1], 40), np.tile([0, 1], 40)
    (good,) = robustness(clusters(labels, rng), labels, sites, None, [5], rng)
    (bad,) = robustness(clusters(sites, rng), labels, sites, None, [5], rng)
    assert (good.v2.value, bad.v2.value) == (1, 0)
    assert good.v1.value > 1.5 > 0.7 > bad.v1.value
    assert good.v1.low <= good.v1.value <= good.v1.high


def test_neighbours_of_the_own_slide_do_not_count() -> None:
    """Every slide is a cluster of its own, of one class and centre."""
    rng = np.random.default_rng(0)
    slides = np.repeat(np.arange(4), 10)
    labels, sites = slides % 2, slides // 2
    (with_own,) = robustness(clusters(slides, rng), labels, sites, None, [5], rng)
    (without,) = robustness(clusters(slides, rng), labels, sites, slides, [5], rng)
    assert with_own.counts == (200, 0, 0, 0)
    assert without.counts[0] == 0


def test_a_sample_of_queries_has_its_neighbours_among_all() -> None:
    rng = np.random.default_rng(0)
    labels, sites = np.repeat([0, 1], 40), np.tile([0, 1], 40)
    x = clusters(labels, rng)
    (some,) = robustness(x, labels, sites, None, [5], np.random.default_rng(1), queries=10)
    assert sum(some.counts) == 50
    assert some.v2.value == 1
    again = robustness(x, labels, sites, None, [5], np.random.default_rng(1), queries=10)
    assert again == [some]


@pytest.mark.parametrize(
    ("labels", "sites", "k", "value", "message"),
    [
        ([0, 0, 0, 0], [0, 1, 0, 1], 1, 1.0, "label: 1 different value; at least 2"),
        ([0, 1, 0, 1], [0, 0, 0, 0], 1, 1.0, "site: 1 different value; at least 2"),
        ([0, 1, 0, 1], [0, 1, 0, 1], 4, 1.0, "k 4: query 0 has only 3 samples outside"),
        ([0, 1, 0, 1], [0, 1, 0, 1], 1, np.nan, "not finite"),
        ([0, 1], [0, 1, 0, 1], 1, 1.0, "4 samples, 2 labels, 4 sites"),
    ],
)
def test_what_has_no_index(labels: list[int], sites: list[int], k: int, value: float, message: str) -> None:
    x = np.eye(4) * value
    with pytest.raises(EvaluationError, match=message):
        robustness(x, np.array(labels), np.array(sites), None, [k], np.random.default_rng(0))
