"""Each of the two norms in which a feature is compared sees what the other does not."""

import numpy as np
import pytest

from pipeline.verify.tolerance import distance


def test_one_value_that_was_changed_shows_in_the_maximum_norm() -> None:
    old = np.ones((2, 1536), np.float16)
    new = old.astype(np.float32)
    new[1, 7] = 1.5
    cosine, error = distance(old, new)
    assert error == pytest.approx(0.5)
    assert cosine > 0.999


def test_many_values_that_were_changed_a_little_show_in_the_euclidean_norm() -> None:
    old = np.ones((1, 1024), np.float16)
    old[0, 0] = 32  # by which the maximum norm divides
    new = old.astype(np.float32)
    new[0, 1:] *= 0.5
    assert distance(old, new)[1] == pytest.approx(np.sqrt(1023 * 0.25 / (1023 + 32**2)))


def test_a_feature_that_was_scaled_has_the_same_direction() -> None:
    old = np.ones((1, 8), np.float16)
    assert distance(old, old.astype(np.float32) * np.float32(0.05)) == pytest.approx((1.0, 0.95))
