"""The benchmarks' own arithmetic: how long a comparison goes on, which ratio missed its limit, and which moved."""

from pathlib import Path

import numpy as np
import pytest

from tests.bench.measure import Ratio, committed, compare, interval, narrow, race, record, rounds


def test_an_interval_holds_the_median_as_often_as_it_says() -> None:
    assert interval([3.0]) == (3.0, 3.0)
    assert interval([2.0, 1.0, 3.0, 5.0, 4.0]) == (1.0, 5.0)
    assert interval([float(i) for i in range(9)]) == (1.0, 7.0)
    rng = np.random.default_rng(0)
    for n, least in ((6, 0.95), (9, 0.95), (20, 0.95)):
        found = [interval(rng.exponential(size=n).tolist()) for _ in range(4000)]
        assert np.mean([low <= np.log(2) <= high for low, high in found]) > least


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio("wide, and all above", [3.0, 2.1, 9.0], 2.0), "holds"),
        (Ratio("wide, and all below", [0.1, 1.9, 1.0], 2.0), "missed"),
        (Ratio("wide, around the limit", [0.1, 2.1, 3.0], 2.0), "undecided"),
        (Ratio("wide, around the other limit", [0.1, 2.1, 3.0], most=2.5), "undecided"),
        (Ratio("narrow, above", [1.99, 2.01, 2.02], 2.0), "holds"),
        (Ratio("narrow, below", [1.99, 1.98, 2.02], 2.0), "missed"),
        (Ratio("too much", [0.4, 0.5], most=0.35), "missed"),
        (Ratio("no limit", [0.0, 9.0]), "holds"),
        (Ratio("both limits", [0.97, 1.0, 1.02], 0.9, most=1.1), "holds"),
        (Ratio("wide, around both limits", [0.5, 0.8, 1.3], 0.9, most=1.1), "undecided"),
    ],
    ids=lambda value: value.name if isinstance(value, Ratio) else "",
)
def test_a_wide_interval_around_a_limit_decides_nothing(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict == verdict
    assert ("MISSED" in ratio.line(), "UNDECIDED" in ratio.line()) == (
        verdict == "missed",
        verdict == "undecided",
    )


def test_rounds_go_on_until_the_interval_is_narrow() -> None:
    found: list[float] = []
    values = iter([1.0, 2.0, 1.0, 2.0] + [1.5] * 40)
    for _ in rounds(found, 3, patience=1e9):
        found.append(next(values))
    assert narrow(found)
    assert not narrow(found[:-1])

    found.clear()
    for _ in rounds(found, 3):
        found.append(1.0)
    assert len(found) == 3

    found.clear()
    clock = iter(range(100))
    for number in rounds(found, 3, patience=10, now=lambda: float(next(clock))):
        found.append(float(number))  # never narrow
    assert len(found) == 12  # three, and one more for each second but the last of ten


def test_moved_means_beyond_a_tenth_and_both_intervals(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    assert committed(path) == {}
    record([Ratio("fast", [2.0, 2.2, 2.1]), Ratio("noisy", [1.0, 3.0, 2.0]), Ratio("gone", [1.0])], path)
    before = committed(path)
    found = [Ratio("fast", [1.7, 1.8, 1.5]), Ratio("noisy", [1.1, 1.2, 1.3]), Ratio("new", [1.0, 1.0])]
    assert compare(found, before) == [
        "moved by -19%: fast 1.70 (1.50-1.80), was 2.10 (2.00-2.20)",
        "new: new 1.00 (1.00-1.00)",
        "gone: gone",
    ]
    assert compare([Ratio("fast", [2.3, 2.25, 2.35])], before, whole=False) == []  # a tenth is not reached
    assert compare([Ratio("fast", [2.3, 2.4, 2.5])], before, whole=False)[0].startswith("moved by +14%")
    record([Ratio("fast", [9.0])], path)
    assert committed(path).keys() == {"fast", "noisy", "gone"}  # parts that were not run stay
    assert committed(path)["fast"]["median"] == 9.0


def test_jobs_take_turns() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    took = race(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, clock=lambda: float(next(ticks))
    )
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert took == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_the_committed_ratios_are_readable() -> None:
    values = committed()
    assert all(0 <= v["low"] <= v["median"] <= v["high"] for v in values.values())
