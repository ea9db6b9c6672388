"""Views: draws against an independent Philox, golden values, the same bits everywhere, policies and errors."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, fields, replace
from fractions import Fraction
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.views import operations
from pipeline.views.draw import JITTER_ORDERS, ViewParams, draw
from pipeline.views.operations import Image
from pipeline.views.policy import POLICIES, Policy
from pipeline.views.render import render, view_crc32
from stores.errors import OptionError
from tests.tools.settings import ROOT

FINGERPRINT = "3f" * 32
G2L = POLICIES["g2l"]
EVERYTHING = Policy.from_json(  # every field has a value of its own
    {"name": "everything", "hflip_p": 0.5, "vflip_p": 0.25, "jitter_p": 1.0, "blur_p": 0.9, "stain_p": 0.8}
    | {"brightness": 0.2, "contrast": 0.4, "saturation": 1.0, "hue": 0.5, "sigma_min": 0.3, "sigma_max": 1.7}
    | {"stain": 0.3}
)
NEUTRAL = draw(G2L, FINGERPRINT, 0, 0, 0)


def synthetic_patch(px: int = 256) -> Image:
    """Pink ground with dark nuclei and white gaps; the lower right quarter is noise. Integers only."""
    y, x = np.mgrid[:px, :px]
    waves = (x * x // 97 + y * y // 61 + x * y // 53) % 64
    patch = np.stack([225 - waves // 2, 150 - waves + x // 8, 190 - waves // 2 - y // 10], axis=-1)
    patch[(x // 12 * 7 + y // 12 * 5) % 9 == 0] = (88, 52, 130)
    patch[(x // 40 + y // 40) % 6 == 5] = (244, 243, 245)
    half = px // 2
    noise = (x * 2654435761 + y * 40503 + 12345) % 4294967296
    noise = (noise ^ noise >> 15) * 22468225 % 4294967296
    patch[half:, half:] = (np.stack([noise >> 8, noise >> 16, noise >> 24], axis=-1) & 255)[half:, half:]
    return np.ascontiguousarray(patch, dtype=np.uint8)


# Produced by this code on an x86-64 machine with NumPy 2.4.6 and OpenCV 5.0.0; other labs depend on them.
GOLDEN_DRAWS: dict[str, str] = {
    "g2l 1": "27 19 1 1 1 67609 57949 71512 548 17 0 69377 0 65536 65536 65536",
    "g2l 2": "23 6 1 1 1 67839 67336 59981 -2130 1 0 39961 0 65536 65536 65536",
    "g2l 3": "8 6 0 1 0 64969 55964 66986 -1971 4 0 51801 0 65536 65536 65536",
    "none 1": "16 16 0 0 0 65536 65536 65536 0 23 0 100405 0 65536 65536 65536",
    "none 2": "16 16 0 0 0 65536 65536 65536 0 8 0 24513 0 65536 65536 65536",
    "none 3": "16 16 0 0 0 65536 65536 65536 0 5 0 85849 0 65536 65536 65536",
    "hed 1": "1 24 0 0 0 65536 65536 65536 0 8 0 41269 1 62822 69132 68231",
    "hed 2": "21 27 0 0 0 65536 65536 65536 0 14 0 15276 1 68947 57832 62464",
    "hed 3": "16 4 1 1 0 65536 65536 65536 0 7 0 30346 1 56799 72603 67100",
    "everything 1": "14 11 1 1 1 60336 80907 671 15688 1 0 84427 1 83664 80560 63165",
    "everything 2": "26 14 1 0 1 67524 48979 47066 27226 23 1 104982 1 70667 80609 71706",
    "everything 3": "18 12 0 1 1 56932 53118 38746 21312 21 0 78079 0 50944 59614 49833",
}
GOLDEN_CRCS: dict[str, str] = {
    "g2l": "62900714 4d1badd6 9610e8e0 5c839f23 b9b1c811 f9e071e9 81f1f794 f494f15a",
    "none": "62900714 62900714 62900714 62900714 62900714 62900714 62900714 62900714",
    "hed": "62900714 f038873b cdb3c138 544eeed2 b89bb205 3976e1c1 9947239a 00f8ff99",
    "everything": "62900714 19556392 21ba540c 8bfb9d07 c3e42d14 abf286b5 a8e28805 a1721aa2",
}


def golden_policies() -> dict[str, Policy]:
    return {**POLICIES, "everything": EVERYTHING}


def golden_crcs() -> dict[str, str]:
    patch = synthetic_patch()
    return {
        name: " ".join(
            f"{view_crc32(render(patch, draw(policy, FINGERPRINT, 2048, 512, seed), policy)):08x}"
            for seed in range(8)
        )
        for name, policy in golden_policies().items()
    }


# Draws


def philox4x64(key: tuple[int, int], words: int) -> list[int]:
    """Philox 4x64 with ten rounds (Salmon et al. 2011), counter 1, 2, ...; written from the paper."""
    mask, out = (1 << 64) - 1, []
    for counter in range(1, words // 4 + 1):
        (a, b, c, d), (k0, k1) = (counter, 0, 0, 0), key
        for _ in range(10):
            p, q = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = (q >> 64) ^ b ^ k0, q & mask, (p >> 64) ^ d ^ k1, p & mask
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        out += [a, b, c, d]
    return out


def reference_draw(policy: Policy, fingerprint: str, x: int, y: int, seed: int) -> tuple[Any, ...]:
    """The specification in docs/concepts/views.md, in fractions and without NumPy."""
    values = {k: v for k, v in policy.to_json().items() if k != "name"}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    text = "\n".join(["g2l view 1", fingerprint, str(x), str(y), str(seed), digest])
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    words = philox4x64((int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")), 16)
    units = iter([Fraction(word >> 11, 1 << 53) for word in words])

    def index(count: int) -> int:
        return int(next(units) * count)

    def chance(p: float) -> bool:
        return next(units) < Fraction(p)

    def uniform(low: float, high: float) -> float:
        first, last = round(Fraction(low) * 65536), round(Fraction(high) * 65536)
        return float(Fraction(first + index(last - first + 1), 65536))

    def factor(half_width: float) -> float:
        return uniform(1 - half_width, 1 + half_width)

    room = policy.patch_px - policy.crop_px
    crops = [index(room + 1), index(room + 1)]
    return (
        *(crops if policy.random_crop else (room // 2, room // 2)),
        *(chance(policy.hflip_p), chance(policy.vflip_p), chance(policy.jitter_p)),
        *(factor(policy.brightness), factor(policy.contrast), factor(policy.saturation)),
        *(uniform(-policy.hue, policy.hue), index(24)),
        *(chance(policy.blur_p), uniform(policy.sigma_min, policy.sigma_max)),
        *(chance(policy.stain_p), factor(policy.stain), factor(policy.stain), factor(policy.stain)),
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    policy=st.sampled_from([*POLICIES.values(), EVERYTHING, Policy("small", patch_px=64, crop_px=64)]),
    fingerprint=st.text(min_size=1, max_size=70),
    x=st.integers(0, 2**31 - 1),
    y=st.integers(0, 2**31 - 1),
    seed=st.integers(1, 2**40),
)
def test_draw_follows_the_written_specification(
    policy: Policy, fingerprint: str, x: int, y: int, seed: int
) -> None:
    assert astuple(draw(policy, fingerprint, x, y, seed)) == reference_draw(policy, fingerprint, x, y, seed)


def test_golden_draws() -> None:
    def line(policy: Policy, seed: int) -> str:
        values = astuple(draw(policy, FINGERPRINT, 2048, 512, seed))
        return " ".join(str(int(v * 65536 if isinstance(v, float) else v)) for v in values)

    drawn = {f"{name} {seed}": line(p, seed) for name, p in golden_policies().items() for seed in (1, 2, 3)}
    assert drawn == GOLDEN_DRAWS


@cache
def many_draws() -> list[ViewParams]:
    policy = replace(G2L, stain_p=0.25, stain=0.15)
    return [draw(policy, FINGERPRINT, 256 * (i // 16), 512, i % 16 + 1) for i in range(24_000)]


def column(field: str) -> Any:
    return np.array([getattr(params, field) for params in many_draws()])


def assert_uniform(counts: Any) -> None:
    """Chi-squared at most four standard deviations above its mean; fixed keys, so it never flickers."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


