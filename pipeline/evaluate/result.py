"""What a protocol found: rows of figures, as text and as JSON."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.metrics.bootstrap import Estimate
from pipeline.runtime.options import to_json


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    figure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    k: int | None = None


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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite becomes null."""
        rows = [
            {name: getattr(row, name) for name in ("figure", "k", "value", "low", "high")}
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
            title = row.figure if row.k is None else f"{row.figure}, k = {row.k}"
            lines.append(f"  {title:<34} {text_of(row)}")
        return lines + [f"note: {note}" for note in self.notes]


def text_of(row: Row) -> str:
    """The value with its interval; a dash where it is not defined.

    >>> text_of(Row("auc", 0.98765, 0.97, 0.991))
    '0.9877 (0.9700 to 0.9910)'
    """
    if row.value is None:
        return "-"
    interval = f" ({row.low:.4f} to {row.high:.4f})" if row.low is not None and row.high is not None else ""
    return f"{row.value:.4f}{interval}"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def row_of(figure: str, estimate: Estimate, k: int | None = None) -> Row:
    return Row(figure, _number(estimate.value), _number(estimate.low), _number(estimate.high), k)
