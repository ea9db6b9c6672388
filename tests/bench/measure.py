"""Two things side by side in one process, taking turns until the ratio is known: interval, limit, verdict."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binom

COMMITTED = Path(__file__).with_name("ratios.json")
MOVED = 0.10
"""A ratio has moved when its median differs by more than this from the committed one and their intervals are apart."""
NARROW = 0.10
"""An interval is narrow when its width is at most this share of the median."""
PATIENCE = 15.0
"""Seconds after which no further round begins."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Order statistics that hold the median with 95 % (sign test); of fewer than six values the least and the most."""
    ordered = sorted(values)
    left_out = max(int(binom.ppf(0.025, len(ordered), 0.5)) - 1, 0)
    return ordered[left_out], ordered[-1 - left_out]


def narrow(values: Sequence[float]) -> bool:
    """Whether `interval` is at most `NARROW` of the median wide."""
    low, high = interval(values)
    return high - low <= NARROW * abs(statistics.median(values))


@dataclass(frozen=True)
class Ratio:
    """How many times better ours is than what it is held against, in each round."""

    name: str
    rounds: Sequence[float]
    least: float | None = None
    """The limit; None where there is none."""
    detail: str = ""
    most: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def verdict(self) -> str:
        """``holds`` or ``missed``; ``undecided`` where a wide interval contains a limit."""
        low, high = (self.median, self.median) if narrow(self.rounds) else interval(self.rounds)
        least = -math.inf if self.least is None else self.least
        most = math.inf if self.most is None else self.most
        if least <= low and high <= most:
            return "holds"
        return "missed" if high < least or most < low else "undecided"

    def line(self) -> str:
        """One line of the table."""
        wanted = [f">= {self.least:g}" if self.least is not None else ""]
        wanted += [f"<= {self.most:g}" if self.most is not None else ""]
        limit = " and ".join(filter(None, wanted)) or "no limit"
        sign = "" if self.verdict == "holds" else f"  {self.verdict.upper()}"
        return f"{spread(self.rounds):>22}  {limit:<12}{sign}  {self.name}{': ' if self.detail else ''}{self.detail}"


def rounds(
    found: Sequence[float],
    at_least: int,
    patience: float = PATIENCE,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[int]:
    """Numbers of rounds, until `found`, which each round adds to, is `narrow` or `patience` seconds are over."""
    began, number = now(), 0
    while number < at_least or (not narrow(found) and now() - began < patience):
        yield number
        number += 1


def race(
    jobs: Mapping[str, Callable[[], object]],
    at_least: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = True,
    after: Callable[[], object] = lambda: None,
    patience: float = PATIENCE,
) -> dict[str, list[float]]:
    """Seconds of each job in each round; who goes first alternates. `after` each job, not counted, comes `after`.

    The ratio of the first two jobs decides how many `rounds` there are.
    """
    names = list(jobs)
    if warm:
        for name in names:
            jobs[name]()
            after()
    took: dict[str, list[float]] = {name: [] for name in names}
    found: list[float] = []
    for number in rounds(found, at_least, patience):
        for name in names if number % 2 == 0 else reversed(names):
            began = clock()
            jobs[name]()
            took[name].append(clock() - began)
            after()
        found.append(took[names[1]][-1] / took[names[0]][-1])
    return took


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotient of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and its `interval`."""
    (low, high), middle = interval(values), statistics.median(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def milliseconds(values: Sequence[float], parts: int = 1) -> str:
    """`spread` of seconds that cover `parts` equal pieces of work, in milliseconds of one."""
    return spread([value / parts * 1e3 for value in values]) + " ms"


def say(text: str) -> None:
    print(text, flush=True)


def committed(path: Path = COMMITTED) -> dict[str, Any]:
    """The ratios that are held against; empty when there are none yet."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def compare(found: Sequence[Ratio], before: Mapping[str, Any], whole: bool = True) -> list[str]:
    """One line for each ratio that moved, is new, or, where everything was measured, is gone."""
    lines = []
    for ratio in found:
        old = before.get(ratio.name)
        if old is None:
            lines.append(f"new: {ratio.name} {spread(ratio.rounds)}")
            continue
        change = ratio.median / old["median"] - 1 if old["median"] else ratio.median - old["median"]
        low, high = interval(ratio.rounds)
        apart = low > old["high"] or high < old["low"]
        if abs(change) > MOVED and apart:
            was = f"{old['median']:.2f} ({old['low']:.2f}-{old['high']:.2f})"
            lines.append(f"moved by {change:+.0%}: {ratio.name} {spread(ratio.rounds)}, was {was}")
    gone = before.keys() - {ratio.name for ratio in found} if whole else []
    return lines + [f"gone: {name}" for name in sorted(gone)]


def record(found: Sequence[Ratio], path: Path = COMMITTED) -> None:
    """Write ratios to be committed; those of parts that were not run stay."""
    values = committed(path)
    for ratio in found:
        low, high = interval(ratio.rounds)
        values[ratio.name] = {
            key: round(value, 4) for key, value in [("median", ratio.median), ("low", low), ("high", high)]
        }
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