FREQUENCIES = {"hflip": 0.5, "vflip": 0.5, "jitter": 0.5, "blur": 0.1, "stain": 0.25}


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "p"), FREQUENCIES.items())
def test_flags_have_the_policys_frequencies(flag: str, p: float) -> None:
    values = column(flag)
    assert abs(values.sum() - len(values) * p) < 4 * (len(values) * p * (1 - p)) ** 0.5


@pytest.mark.parametrize(("field", "count"), [("crop_x_px", 33), ("crop_y_px", 33), ("order", 24)])
def test_indices_are_uniform(field: str, count: int) -> None:
    counts = np.bincount(column(field), minlength=count)
    assert len(counts) == count
    assert_uniform(counts)


RANGES = {
    "brightness": (0.85, 1.15),
    "contrast": (0.85, 1.15),
    "saturation": (0.9, 1.1),
    "hue": (-0.05, 0.05),
}
RANGES |= {"sigma": (0.1, 2.0), "stain_h": (0.85, 1.15), "stain_e": (0.85, 1.15), "stain_d": (0.85, 1.15)}


@pytest.mark.parametrize(("field", "bounds"), RANGES.items())
def test_factors_are_uniform_and_exact_in_float32(field: str, bounds: tuple[float, float]) -> None:
    values = column(field)
    assert np.array_equal(values, values.astype(np.float32))
    assert np.array_equal(values * 65536, np.round(values * 65536))
    low, high = bounds[0] - 1e-5, bounds[1] + 1e-5  # the bounds themselves are rounded to 2**-16
    assert low <= values.min() < values.max() <= high
    assert_uniform(np.histogram(values, bins=20, range=(low, high))[0])


