"""One byte a value: what quantisation keeps, what it costs, and what it does with rows that are not there."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stores import compact


def standard_of(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float64)
    return np.stack([np.nanmean(wide, axis=0), np.nanstd(wide, axis=0)]).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.integers(1, 40))
def test_every_value_is_within_half_a_step(seed: int, spread: float, rows: int) -> None:
    random = np.random.default_rng(seed)
    scale = random.uniform(0.1, 1, 16) * spread
    values = (random.normal(size=(rows, 16)) * scale + random.normal(size=16) * spread).astype(np.float16)
    standard = standard_of(values)
    small, scales = compact.quantise(values, standard)
    rebuilt = compact.dequantise(small, scales, standard)
    assert np.abs(small).max() <= 127
    std = np.where(standard[1] > 0, standard[1], 1)
    step = scales[:, None] * std
    largest = np.abs(values.astype(np.float64)).max()
    rounding = largest * 2**-9 + 1e-6  # of float32 arithmetic on large means, and of float16 in the result
    assert (np.abs(rebuilt.astype(np.float64) - values.astype(np.float64)) <= step / 2 + rounding).all()


def test_rows_that_are_not_there_stay_away() -> None:
    values = np.ones((3, 4), np.float16)
    values[1, 2] = np.nan
    small, scales = compact.quantise(values, np.array([[1] * 4, [0] * 4], np.float32))
    assert (small[1] == compact.ABSENT).all()
    assert np.isnan(scales[1])
    rebuilt = compact.dequantise(small, scales, np.array([[1] * 4, [0] * 4], np.float32))
    assert np.isnan(rebuilt[1]).all()
    np.testing.assert_array_equal(rebuilt[[0, 2]], 1)


def test_a_lost_chunk_is_no_feature() -> None:
    """The fill value of the array with a scale that is there: NaN, not the mean."""
    lost = np.full((2, 4), compact.ABSENT, np.int8)
    assert np.isnan(compact.dequantise(lost, np.ones(2, np.float32), np.ones((2, 4), np.float32))).all()


def test_standardising_is_what_keeps_the_error_small() -> None:
    """Features of which a few dimensions are large: plain int8 per row loses more than ten times as much."""
    random = np.random.default_rng(0)
    scale = np.where(np.arange(256) < 4, 40.0, 0.5)
    values = (random.normal(size=(500, 256)) * scale).astype(np.float16)
    standard = standard_of(values)
    plain = np.array([[0] * 256, [1] * 256], np.float32)
    good, bad = (
        compact.relative_error(values[:, 4:], compact.dequantise(*compact.quantise(values, s), s)[:, 4:])
        for s in (standard, plain)
    )
    assert good.mean() < 0.02
    assert bad.mean() > 10 * good.mean()
