"""One page that compares the students of several runs, complete in itself as that of one run is.

A column is a student, a row a fact or a figure. Figures stand in one row only where they can be ranked: against the
same teacher on the same held-out views, which a run records by their digest.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.distill import loss_spec
from pipeline.encoders.tensor_files import count_numbers
from pipeline.report import charts, origin, page
from pipeline.report.options import ReportOptions
from pipeline.report.report import SUBTITLE, Report
from pipeline.report.run_files import HeldOut, RunFiles, read_run, short_name
from pipeline.report.tables import read_table, weights_of
from stores.errors import OptionError
from stores.format import layout
from stores.io import files
from stores.io.text import counted, html_text, human_bytes, one_line

_FIGURES = {
    "cka": "linear CKA",
    "cka_unbiased": "unbiased CKA",
    "cosine": "cosine",
    "explained": "variance explained",
}
_UNKNOWN = "unknown"
_HEADING = 80
"""Characters of students' names that stand in the heading of the page."""
_OF_ONE = ("store", "slides", "student", "weights", "random_weights")
"""Options that show the slides and the student of one run."""
_RANKING = (
    "A row compares what was measured alike: against one teacher, on the same held-out views, by their digest. Figures "
    "of different rows cannot be ranked. Held-out figures have no intervals; figures on tasks, which g2l evaluate all "
    "computes and --tables adds, have them."
)
_CURVES = (
    "The numbers at the ends of the lines are those of the students. Lines also differ in dash and marker. The first "
    "point is the student before training."
)
_LOSSES = "Losses are drawn together only where the same settings compute them."


@dataclass(frozen=True, slots=True)
class Student:
    """A run, and what its exported student is."""

    number: int
    """Place on the command line, from 0."""
    path: Path
    run: RunFiles
    config: Mapping[str, Any]
    """Of the student's folder; empty before the export."""
    numbers: int | None
    """In all its tensors."""
    size: int | None
    """Bytes of the weights' file."""

    @property
    def name(self) -> str:
        """The last two names of the run's path."""
        return short_name(self.path)

    @property
    def about(self) -> Mapping[str, Any]:
        """What the configuration holds beyond timm's."""
        found = self.config.get("g2l")
        return found if isinstance(found, dict) else {}

    def text(self, name: str) -> str:
        """A word or number of the student's own configuration."""
        value = self.about.get(name)
        return one_line(value, 100) if isinstance(value, str | int | float) else ""


@dataclass(frozen=True, slots=True)
class Judged:
    """The agreement of a student with one teacher on held-out views."""

    student: Student
    store: str
    """Name of the store among several; empty for one."""
    teacher: str
    recipe: str
    held_out: HeldOut | None
    """None in runs of an older version."""
    figures: Mapping[str, Any]


def write_comparison(paths: Sequence[Path], out: Path, options: ReportOptions) -> Report:
    """Write the page about the students of several runs to `out`.

    Raises
    ------
    OptionError
        When a path is no run or is given twice, or an option is for one run.
    """
    options.validate()
    for name in _OF_ONE:
        value = getattr(options, name)
        if value not in (None, ()):
            shown = value[0] if isinstance(value, tuple) else value
            raise OptionError(
                f"--{name.replace('_', '-')} {shown}: is for the report of one run, and {len(paths)} are given"
            )
    tables = [read_table(table) for table in options.tables]
    students = _students(paths)
    groups = _groups(students)
    sections = [
        ("students", "Students", _table(students, groups, tables)),
        ("training", "Training", _curves(students, groups)),
        ("evaluation", "Evaluation", page.evaluation(tables)),
    ]
    files.sweep_partials_of(out)
    files.write_text(out, page.page(_heading(students), _lead(groups), SUBTITLE, sections))
    return Report(out, out.stat().st_size, 0, 0, [], len(students))


def _students(paths: Sequence[Path]) -> list[Student]:
    found: list[Student] = []
    for number, path in enumerate(paths):
        if (path / layout.RECIPE).exists():
            raise OptionError(
                f"{path}: is a store; several paths are compared as runs, so give the store alone"
            )
        if not ((path / "options.json").exists() and (path / "metrics.jsonl").exists()):
            raise OptionError(f"{path}: not a run's folder (options.json, metrics.jsonl)")
        before = next((s.path for s in found if s.path.resolve() == path.resolve()), None)
        if before is not None:
            raise OptionError(f"{path}: is given twice (as {before}); give each run once")
        folder, config, numbers, size = path / "student", {}, None, None
        if (folder / "config.json").exists():
            config = files.read_object(folder / "config.json", inside=path)
            numbers = count_numbers(folder / "model.safetensors", inside=path)
            size = (folder / "model.safetensors").stat().st_size
        found.append(Student(number, path, read_run(path), config, numbers, size))
    return found


