"""Two things side by side in one process, taking turns: medians and spread, ratio first."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).with_name("ratios.json")
MOVED = 0.10
"""A ratio has moved when its median differs by more than this from the committed one and their spreads do not meet."""


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
    def holds(self) -> bool:
        return (self.least is None or self.median >= self.least) and (
            self.most is None or self.median <= self.most
        )

    def line(self) -> str:
        """One line of the table."""
        wanted = [f">= {self.least:g}" if self.least is not None else ""]
        wanted += [f"<= {self.most:g}" if self.most is not None else ""]
        limit = " and ".join(filter(None, wanted)) or "no limit"
        sign = "" if self.holds else "  MISSED"
        return f"{spread(self.rounds):>22}  {limit:<12}{sign}  {self.name}{': ' if self.detail else ''}{self.detail}"


def race(
    jobs: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = True,
    after: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each job in each round; who goes first alternates. `after` each job, not counted, comes `after`."""
    names = list(jobs)
    if warm:
        for name in names:
            jobs[name]()
            after()
    took: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            began = clock()
            jobs[name]()
            took[name].append(clock() - began)
            after()
    return took


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotient of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (least-most)."""
    low, middle, high = min(values), statistics.median(values), max(values)
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
        apart = min(ratio.rounds) > old["most"] or max(ratio.rounds) < old["least"]
        if abs(change) > MOVED and apart:
            was = f"{old['median']:.2f} ({old['least']:.2f}-{old['most']:.2f})"
            lines.append(f"moved by {change:+.0%}: {ratio.name} {spread(ratio.rounds)}, was {was}")
    gone = before.keys() - {ratio.name for ratio in found} if whole else []
    return lines + [f"gone: {name}" for name in sorted(gone)]


def record(found: Sequence[Ratio], path: Path = COMMITTED) -> None:
    """Write ratios to be committed; those of parts that were not run stay."""
    values = committed(path) | {
        ratio.name: {
            "median": round(ratio.median, 4),
            "least": round(min(ratio.rounds), 4),
            "most": round(max(ratio.rounds), 4),
        }
        for ratio in found
    }
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
