"""int8 features: bounds of the error, absent rows, extremes, and the figures that go into the recipe."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.knn import knn_predict
from stores.format import int8
from stores.format.int8 import ABSENT, Cost, dequantise, neighbour_overlap, quantise, relative_error


def features_like(seed: int, rows: int, dim: int, spread: float) -> npt.NDArray[np.float16]:
    """Dimensions of very different means and scales, as those of transformers; some constant."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, spread, dim)) * (rng.random(dim) > 0.1)
    values = rng.normal(0, 3, dim) + scale * rng.standard_t(4, (rows, dim))
    return np.clip(values, -60000, 60000).astype(np.float16)


def standard_of(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    wide = features.astype(np.float64)
    return np.stack([wide.mean(axis=0), wide.std(axis=0)]).astype(np.float32)


def rebuilt(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    standard = standard_of(features)
    return dequantise(*quantise(features, standard), standard)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(1, 60), st.floats(0, 3))
def test_every_value_is_within_half_a_step(seed: int, rows: int, dim: int, spread: float) -> None:
    features = features_like(seed, rows, dim, spread)
    standard = standard_of(features)
    values, scales = quantise(features, standard)
    assert values.dtype == np.int8
    assert values.min() >= -127
    assert np.isfinite(scales).all()
    wide = features.astype(np.float64)
    mean, std = standard.astype(np.float64)
    step = scales[:, None] * np.where(std > 0, std, 1)
    # half a step, the rounding to float16, and float32 arithmetic on mean and product
    bound = 0.5 * step + np.abs(wide) * 2**-10 + 2**-24 + (np.abs(mean) + 127 * step) * 2**-21
    assert (np.abs(dequantise(values, scales, standard).astype(np.float64) - wide) <= bound).all()


@given(st.integers(0, 1000), st.sets(st.integers(0, 19), max_size=20))
def test_absent_rows_stay_absent_and_change_no_other(seed: int, missing: set[int]) -> None:
    features = features_like(seed, 20, 8, 1.0)
    standard = standard_of(features)
    whole, _ = quantise(features, standard)
    holes = features.copy()
    holes[list(missing), seed % 8] = np.nan
    values, scales = quantise(holes, standard)
    back = dequantise(values, scales, standard)
    present = [i for i in range(20) if i not in missing]
    assert np.isnan(back[list(missing)]).all()
    assert (values[list(missing)] == ABSENT).all()
    np.testing.assert_array_equal(values[present], whole[present])


def test_a_lost_scale_or_chunk_is_nan() -> None:
    features = features_like(0, 5, 8, 1.0)
    standard = standard_of(features)
    values, scales = quantise(features, standard)
    assert np.isnan(dequantise(values, np.full_like(scales, np.nan), standard)).all()
    assert np.isnan(dequantise(np.full_like(values, ABSENT), scales, standard)).all()
    assert not np.isfinite(dequantise(values, np.full_like(scales, np.inf), standard)).any()


def test_constant_dimensions_come_back_exactly() -> None:
    features = features_like(1, 50, 16, 1.0)
    features[:, ::2] = np.float16(1000.5)
    np.testing.assert_array_equal(rebuilt(features)[:, ::2], features[:, ::2])
    one_row = features[:1]
    np.testing.assert_array_equal(rebuilt(one_row), one_row)


def test_the_largest_float16_stays_finite() -> None:
    features = np.full((40, 4), -65504, np.float16)
    features[::3] = 65504
    features[5, :2] = 0
    features[:, 3] = np.random.default_rng(0).normal(size=40)
    back = rebuilt(features)
    assert np.isfinite(back).all()
    assert np.abs(back[::3, :3].astype(np.float64) - 65504).max() < 65504 * 0.01


def test_without_the_statistics_small_dimensions_lose_their_digits() -> None:
    """Why the copy carries them: two dimensions that are far larger than the others set the step of every row."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(500, 256))
    wide[:, :2] = 60 + rng.normal(size=(500, 2))
    features = wide.astype(np.float16)
    plain = np.stack([np.zeros(256), np.ones(256)]).astype(np.float32)
    without = dequantise(*quantise(features, plain), plain)
    rest = (features[:, 2:], without[:, 2:], rebuilt(features)[:, 2:])
    assert relative_error(rest[0], rest[1]).mean() > 0.1
    assert relative_error(rest[0], rest[2]).mean() < 0.015


def test_relative_error_is_that_of_the_definition() -> None:
    features = features_like(3, 30, 12, 1.0)
    other = rebuilt(features)
    expected = [
        np.linalg.norm(a.astype(float) - b.astype(float)) / np.linalg.norm(a.astype(float))
        for a, b in zip(features, other, strict=True)
    ]
    np.testing.assert_allclose(relative_error(features, other), expected, rtol=1e-12)


def reference_overlap(before: npt.NDArray[Any], after: npt.NDArray[Any], k: int) -> float:
    kept = []
    for i in range(len(before)):
        sets = []
        for x in (before.astype(np.float64), after.astype(np.float64)):
            cosine = [
                -2.0 if j == i else float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]))
                for j in range(len(x))
            ]
            sets.append(set(np.argsort(cosine)[::-1][:k].tolist()))
        kept.append(len(sets[0] & sets[1]) / k)
    return float(np.mean(kept))


def test_neighbour_overlap() -> None:
    before = features_like(4, 60, 12, 0.5)
    noise = np.random.default_rng(0).normal(size=before.shape)
    after = (before.astype(np.float64) + 0.3 * noise).astype(np.float16)
    assert neighbour_overlap(before, before) == 1.0
    overlap = neighbour_overlap(before, after)
    assert overlap == pytest.approx(reference_overlap(before, after, 10))
    assert overlap is not None
    assert 0.2 < overlap < 0.95
    assert neighbour_overlap(before[:10], after[:10]) is None


def test_neighbours_are_those_of_the_knn_protocol() -> None:
    """The same similarity as `evaluate knn`: with k = 1 its label names the nearest row."""
    features = features_like(5, 40, 12, 0.5)
    nearest = int8._nearest(features, 1)[:, 0]
    for i in range(40):
        others = np.delete(np.arange(40), i)
        (label,) = knn_predict(features[others], others, features[i : i + 1], 1)
        assert label == nearest[i]


@pytest.mark.parametrize("cuts", [[500], [123, 200, 77, 100], [1] * 500])
def test_cost_does_not_depend_on_how_rows_come(cuts: list[int]) -> None:
    features = features_like(6, 500, 16, 1.0)
    other = rebuilt(features)
    cost = Cost(500)
    at = 0
    for size in cuts:
        cost.add(0, features[at : at + size], other[at : at + size])
        cost.add(1, features[at : at + size], features[at : at + size])  # another seed without error
        cost.add(2, features[:0], other[:0])
        at += size
    errors = relative_error(features, other)
    found = cost.to_json()
    assert found["kind"] == "int8"
    assert found["relative_error"] == pytest.approx(errors.mean() / 2, rel=5e-3)
    assert found["max_relative_error"] == pytest.approx(errors.max(), rel=5e-3)
    assert found["nn10_overlap"] == pytest.approx(neighbour_overlap(features, other), abs=1e-4)
    assert found["nn10_rows"] == 500
    assert found["rows"] == 1000


def test_the_sample_is_spread_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "SAMPLE_ROWS", 20)
    features = features_like(7, 100, 16, 1.0)
    cost = Cost(100)
    for start in range(0, 100, 10):
        cost.add(0, features[start : start + 10], features[start : start + 10])
    chosen = np.concatenate([before for before, _ in cost._sample])
    np.testing.assert_array_equal(chosen, features[np.linspace(0, 99, 20).round().astype(int)])


def test_too_few_rows_for_neighbours() -> None:
    features = features_like(8, 5, 4, 1.0)
    cost = Cost(5)
    cost.add(0, features, rebuilt(features))
    assert set(cost.to_json()) == {"kind", "rows", "relative_error", "max_relative_error"}
    assert Cost(0).to_json()["relative_error"] == 0.0
