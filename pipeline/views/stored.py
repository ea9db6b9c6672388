"""Drawn parameters as a store has them: whether the policy can have drawn them at all. Needs neither slide nor key."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from pipeline.views import operations
from pipeline.views.draw import JITTER_ORDERS, draw
from pipeline.views.policy import Policy


def impossible(
    policy: Policy, seeds: npt.NDArray[np.int16], drawn: Mapping[str, npt.NDArray[np.generic]]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """(name, mask of views) for each parameter that is not within what the policy draws.

    Parameters
    ----------
    seeds : int16 (n,)
    drawn
        Columns of a commit record, (n,) each, by the names of `ViewParams`.
    """
    neutral = draw(policy, "", 0, 0, 0)
    centred = seeds == 0
    for name, (least, most) in _ranges(policy).items():
        found = drawn[name].astype(np.float64)
        wrong = ~((found >= least) & (found <= most))  # also where it is NaN
        steps = np.where(wrong, 0.0, found) * operations.ONE
        wrong |= steps != np.rint(steps)  # parameters are multiples of 2**-16
        at_centre = float(getattr(neutral, name))
        wrong = np.where(centred, found != at_centre, wrong)
        if wrong.any():
            yield name, wrong


def _ranges(policy: Policy) -> dict[str, tuple[float, float]]:
    """Least and most of each parameter of a drawn view."""
    last = policy.patch_px - policy.crop_px
    crop = (0, last) if policy.random_crop else (last // 2, last // 2)
    found: dict[str, tuple[float, float]] = {"crop_x_px": crop, "crop_y_px": crop}
    for name in ("hflip", "vflip", "jitter", "blur", "stain"):
        p = getattr(policy, f"{name}_p")
        found[name] = (float(p == 1), float(p > 0))
    for name in ("brightness", "contrast", "saturation"):
        half = getattr(policy, name)
        found[name] = _fixed(1 - half, 1 + half)
    found["hue"] = _fixed(-policy.hue, policy.hue)
    found["order"] = (0, len(JITTER_ORDERS) - 1)
    found["sigma"] = _fixed(policy.sigma_min, policy.sigma_max)
    for name in ("stain_h", "stain_e", "stain_d"):
        found[name] = _fixed(1 - policy.stain, 1 + policy.stain)
    return found


def _fixed(low: float, high: float) -> tuple[float, float]:
    return operations.to_fixed(low) / operations.ONE, operations.to_fixed(high) / operations.ONE
