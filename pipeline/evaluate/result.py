"""What a protocol found: rows of figures, as text and as JSON."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.metrics.bootstrap import Estimate, Statistic
from pipeline.runtime.options import to_json


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure minus that of the encoder that it is compared with, on the same samples."""

    to: str
    """Name of that encoder."""
    value: float | None
    low: float | None = None
    high: float | None = None
    """95 % interval; the same groups are drawn for both encoders."""
    verdict: str = ""
    """See `pipeline.evaluate.compare.verdict`; empty without a margin."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    figure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    k: int | None = None
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """Figures as a function of the weights of samples: what a paired comparison draws again."""

    samples: Callable[[], Sequence[tuple[Hashable, str, str]]]
    """Name, label and group of every sample; EvaluationError when samples have no names."""
    figures: Sequence[tuple[str, int | None]]
    """Title and k of what `statistic` returns."""
    statistic: Statistic


@dataclass(slots=True)
class Result:
    """What a protocol found."""

    protocol: str
    encoder: str
    source: str
    samples: int
    options: Any
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    judged: Judged | None = field(default=None, repr=False)
    """None where a figure is not a sum over samples (CKA, HEST, PLISM)."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite becomes null."""
        rows: list[dict[str, Any]] = [
            {name: getattr(row, name) for name in ("figure", "k", "value", "low", "high")}
            | ({} if row.difference is None else {"difference": asdict(row.difference)})
            for row in self.rows
        ]
        return {
            "protocol": self.protocol,
            "encoder": self.encoder,
            "embeddings": self.source,
            "samples": self.samples,
            "options": to_json(self.options),
            "figures": rows,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """The same as text."""
        name = f"{self.encoder}, " if self.encoder else ""
        lines = [f"{self.protocol} of {name}{self.samples} samples of {self.source}"]
        for row in self.rows:
            lines.append(f"  {title_of(row.figure, row.k):<34} {text_of(row)}")
        return lines + [f"note: {note}" for note in self.notes]


def title_of(figure: str, k: int | None) -> str:
    return figure if k is None else f"{figure}, k = {k}"


def difference_text(found: Difference) -> str:
    """The difference with its sign, its interval and the verdict.

    >>> difference_text(Difference("teacher", -0.012, -0.021, -0.003, "inconclusive"))
    '-0.0120 (-0.0210 to -0.0030), inconclusive'
    """
    if found.value is None:
        return "-"
    known = found.low is not None and found.high is not None
    interval = f" ({found.low:+.4f} to {found.high:+.4f})" if known else ""
    return f"{found.value:+.4f}{interval}" + (f", {found.verdict}" if found.verdict else "")


def text_of(row: Row) -> str:
    """The value with its interval; a dash where it is not defined.

    >>> text_of(Row("auc", 0.98765, 0.97, 0.991))
    '0.9877 (0.9700 to 0.9910)'
    """
    if row.value is None:
        return "-"
    interval = f" ({row.low:.4f} to {row.high:.4f})" if row.low is not None and row.high is not None else ""
    return f"{row.value:.4f}{interval}"


def number_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def row_of(figure: str, estimate: Estimate, k: int | None = None) -> Row:
    value, low, high = map(number_or_none, (estimate.value, estimate.low, estimate.high))
    return Row(figure, value, low, high, k)
