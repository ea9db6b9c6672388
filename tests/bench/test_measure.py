"""The benchmarks' own arithmetic: which ratio missed its limit, and which moved."""

from pathlib import Path

from tests.bench.measure import Ratio, committed, compare, race, record


def test_a_ratio_holds_by_its_median() -> None:
    assert Ratio("a", [0.1, 2.0, 3.0], 2.0).holds
    assert not Ratio("a", [9.0, 1.9, 1.0], 2.0).holds
    assert not Ratio("a", [0.4, 0.5], most=0.35).holds
    assert Ratio("a", [0.0]).holds
    assert "MISSED" in Ratio("a", [1.0], 2.0).line()
    assert Ratio("a", [1.0, 3.0, 2.0], 2.0, most=4).line().split("  ")[-1] == "a"


def test_moved_means_beyond_a_tenth_and_both_spreads(tmp_path: Path) -> None:
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
    assert all(0 <= v["least"] <= v["median"] <= v["most"] for v in values.values())