def test_parameters_are_uncorrelated() -> None:
    drawn = np.array([astuple(params) for params in many_draws()], dtype=float)
    correlation = np.corrcoef(drawn.T) - np.eye(drawn.shape[1])
    assert np.abs(correlation).max() < 4.5 / len(drawn) ** 0.5


def test_every_part_of_the_key_matters() -> None:
    base = draw(G2L, FINGERPRINT, 1, 23, 4)
    others = [
        draw(G2L, FINGERPRINT + "0", 1, 23, 4),
        draw(G2L, FINGERPRINT, 12, 3, 4),
        draw(G2L, FINGERPRINT, 1, 2, 34),
        draw(G2L, FINGERPRINT, 23, 1, 4),
        draw(G2L, FINGERPRINT, 1, 23, 5),
        draw(replace(G2L, blur_p=0.11), FINGERPRINT, 1, 23, 4),
        draw(G2L, FINGERPRINT + "\n1", 23, 4, 4),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert draw(replace(G2L, name="mine"), FINGERPRINT, 1, 23, 4) == base
    numpy_integers: Any = (np.int32(1), np.int64(23), np.uint8(4))
    assert draw(G2L, FINGERPRINT, *numpy_integers) == base


def test_seed_0_is_the_centre_crop_and_none_gives_it_for_every_seed() -> None:
    patch = synthetic_patch()
    for policy in golden_policies().values():
        params = draw(policy, FINGERPRINT, 5, 6, 0)
        assert astuple(params)[:5] == (16, 16, False, False, False)
        assert not params.blur
        assert not params.stain
        assert np.array_equal(render(patch, params, policy), patch[16:240, 16:240])
    for seed in range(5):
        none = POLICIES["none"]
        view = render(patch, draw(none, FINGERPRINT, 5, 6, seed), none)
        assert np.array_equal(view, patch[16:240, 16:240])


# Pixels


def test_golden_views() -> None:
    assert golden_crcs() == GOLDEN_CRCS


def test_crop_and_flips() -> None:
    patch = synthetic_patch()
    for hflip, vflip in itertools.product([False, True], repeat=2):
        params = replace(NEUTRAL, crop_x_px=3, crop_y_px=29, hflip=hflip, vflip=vflip)
        expected = patch[29:253, 3:227][:: -1 if vflip else 1, :: -1 if hflip else 1]
        assert np.array_equal(render(patch, params, G2L), expected)


ALL_ON: Any = {"hflip": False, "vflip": False, "blur": True, "stain": True}


@pytest.mark.parametrize("order", range(24))
def test_operations_run_in_the_documented_order(order: int) -> None:
    params = replace(draw(EVERYTHING, FINGERPRINT, 0, 0, 7), order=order, **ALL_ON)
    x, y = params.crop_x_px, params.crop_y_px
    expected = np.ascontiguousarray(synthetic_patch()[y : y + 224, x : x + 224])
    expected = operations.jitter_stains(expected, (params.stain_h, params.stain_e, params.stain_d))
    for name in JITTER_ORDERS[order]:
        expected = getattr(operations, f"adjust_{name}")(expected, getattr(params, name))
    expected = operations.blur(expected, 9, params.sigma)
    assert np.array_equal(render(synthetic_patch(), params, EVERYTHING), expected)


def test_orders_are_lexicographic() -> None:
    assert JITTER_ORDERS[0] == ("brightness", "contrast", "saturation", "hue")
    assert JITTER_ORDERS[23] == ("hue", "saturation", "contrast", "brightness")
    rank = {name: i for i, name in enumerate(JITTER_ORDERS[0])}
    assert list(JITTER_ORDERS) == sorted(set(JITTER_ORDERS), key=lambda order: [rank[name] for name in order])


def test_view_is_contiguous_and_independent_of_the_patchs_memory() -> None:
    patch = synthetic_patch()
    kept = patch.copy()
    frozen = patch.copy()
    frozen.flags.writeable = False
    layouts = [patch, frozen, np.asfortranarray(patch), np.repeat(patch, 2, axis=2)[:, :, ::2]]
    for seed in range(5):
        params = draw(EVERYTHING if seed else G2L, FINGERPRINT, 0, 0, seed)
        results = [render(layout, params, EVERYTHING) for layout in layouts]
        for view in results:
            assert view.flags.c_contiguous
            assert (view.shape, view.dtype) == ((224, 224, 3), np.uint8)
            assert view_crc32(view) == view_crc32(results[0]) == zlib.crc32(view.tobytes())
            assert not np.shares_memory(view, patch)
        results[0][:] = 0
    assert np.array_equal(patch, kept)
    assert view_crc32(np.asfortranarray(kept)) == view_crc32(kept)


STORED: dict[Any, Any] = {bool: np.bool_, int: np.int8, float: np.float32}


def test_a_view_is_rebuilt_from_stored_columns() -> None:
    patch = synthetic_patch()
    for seed in range(1, 9):
        params = draw(EVERYTHING, FINGERPRINT, 0, 0, seed)
        stored: Any = {f.name: STORED[f.type](getattr(params, f.name)) for f in fields(ViewParams)}
        rebuilt = render(patch, ViewParams(**stored), EVERYTHING)
        assert np.array_equal(rebuilt, render(patch, params, EVERYTHING))


@pytest.mark.slow
def test_threads_give_the_same_bits() -> None:
    patch = synthetic_patch()
    params = [draw(EVERYTHING, FINGERPRINT, 0, 0, seed) for seed in range(1, 41)]
    threads = cv2.getNumThreads()
    try:
        for opencv_threads in (1, 2, 4):
            cv2.setNumThreads(opencv_threads)
            with ThreadPoolExecutor(4) as pool:
                together = list(pool.map(lambda p: view_crc32(render(patch, p, EVERYTHING)), params))
            assert together == [view_crc32(render(patch, p, EVERYTHING)) for p in params]
    finally:
        cv2.setNumThreads(threads)


def _disabled_cpu_features() -> dict[str, str]:
    found: Any = np.show_config(mode="dicts")
    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join(found["SIMD Extensions"].get("found", [])),
        "OPENCV_CPU_DISABLE": ",".join(f[1:] for f in cv2.getCPUFeaturesLine().split() if f.startswith("*")),
        "OPENCV_IPP": "disabled",
    }