def _groups(students: Sequence[Student]) -> list[list[Judged]]:
    """What can be ranked against each other, in order of appearance: one teacher, the same held-out views.

    Runs of an older version do not say their views; those on stores of one recipe are shown together, and not ranked.
    """
    found: dict[tuple[str, str], list[Judged]] = {}
    for student in students:
        for judged in _judged(student):
            views = "" if judged.held_out is None else judged.held_out.sha256
            found.setdefault((judged.recipe, views), []).append(judged)
    return list(found.values())


def _judged(student: Student) -> Iterator[Judged]:
    run = student.run
    teachers = run.summary.get("teachers", {})
    for name, recipe, _ in run.stores or [("", run.store_recipe, 1.0)]:
        about = teachers.get(name, {}) if run.stores else run.summary
        teacher = about.get("teacher", _UNKNOWN) if run.stores else run.teacher or _UNKNOWN
        yield Judged(student, name, one_line(teacher, 100), recipe, run.held_out.get(name), about)


def _title(group: Sequence[Judged], groups: Sequence[Sequence[Judged]]) -> str:
    """Teacher and held-out views of a group; what else tells it from the others, where they sound alike."""
    first = next((judged for judged in group if judged.teacher != _UNKNOWN), group[0])
    alike = [other for other in groups if other[0].teacher == first.teacher]
    recipes = {other[0].recipe for other in alike}
    words = f"{first.teacher}" + (f" (store {first.recipe[:8]})" if len(recipes) > 1 else "")
    if first.held_out is None:
        return (
            f"{words}, on views that the run does not record (not finished, or an older version): not ranked"
        )
    views = f"{counted(first.held_out.views, 'held-out view')}"
    several = len({other[0].held_out.sha256 for other in groups if other[0].held_out is not None}) > 1
    return f"{words}, on {views}" + (f" (set {first.held_out.sha256[:8]})" if several else "")


def _ranked(group: Sequence[Judged]) -> bool:
    return len(group) > 1 and group[0].held_out is not None


def _lead(groups: Sequence[Sequence[Judged]]) -> list[str]:
    """What was found, in a sentence for each group that can be ranked."""
    found = []
    for group in groups:
        name = "cka_unbiased" if any("cka_unbiased_after" in judged.figures for judged in group) else "cka"
        known = [judged for judged in group if f"{name}_after" in judged.figures]
        if not _ranked(group) or len(known) < 2:
            continue
        first, second = sorted(known, key=lambda judged: -judged.figures[f"{name}_after"])[:2]
        found.append(
            f"Nearest to {_title(group, groups)}: student {first.student.number + 1} ({first.student.name}), "
            f"{_FIGURES[name]} {first.figures[f'{name}_after']:.3f}; next is student {second.student.number + 1} "
            f"with {second.figures[f'{name}_after']:.3f}."
        )
    if len(groups) > 1:
        found.append(
            "Not all figures here can be ranked against each other: the students differ in teachers or in held-out "
            "views. Each row of the table says what it compares."
        )
    return found


_Row = tuple[str, list[str], int | None]
"""Head, cells, and the number of the best of them."""


def _table(
    students: Sequence[Student], groups: Sequence[Sequence[Judged]], tables: Sequence[Mapping[str, Any]]
) -> str:
    parts: list[tuple[str, list[_Row]]] = [
        ("What it is", [(name, list(map(of, students)), None) for name, of in _FACTS.items()]),
    ]
    parts += [
        (f"Held out, before → after: {_title(group, groups)}", _agreement(group, len(students)))
        for group in groups
    ]
    parts += [(f"Task: {task}", rows) for task, rows in _tasks(students, tables)]
    parts.append(("Training", [(name, list(map(of, students)), None) for name, of in _TRAINING.items()]))
    kept = [(title, [row for row in rows if any(row[1])]) for title, rows in parts]
    heads = [
        (str(student.number + 1), charts.key(_line(student, [], [])), student.name) for student in students
    ]
    return page.comparison(heads, [(title, rows) for title, rows in kept if rows]) + f"<p>{_RANKING}</p>"


