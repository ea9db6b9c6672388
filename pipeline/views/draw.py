"""Views: what a seed draws for a patch, and the pixels that follow from it.

A view is a pure function of the patch's pixels and of `ViewParams`, and those of (policy, slide fingerprint,
coordinate, seed). Both stages call `draw` and `render`; the manifest keeps the parameters and `view_crc32`.
A draw uses nothing but integers and the raw 64-bit words of Philox, so that it can be rebuilt in any
language: docs/concepts/views.md is the specification. Pixel arithmetic lives in pipeline/views/operations.py.
"""

import hashlib
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from pipeline.views import operations
from pipeline.views.policy import Policy
from stores.errors import OptionError

VIEWS_VERSION = 1  # of the draws and of the arithmetic together; part of every key
RENDERING = f"views-{VIEWS_VERSION}"  # its name in the recipe
TOKEN_RULE = "tokens-1"  # of `draw_tokens`, in the recipe
JITTER_ORDERS = tuple(permutations(("brightness", "contrast", "saturation", "hue")))  # lexicographic

_WORDS = 16  # four Philox blocks; one word per drawn parameter


@dataclass(frozen=True, slots=True)
class ViewParams:
    """What a seed drew for a patch, in the order of the draws; also columns of the manifest.

    The floats are multiples of 2**-16, so they are exact in float32. They are kept when their flag is off.
    """

    crop_x_px: int
    crop_y_px: int
    hflip: bool
    vflip: bool
    jitter: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: int
    """Index into `JITTER_ORDERS`."""
    blur: bool
    sigma: float
    stain: bool
    stain_h: float
    stain_e: float
    stain_d: float


def draw(policy: Policy, fingerprint: str, x_px0: int, y_px0: int, seed: int) -> ViewParams:
    """Parameters of the view of the patch at (`x_px0`, `y_px0`) of the slide with `fingerprint`.

    Seed 0 is the centre crop and nothing else. Any other seed takes one word of Philox for each parameter,
    also for those that a flag or the policy switches off: changing one probability moves no other draw.
    """
    seed = operator.index(seed)
    if seed < 0:
        raise OptionError(f"seed {seed} is negative; use 0 for the centre crop, 1 and up for drawn views")
    centre = (policy.patch_px - policy.crop_px) // 2
    if seed == 0:
        neutral = (False, 1.0, 1.0, 1.0, 0.0, 0, False, 0.0, False, 1.0, 1.0, 1.0)
        return ViewParams(centre, centre, False, False, *neutral)
    words = _words(policy, fingerprint, operator.index(x_px0), operator.index(y_px0), seed)
    offsets = policy.patch_px - policy.crop_px + 1
    crop_x, crop_y = _index(words, offsets), _index(words, offsets)
    return ViewParams(  # arguments are evaluated from top to bottom: the order of the draws
        crop_x_px=crop_x if policy.random_crop else centre,
        crop_y_px=crop_y if policy.random_crop else centre,
        hflip=_chance(words, policy.hflip_p),
        vflip=_chance(words, policy.vflip_p),
        jitter=_chance(words, policy.jitter_p),
        brightness=_uniform(words, 1 - policy.brightness, 1 + policy.brightness),
        contrast=_uniform(words, 1 - policy.contrast, 1 + policy.contrast),
        saturation=_uniform(words, 1 - policy.saturation, 1 + policy.saturation),
        hue=_uniform(words, -policy.hue, policy.hue),
        order=_index(words, len(JITTER_ORDERS)),
        blur=_chance(words, policy.blur_p),
        sigma=_uniform(words, policy.sigma_min, policy.sigma_max),
        stain=_chance(words, policy.stain_p),
        stain_h=_uniform(words, 1 - policy.stain, 1 + policy.stain),
        stain_e=_uniform(words, 1 - policy.stain, 1 + policy.stain),
        stain_d=_uniform(words, 1 - policy.stain, 1 + policy.stain),
    )


def draw_tokens(
    policy: Policy, fingerprint: str, x_px0: int, y_px0: int, seed: int, count: int, total: int
) -> npt.NDArray[np.int32]:
    """Positions of `count` of the `total` patch tokens of a view, int32 (count,), ascending; all when they are equal.

    The words of the view's key that follow those of its parameters, one for each token: the `count` smallest are kept.
    """
    raw = _philox(policy, fingerprint, operator.index(x_px0), operator.index(y_px0), operator.index(seed))
    words = raw.random_raw(_WORDS + total)[_WORDS:]
    return np.sort(np.argsort(words, kind="stable")[:count]).astype(np.int32)


def _words(policy: Policy, fingerprint: str, x_px0: int, y_px0: int, seed: int) -> Iterator[int]:
    """The upper 53 bits of each word."""
    philox = _philox(policy, fingerprint, x_px0, y_px0, seed)
    return (word >> 11 for word in philox.random_raw(_WORDS).tolist())


def _philox(policy: Policy, fingerprint: str, x_px0: int, y_px0: int, seed: int) -> np.random.Philox:
    """The view's generator. The text is unambiguous: its last four lines are numbers and hex."""
    text = f"g2l view {VIEWS_VERSION}\n{fingerprint}\n{x_px0}\n{y_px0}\n{seed}\n{policy.digest()}"
    key = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64))


def _index(words: Iterator[int], count: int) -> int:
    return next(words) * count >> 53


def _chance(words: Iterator[int], probability: float) -> bool:
    return next(words) < math.ldexp(probability, 53)


def _uniform(words: Iterator[int], low: float, high: float) -> float:
    """Uniform over the multiples of 2**-16 from `low` to `high`, each rounded to such a multiple first."""
    first, last = operations.to_fixed(low), operations.to_fixed(high)
    return (first + (next(words) * (last - first + 1) >> 53)) / operations.ONE
