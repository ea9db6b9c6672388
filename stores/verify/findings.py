"""What ``store verify`` finds: one line each, by slide, seed and rows, and enough to repair it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a store."""

    file: str
    """The file or array, below the store."""
    problem: str
    kind: str = "file"
    """``file``, ``metadata``, ``features``, ``commit``, ``patches``, ``coords``, ``stats``, ``pixels``, ``missing``,
    ``index``, ``view``, ``teacher``, ``seal``, ``stray`` or ``unreadable`` (a check ended in an error that nobody
    foresaw)."""
    slide_id: str | None = None
    block: int | None = None
    seeds: range | None = None
    rows: range | None = None

    def __str__(self) -> str:
        seeds, rows = _span(self.seeds), _span(self.rows)
        where = [
            f"slide {self.slide_id}" if self.slide_id else "",
            f"seed {seeds}" if seeds else "",
            f"rows {rows}" if rows else "",
        ]
        named = " ".join(part for part in where if part)
        return f"{named}: {self.problem} ({self.file})" if named else f"{self.file}: {self.problem}"

    def to_json(self) -> dict[str, object]:
        """Plain JSON types."""
        return {
            "file": self.file,
            "problem": self.problem,
            "kind": self.kind,
            "slide_id": self.slide_id,
            "seeds": [self.seeds.start, self.seeds.stop - 1] if self.seeds else None,
            "rows": [self.rows.start, self.rows.stop - 1] if self.rows else None,
        }


def _span(numbers: range | None) -> str:
    if not numbers:
        return ""
    first, last = numbers[0], numbers[-1]
    return str(first) if first == last else f"{first}-{last}"