def _heading(students: Sequence[Student]) -> str:
    """How many there are, and of which kinds where that is short; a setting of a kind is for the table."""
    kinds = dict.fromkeys(str(s.run.options["student"]).partition("?")[0] for s in students)
    named = ", ".join(one_line(kind.removeprefix("timm:")) for kind in kinds)
    return f"{len(students)} students" + (f": {named}" if len(named) <= _HEADING else "")


def _architecture(student: Student) -> str:
    found = student.config.get("architecture")
    return one_line(found, 100) if isinstance(found, str) else student.text("name")


def _sees(student: Student) -> str:
    px, shrink = student.about.get("image_px"), student.about.get("shrink", 1)
    if type(px) is not int or type(shrink) is not int or shrink < 1:
        return ""
    return f"{px} px" if shrink == 1 else f"{px} px, as {px // shrink} px"


def _teachers(student: Student) -> str:
    run = student.run
    if not run.stores:
        return one_line(run.teacher or "", 100)
    return "; ".join(
        f"{judged.teacher} ({judged.store}{'' if weight == 1 else f', weight {weight:g}'})"
        for judged, (_, _, weight) in zip(_judged(student), run.stores, strict=True)
    )


def _tokens(student: Student) -> str:
    """Which terms of the loss learn from patch tokens."""
    text = str(student.run.options.get("loss"))
    used = [term for term in (*loss_spec.TOKEN_TERMS, "attention") if term in text]
    return f"patch tokens ({', '.join(used)})" if used else "features alone"


def _begins(student: Student) -> str:
    options = student.run.options
    seed = options.get("random_weights")
    return f"random weights, seed {seed}" if type(seed) is int else "weights"


def _number(student: Student, name: str, form: str = "{:,.0f}") -> str:
    value = student.run.summary.get(name)
    return form.format(value) if isinstance(value, int | float) else ""


def _option(name: str) -> Any:
    def found(student: Student) -> str:
        value = student.run.options.get(name)
        return "" if value is None else one_line(value, 100)

    return found


def _millions(number: float) -> str:
    return f"{number / 1e6:.1f} million" if number >= 1e5 else f"{number:,.0f}"


def _state(student: Student) -> str:
    summary = student.run.summary
    if not summary:
        steps = max((record["step"] for record in student.run.records), default=0)
        return f"not finished, {steps:,} steps"
    return "stopped early" if summary.get("stopped_early") else "finished"


_FACTS = {
    "architecture": _architecture,
    "parameters, with buffers": lambda s: "" if s.numbers is None else _millions(s.numbers),
    "file": lambda s: "" if s.size is None else human_bytes(s.size),
    "numbers in an embedding": lambda s: s.text("dim"),
    "class tokens": lambda s: s.text("class_tokens"),
    "sees": _sees,
    "terms": lambda s: s.text("licence"),
}
_TRAINING = {
    "teachers": _teachers,
    "learns from": _tokens,
    "loss": _option("loss"),
    "began with": _begins,
    "learning rate": _option("lr"),
    "batch": _option("batch_size"),
    "steps": lambda s: _number(s, "steps"),
    "views seen": lambda s: _number(s, "views_seen"),
    "views/s in training, on its machine": lambda s: _number(s, "views_per_s", "{:,.1f}"),
    "state": _state,
    "date": lambda s: origin.last_date(s.path / files.RUN_LOG) or "",
}


def _agreement(group: Sequence[Judged], n: int) -> list[_Row]:
    """A row for each figure; the best is marked where the group can be ranked."""
    rows: list[_Row] = []
    for name, title in _FIGURES.items():
        form = "{:.1%}" if name == "explained" else "{:.3f}"
        cells, values = [""] * n, [-math.inf] * n
        for judged in group:
            before, after = (judged.figures.get(f"{name}_{when}") for when in ("before", "after"))
            if after is None:
                continue
            number = judged.student.number
            change = "" if before is None else f"{form.format(before)} → "
            cells[number] = (change + form.format(after)).replace("-0.000", "0.000")
            values[number] = after
        rows.append((title, cells, _best(values) if _ranked(group) else None))
    return rows


def _best(values: Sequence[float]) -> int | None:
    """The number of the largest, where there are two to choose from."""
    known = [value for value in values if value > -math.inf]
    return values.index(max(known)) if len(known) > 1 else None


