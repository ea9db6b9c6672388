"""``evaluate all``: the same tasks for several encoders, as the tables of a paper.

A YAML file says which encoders (student, teacher, untrained student, any other), which data (CSVs of tiles or slides,
embedded when they are not yet) and which tasks. Encoder after encoder is embedded and evaluated; every figure is
printed and written into the tables when it is there. Embeddings stay below ``OUT/embeddings/DATA/ENCODER`` and results
below ``OUT/figures``, so that a repeat, after a kill or with another task, computes what is missing.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.embed.embed import embed
from pipeline.embed.options import EmbedOptions
from pipeline.evaluate.bench import Bench, BenchTask
from pipeline.evaluate.compare import compare
from pipeline.evaluate.embeddings import Embeddings, load_embeddings
from pipeline.evaluate.kept import Kept, digest_of, key_of
from pipeline.evaluate.options import CompareOptions
from pipeline.evaluate.protocols import PROTOCOLS, run_cka
from pipeline.evaluate.result import Judged, Result, difference_text, text_of, title_of
from pipeline.evaluate.tables import Tables
from pipeline.runtime.progress import Reporter
from stores.errors import EvaluationError, G2LError, OptionError
from stores.io.lock import only_writer
from stores.io.text import counted

_LINES = 12
"""Figures of one result that are printed when it is there; HEST has one for each gene."""


def run_bench(bench: Bench, out: Path, report: Reporter, comparison: CompareOptions | None = None) -> Tables:
    """Compute missing embeddings, run every task for every encoder, and write the tables below `out`.

    Raises
    ------
    OptionError
        When there is no encoder to compare with, before anything runs.
    """
    comparison = comparison or CompareOptions()
    comparison.validate()
    reference = _reference(bench, comparison)
    with only_writer(out):
        tables = Tables(list(bench.encoders), compared_to=reference, margin=comparison.margin)
        order = {task.name: i for i, task in enumerate(bench.tasks)}
        names = list(bench.encoders)
        for data_name in bench.data:
            run = _OfData(bench, data_name, out, reference, comparison.margin, tables, report)
            for name in sorted(names, key=lambda name: name != reference):
                for task in run.tasks_of(name):
                    run.do(task, name)
                    tables.results.sort(key=lambda item: (order[item[0].name], names.index(item[1])))
                    tables.write(out)
                run.forget(name)
        tables.write(out)
    return tables


def _reference(bench: Bench, comparison: CompareOptions) -> str | None:
    """The encoder that the others are compared with; None when there is one encoder only."""
    names = list(bench.encoders)
    if comparison.compare_to is not None:
        if comparison.compare_to not in names:
            raise OptionError(f"--compare-to {comparison.compare_to}: allowed are {', '.join(names)}")
        return comparison.compare_to
    if len(names) < 2:
        if comparison.margin is not None:
            raise OptionError(f"--margin {comparison.margin:g}: {names[0]} is the only encoder")
        return None
    named = [task.to for task in bench.tasks if task.to is not None]
    return next(name for name in ["teacher", *named, *names] if name in names)


@dataclass(frozen=True, slots=True)
class _Loaded:
    embeddings: Embeddings
    digest: str


@dataclass(slots=True)
class _OfData:
    """The tasks on one data set."""

    bench: Bench
    data_name: str
    out: Path
    reference: str | None
    margin: float | None
    tables: Tables
    report: Reporter
    _loaded: dict[str, _Loaded | None] = field(default_factory=dict)
    """By encoder; None when its embeddings could not be made."""
    _judged: dict[str, Judged | None] = field(default_factory=dict)
    """What the reference gave, by task."""

    def tasks_of(self, name: str) -> list[BenchTask]:
        return [
            task
            for task in self.bench.tasks
            if task.data == self.data_name
            and name != task.to
            and name in (task.encoders or self.bench.encoders)
        ]

    def do(self, task: BenchTask, name: str) -> None:
        """Run a task for an encoder; print, keep and collect what it gave, or say why it failed."""
        mine = self._embeddings(name)
        if mine is None:
            return
        try:
            result, before = self._result(task, name, mine)
        except G2LError as error:
            self._fail(f"{task.name} of {name}", error)
            return
        self.tables.results.append((task, name, result))
        if mine.embeddings.weights:
            self.tables.weights.setdefault(name, set()).add(mine.embeddings.weights)
        self.report.note(f"{task.name}: {name}{' (computed before)' if before else ''}")
        for row in result.rows[:_LINES]:
            more = (
                ""
                if row.difference is None
                else f"; to {row.difference.to}: {difference_text(row.difference)}"
            )
            self.report.note(f"  {title_of(row.figure, row.k):<34} {text_of(row)}{more}")
        if len(result.rows) > _LINES:
            self.report.note(f"  and {len(result.rows) - _LINES} more in the tables")

    def forget(self, name: str) -> None:
        """Free the memory of embeddings that no other encoder is compared with."""
        if name != self.reference and name not in {task.to for task in self.bench.tasks}:
            self._loaded.pop(name, None)

    def _fail(self, what: str, error: G2LError) -> None:
        self.tables.failed[what] = str(error)
        self.report.note(f"failed: {what}: {error}")

    def _result(self, task: BenchTask, name: str, mine: _Loaded) -> tuple[Result, bool]:
        """The result of a task, and whether it was kept from before."""
        other = None if task.to is None else self._embeddings(task.to)
        to = self._compared_to(task, name)
        against = None if to is None else self._embeddings(to)
        digests = {
            part: None if loaded is None else loaded.digest
            for part, loaded in (("own", mine), ("other", other), ("reference", against))
        }
        kept = Kept(self.out / "figures")
        key = key_of(task.protocol, task.options, digests, to=to, margin=self.margin)
        result = kept.read(key, task.options)
        if result is not None:
            return result, True
        if task.to is None:
            result = PROTOCOLS[task.protocol][1](mine.embeddings, task.options)
        elif other is None:
            raise EvaluationError(f"there are no embeddings of {task.to} to compare with")
        else:
            result = run_cka(mine.embeddings, other.embeddings, task.options)
        if name == self.reference:
            self._judged[task.name] = result.judged
        if to is not None and result.judged is not None:
            judged = self._of_reference(task, against)
            if judged is None:
                result.notes.append(f"not compared with {to}, which failed")
            else:
                compare(result, judged, to, self.margin, task.options.seed, task.options.replicates)
        kept.write(key, result)
        return result, False

    def _compared_to(self, task: BenchTask, name: str) -> str | None:
        """The encoder whose figures on a task those of `name` are compared with."""
        chosen = task.encoders or tuple(self.bench.encoders)
        control = getattr(task.options, "shuffle_labels", False)
        return None if control or name == self.reference or self.reference not in chosen else self.reference

    def _of_reference(self, task: BenchTask, loaded: _Loaded | None) -> Judged | None:
        """What the reference gave on a task; computed again when its figures were kept from before."""
        if task.name not in self._judged:
            self._judged[task.name] = None
            if loaded is not None:
                try:
                    found: Result = PROTOCOLS[task.protocol][1](loaded.embeddings, task.options)
                    self._judged[task.name] = found.judged
                except G2LError:
                    pass  # said when the task was run for the reference itself
        return self._judged[task.name]

    def _embeddings(self, name: str) -> _Loaded | None:
        if name not in self._loaded:
            self._loaded[name] = None
            try:
                embeddings = self._embed(name)
                self._loaded[name] = _Loaded(embeddings, digest_of(embeddings))
            except G2LError as error:
                self._fail(f"{name} on {self.data_name}", error)
        return self._loaded[name]

    def _embed(self, name: str) -> Embeddings:
        encoder, data = self.bench.encoders[name], self.bench.data[self.data_name]
        if not isinstance(encoder, EmbedOptions):
            if self.data_name not in encoder:
                raise EvaluationError(f"encoder {name}: embeddings of {self.data_name} are not given")
            return load_embeddings(encoder[self.data_name])
        folder = self.out / "embeddings" / self.data_name / name
        own: dict[str, Any] = dict(data.embed)
        own["column"] = tuple(own.get("column", ()))
        options = dataclasses.replace(encoder, format="parquet", **own)
        self.report.note(f"embedding {self.data_name} with {name}")
        summary = embed(data.input, folder, options, data.tile, self.report)
        missing = [
            f"{kind} {item}: {why}"
            for kind, reasons in (("slide", summary.failed_slides), ("block", summary.failed_blocks))
            for item, why in reasons.items()
        ]
        if summary.bad_reads:
            missing.append(f"{counted(len(summary.bad_reads), 'patch', 'patches')} could not be read")
        self._lacks(name, missing)
        return load_embeddings(folder)

    def _lacks(self, name: str, missing: Sequence[str]) -> None:
        lines = [f"{self.data_name}, {name}: {text}" for text in missing]
        self.tables.incomplete += lines
        for line in lines:
            self.report.note(f"incomplete: {line}")