@pytest.mark.slow
@pytest.mark.parametrize("opencv_threads", [1, 2])
@pytest.mark.parametrize("restricted", [False, True])
def test_other_processes_give_the_same_bits(opencv_threads: int, restricted: bool) -> None:
    """With and without the CPU's vector extensions, under another number of threads."""
    code = (
        f"import cv2; cv2.setNumThreads({opencv_threads}); from tests.pipeline.views import test_draw as t; "
    )
    child = [sys.executable, "-c", code + "print(repr(t.golden_crcs()))"]
    environment = {**os.environ, **(_disabled_cpu_features() if restricted else {})}
    done = subprocess.run(child, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(GOLDEN_CRCS)


# Errors


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(OptionError, match=r"seed -1 is negative; use 0"):
        draw(G2L, FINGERPRINT, 0, 0, -1)


WRONG_PATCHES = [np.zeros(shape, np.uint8) for shape in ((224, 224, 3), (256, 256), (256, 256, 4))]
WRONG_PATCHES += [np.zeros((256, 256, 3), np.float32)]


@pytest.mark.parametrize("patch", WRONG_PATCHES)
def test_a_patch_of_another_shape_or_dtype_is_refused(patch: np.ndarray) -> None:
    with pytest.raises(OptionError, match=r"policy g2l needs uint8 \(256, 256, 3\)"):
        render(patch, NEUTRAL, G2L)


FOREIGN: list[dict[str, Any]] = [{"crop_x_px": 33}, {"crop_y_px": -1}, {"order": 24}]
FOREIGN += [{"blur": True, "sigma": 0.0}, {"hue": 0.51}, {"saturation": -0.1}]
FOREIGN += [{"brightness": 1e30}, {"stain_d": float("nan")}]


@pytest.mark.parametrize("change", FOREIGN)
def test_parameters_of_another_policy_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="does not fit policy g2l"):
        render(synthetic_patch(), replace(NEUTRAL, **change), G2L)


def test_the_smallest_sigma_of_a_policy_renders() -> None:
    policy = Policy("sharp", blur_p=1.0, sigma_min=0.01, sigma_max=0.01)
    view = render(synthetic_patch(), draw(policy, FINGERPRINT, 0, 0, 1), policy)
    assert view.shape == (224, 224, 3)