def _tasks(
    students: Sequence[Student], tables: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, list[_Row]]]:
    """The figures of tables whose encoders are students here, by the digest of their weights."""
    for number, table in enumerate(tables):
        named = {digest: name for name, digest in weights_of(table).items()}
        columns = {
            named[s.text("weights_sha256")]: s.number for s in students if s.text("weights_sha256") in named
        }
        found: dict[str, dict[str, tuple[list[str], list[float]]]] = {}
        for result in table["results"]:
            if result["name"] not in columns:
                continue
            column = columns[result["name"]]
            for row in result["figures"]:
                rows = found.setdefault(str(result["task"]), {})
                cells, values = rows.setdefault(
                    page.title_of(row), ([""] * len(students), [-math.inf] * len(students))
                )
                cells[column] = page.figure_text(row)
                values[column] = -math.inf if row["value"] is None else float(row["value"])
        controls = page.controls_of(table)
        for task, rows in found.items():
            of = f" (table {number + 1})" if len(tables) > 1 else ""
            yield (
                f"{task}{of}",
                [
                    (title, cells, None if task in controls or "std" in title else _best(values))
                    for title, (cells, values) in rows.items()
                ],
            )


def _line(student: Student, x: Sequence[float], y: Sequence[float], dots: bool = True) -> charts.Line:
    return charts.Line(student.name, x, y, charts.kind_of(student.number), dots, student.number)


def _curves(students: Sequence[Student], groups: Sequence[Sequence[Judged]]) -> str:
    legend = "".join(
        f"<span>{charts.key(_line(s, [], []))}{html_text(f'{s.number + 1} {s.name}')}</span>"
        for s in students
    )
    parts = []
    for group in groups:
        drawn = "".join(
            charts.line_chart(title, "views seen", [_held_out(judged, name) for judged in group])
            for name, title in _FIGURES.items()
        )
        parts += [f"<h3>{html_text(_title(group, groups))}</h3>", page.charts_of(drawn)] if drawn else []
    by_loss: dict[str, list[Student]] = {}
    for student in students:
        by_loss.setdefault(_settings_of_loss(student), []).append(student)
    drawn = "".join(
        charts.line_chart(settings, "views seen", [_loss(student) for student in of])
        for settings, of in by_loss.items()
    )
    parts += [f"<h3>Training loss</h3><p>{_LOSSES}</p>", page.charts_of(drawn)] if drawn else []
    return f'<p>{_CURVES}</p><div class="legend large">{legend}</div>{"".join(parts)}' if parts else ""


def _settings_of_loss(student: Student) -> str:
    options, run = student.run.options, student.run
    words = [str(options.get("loss"))]
    if "log-sum" in words[0]:
        words.append(f"alpha {options.get('alpha')}")
    words += [f"targets normalised by {options.get('teacher_norm')}", f"batch {options.get('batch_size')}"]
    recipes = [recipe for _, recipe, _ in run.stores] or [run.store_recipe]
    words.append(f"store {', '.join(recipe[:8] for recipe in recipes)}")
    return one_line("; ".join(words), 160)


def _views_per_step(student: Student) -> float:
    """Views of a step, over all processes; those of one process while the run is not finished."""
    summary, batch = student.run.summary, student.run.options.get("batch_size")
    if summary.get("views_seen") and summary.get("steps"):
        return float(summary["views_seen"] / summary["steps"])
    return float(batch) if isinstance(batch, int | float) else 1.0


def _drawn(student: Student, records: Iterable[tuple[int, Any]], dots: bool) -> charts.Line:
    each = _views_per_step(student)
    known = [(step * each, value) for step, value in records if value is not None]
    return _line(student, [x for x, _ in known], [y for _, y in known], dots)


def _held_out(judged: Judged, name: str) -> charts.Line:
    """The curve of a figure against one teacher."""
    records = [record for record in judged.student.run.records if record["kind"] == "val"]
    of = [(r["step"], r.get("teachers", {}).get(judged.store, {}) if judged.store else r) for r in records]
    return _drawn(judged.student, [(step, figures.get(name)) for step, figures in of], True)


def _loss(student: Student) -> charts.Line:
    records = [record for record in student.run.records if record["kind"] == "train"]
    return _drawn(student, [(r["step"], r.get("loss")) for r in records], False)
