"""The results of ``evaluate all`` as tables: CSV, Markdown, JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluate.bench import BenchTask
from pipeline.evaluate.result import Result, Row, difference_text, text_of, title_of
from stores.errors import SOME_SLIDES_FAILED
from stores.io.files import write_json, write_text
from stores.io.text import csv_cell, markdown

_OF_DIFFERENCES = ("compared_to", "difference", "difference_low", "difference_high", "verdict")


@dataclass(slots=True)
class Tables:
    """The results of a bench."""

    encoders: Sequence[str]
    results: list[tuple[BenchTask, str, Result]] = field(default_factory=list)
    """Task, name of the encoder, result."""
    failed: dict[str, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    compared_to: str | None = None
    """The encoder whose figures the differences are to."""
    margin: float | None = None
    weights: dict[str, set[str]] = field(default_factory=dict)
    """SHA-256 of the weights of each encoder, as its embeddings say: more than one where they were made by several."""

    @property
    def exit_code(self) -> int:
        return SOME_SLIDES_FAILED if self.failed or self.incomplete else 0

    def rows(self) -> list[dict[str, Any]]:
        """One row for each figure of each encoder on each task."""
        return [
            {"task": task.name, "protocol": result.protocol, "data": task.data, "encoder": encoder}
            | {"samples": result.samples, "figure": row.figure, "k": row.k}
            | {"value": row.value, "low": row.low, "high": row.high}
            | _difference_cells(row)
            for task, encoder, result in self.results
            for row in result.rows
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        results = [
            {"task": task.name, "name": name, **result.to_json()} for task, name, result in self.results
        ]
        compared = (
            {} if self.compared_to is None else {"compared_to": self.compared_to, "margin": self.margin}
        )
        known = {name: next(iter(found)) for name, found in self.weights.items() if len(found) == 1}
        weights = {"weights": known} if known else {}
        return {
            "results": results,
            "failed": self.failed,
            "incomplete": self.incomplete,
            **compared,
            **weights,
        }

    def write(self, out: Path) -> None:
        """Write all three, each atomically: what stands in them after a kill is whole."""
        write_text(out / "table.csv", self.csv())
        write_text(out / "table.md", "\n".join(self.markdown()) + "\n")
        write_json(out / "table.json", self.to_json())
        self.written = [out / "table.csv", out / "table.md", out / "table.json"]

    def failures(self) -> list[str]:
        """What failed, one line each; empty when all went well."""
        count = len(self.failed)
        title = [f"{count} {'step' if count == 1 else 'steps'} failed; all other figures are in the tables:"]
        return title * bool(count) + [f"failed: {name}: {why}" for name, why in self.failed.items()]

    def csv(self) -> str:
        """`rows` as CSV; what is not defined is empty, and no text is a formula (`stores.io.text.csv_cell`)."""
        text = io.StringIO()
        rows = self.rows()
        names = ["task", "protocol", "data", "encoder", "samples", "figure", "k", "value", "low", "high"]
        names += _OF_DIFFERENCES
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
        return text.getvalue()

    def markdown(self) -> list[str]:
        """A table with one column for each encoder, and one of differences.

        The best value of a row is bold where more is better.
        """
        lines = [
            "| task | figure | " + " | ".join(map(markdown, self.encoders)) + " |",
            "|---|---|" + "---|" * len(self.encoders),
        ]
        cells: dict[tuple[str, str], dict[str, Row]] = {}
        controls = {
            task.name for task, _, _ in self.results if getattr(task.options, "shuffle_labels", False)
        }
        for task, encoder, result in self.results:
            for row in result.rows:
                cells.setdefault((task.name, title_of(row.figure, row.k)), {})[encoder] = row
        for (name, title), by_encoder in cells.items():
            known = [row.value for row in by_encoder.values() if row.value is not None]
            best = max(known) if len(known) > 1 and "std" not in title and name not in controls else None
            texts = []
            for encoder in self.encoders:
                found = by_encoder.get(encoder)
                text = "" if found is None else text_of(found)
                texts.append(
                    f"**{text}**" if best is not None and found is not None and found.value == best else text
                )
            lines.append(f"| {markdown(name)} | {markdown(title)} | " + " | ".join(texts) + " |")
        lines += ["", *self._differences(cells)]
        said: dict[tuple[str, str], list[str]] = {}
        for task, encoder, result in self.results:
            for note in result.notes:
                said.setdefault((task.name, note), []).append(encoder)
        evaluated = {name: [e for t, e, _ in self.results if t.name == name] for name, _ in said}
        for (name, note), of in said.items():
            who = "" if of == evaluated[name] else f" ({', '.join(of)})"
            lines.append(f"- {markdown(name + who)}: {markdown(note, 500)}")
        lines += [f"- failed: {markdown(name)}: {markdown(why, 500)}" for name, why in self.failed.items()]
        return lines + [f"- incomplete: {markdown(text, 500)}" for text in self.incomplete]

    def _differences(self, cells: Mapping[tuple[str, str], Mapping[str, Row]]) -> list[str]:
        """The table of differences, and how to read it; nothing when nothing was compared."""
        others = [name for name in self.encoders if name != self.compared_to]
        rows = []
        for (name, title), by_encoder in cells.items():
            found = [None if row is None else row.difference for row in map(by_encoder.get, others)]
            if any(difference is not None for difference in found):
                texts = ["" if difference is None else difference_text(difference) for difference in found]
                rows.append(f"| {markdown(name)} | {markdown(title)} | " + " | ".join(texts) + " |")
        if not rows:
            return []
        margin = "" if self.margin is None else f"; the margin of the verdicts is {self.margin:g}"
        return [
            f"Differences to {markdown(self.compared_to)} on the same samples, the same groups drawn for both, "
            f"with 95 % intervals{margin}.",
            "",
            "| task | figure | " + " | ".join(map(markdown, others)) + " |",
            "|---|---|" + "---|" * len(others),
            *rows,
            "",
        ]


def _difference_cells(row: Row) -> dict[str, Any]:
    found = row.difference
    values = (None,) * 5 if found is None else (found.to, found.value, found.low, found.high, found.verdict)
    return dict(zip(_OF_DIFFERENCES, values, strict=True))
