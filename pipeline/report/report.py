"""``report``: one HTML page about a run or a store, complete in itself: no server, no other file, no network."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.distill.result import HELP_PAGE, by_teacher, came_no_nearer, of_features, to_teacher
from pipeline.encoders.load import load_encoder
from pipeline.report import origin, page
from pipeline.report.gather import Gathered, gather
from pipeline.report.options import ReportOptions
from pipeline.report.run_files import RunFiles, read_run, short_name
from pipeline.report.students import students_of
from pipeline.report.tables import read_table
from pipeline.runtime.progress import Reporter
from stores.errors import OptionError
from stores.format import layout, recipe
from stores.format.terms import expression, of_store
from stores.info import store_info
from stores.io import files
from stores.io.location import LOGS
from stores.io.text import counted, human_bytes

SUBTITLE = "Made by g2l. The page needs no other file and no network. Not for clinical use."
_SHARING = "This page contains slide ids and tissue images. Share it only with people who may see the slides."
_CKA = (
    "Linear CKA compares how two encoders arrange the same images. It is 1 when the two sets of features are equal up "
    "to a rotation, a shift and one scale factor. A CKA of 0.9 does not say that the student is as good as the "
    "teacher at a task: measure that with g2l evaluate. With few views the value comes out too high; the unbiased "
    "form does not."
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    path: Path
    size: int
    """Bytes."""
    slides: int
    patches: int
    notes: Sequence[str]
    students: int = 1
    """Runs that are compared; 1 on the page of one run or store."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def lines(self) -> list[str]:
        """The same as text."""
        shown = f"{counted(self.slides, 'slide')}, {counted(self.patches, 'patch', 'patches')}"
        if self.students > 1:
            shown = f"{self.students} students"
        return [
            f"{self.path}: {human_bytes(self.size)}, {shown}",
            *(f"note: {note}" for note in self.notes),
        ]


def write_report(path: Path, out: Path, options: ReportOptions, report: Reporter) -> Report:
    """Write the page about `path`, a run's folder or a store, to `out`.

    Raises
    ------
    OptionError
        When `path` is neither, or options do not fit.
    """
    options.validate()
    tables = [read_table(table) for table in options.tables]
    if (path / layout.RECIPE).exists():
        title, lead, sections, found = _of_store(path, options, report)
    elif (path / "options.json").exists() and (path / "metrics.jsonl").exists():
        title, lead, sections, found = _of_run(path, options, report)
    else:
        raise OptionError(
            f"{path}: neither a run's folder (options.json, metrics.jsonl) nor a store ({layout.RECIPE})"
        )
    sections.append(("evaluation", "Evaluation", page.evaluation(tables)))
    if found is not None:
        has_tiles = any(slide.captions for slide in found.slides)
        lead = [*lead, _SHARING.replace("slide ids", "names of tiles' files") if has_tiles else _SHARING]
    files.sweep_partials_of(out)
    files.write_text(out, page.page(title, lead, SUBTITLE, sections))
    slides = found.slides if found else []
    return Report(
        out, out.stat().st_size, len(slides), sum(len(s.rows) for s in slides), found.notes if found else []
    )


Sections = list[tuple[str, str, str]]
Content = tuple[str, list[str], Sections, Gathered | None]
"""Title, sentences at the top, sections, and what was read of slides."""


def _of_store(path: Path, options: ReportOptions, report: Reporter) -> Content:
    if options.store is not None:
        raise OptionError(f"--store {options.store}: is for the report of a run, and {path} is a store")
    student = None
    if options.student is not None:
        student = load_encoder(
            options.student, weights=options.weights, random_weights=options.random_weights
        )
    found = gather(path, student, options, report)
    info = store_info(path)
    sections = [
        ("about", "What it is", _figures({}, found) + _store_facts(path, info) + _notes(found)),
        *_shown(found),
    ]
    name = recipe.load_complete(path).teacher.name
    held = f"The store holds {info['views']:,} views of {info['patches']:,} patches from {info['slides']:,} slides"
    lead = [f"{held}, with features of {name}; it is {info['complete']:.1%} complete."]
    if found.cka is not None:
        lead.append(
            f"{options.student} reaches a linear CKA of {found.cka.linear:.3f} to the teacher on the patches shown."
        )
    return f"Features of {name} in {short_name(path)}", lead, sections, found


def _of_run(path: Path, options: ReportOptions, report: Reporter) -> Content:
    run = read_run(path)
    found: Gathered | None = None
    stored = None if options.store is None else recipe.load_complete(options.store)
    command = origin.distill_command(run.options, _stores_of(run, options.store, stored), str(path))
    about = _run_facts(path, run) + page.command(command)
    if options.student is not None and options.store is None:
        raise OptionError(f"--student {options.student}: needs --store, whose patches the student embeds")
    teacher, data, whose = run.teacher, "", "the teacher"
    if options.store is not None and stored is not None:
        recipes = [digest for _, digest, _ in run.stores] or [run.store_recipe]
        if stored.digest() not in recipes:
            known = " or ".join(digest[:12] for digest in recipes)
            raise OptionError(
                f"--store {options.store}: another store than the run trained on (recipe {known})"
            )
        teacher, data = stored.teacher.name, f" on {short_name(options.store)}"
        if run.stores:
            whose = f"{teacher} ({short_name(options.store)})"
            teacher, data = f"{len(run.stores)} teachers", f"; patches and features of {teacher}{data}"
        trained, before, left_out = students_of(path, run.options, options)
        found = gather(options.store, trained, options, report, before)
        found.notes += left_out
        facts = _store_facts(options.store, store_info(options.store))
        about += f"<h3>{'One of its stores' if run.stores else 'Its store'}</h3>" + facts + _notes(found)
    sections = [
        ("about", "What it is", _figures(run.summary, found, whose) + _by_teacher(run) + about),
        ("training", "Training", page.curves(run.records, bool(run.stores))),
        *(_shown(found) if found else []),
    ]
    name = run.options["student"]
    title = f"{name}, distilled from {teacher}{data}" if teacher else f"{name}, distilled{data}"
    return title, [_finding(run.summary, run.records)], sections, found


def _stores_of(run: RunFiles, given: Path | None, stored: recipe.CompleteRecipe | None) -> list[str]:
    """What ``--store`` says in the command of a run: a path for the store that is given here, names for others."""
    if not run.stores:
        return [str(given or "STORE")]
    here = None if stored is None else stored.digest()
    return [
        f"{given if digest == here else name}{'' if weight == 1 else f':{weight:g}'}"
        for name, digest, weight in run.stores
    ]


def _by_teacher(run: RunFiles) -> str:
    """The agreement with each of several teachers; the large figures above are means over them."""
    changes = by_teacher(run.summary, "→")
    if not changes:
        return ""
    names = {
        "cka": "linear CKA",
        "cka_unbiased": "unbiased CKA",
        "cosine": "cosine",
        "explained": "explained",
    }
    rows = [[teacher, *(of.get(name, "") for name in names)] for teacher, of in changes]
    return "<h3>Each teacher, held out, before and after</h3>" + page.table(
        "teachers", ["teacher (store)", *names.values()], rows
    )


def _finding(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """What the run found, in one sentence."""
    if not summary:
        steps = max((record.get("step", 0) for record in records), default=0)
        return f"The run is not finished: {steps:,} steps are on record."
    before, after = summary.get("cka_before"), summary.get("cka_after")
    if after is None:
        return (
            f"The loss went from {summary['loss_first']:.3f} to {summary['loss_last']:.3f} in {summary['steps']:,} "
            "steps; agreement was not measured on held-out views."
        )
    change = "" if before is None else f" ({before:.3f} before training)"
    said = f"a linear CKA of {after:.3f} {to_teacher(summary)} on held-out views{change}"
    explained = _change(summary, "explained", "{:.1%}")
    if explained is not None:
        said += f", and explains {explained} of the variance of the {of_features(summary)} there"
    if came_no_nearer(summary):
        return f"Training did not bring the student nearer {to_teacher(summary)}: it reaches {said}. See {HELP_PAGE}."
    return f"The student reaches {said}."


def _change(summary: Mapping[str, Any], name: str, form: str) -> str | None:
    """A figure of a run before and after its training; None where one of them is missing."""
    before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
    return None if before is None or after is None else f"{form.format(before)} → {form.format(after)}"


def _shown(found: Gathered) -> Sections:
    return [
        ("slides", "Slides, features and neighbours", page.browser(found)),
        ("views", "Views of a patch", page.seeds(found)),
    ]


def _notes(found: Gathered) -> str:
    return page.facts([("note", note) for note in found.notes]) if found.notes else ""


def _figures(summary: Mapping[str, Any], found: Gathered | None, whose: str = "the teacher") -> str:
    """The large figures of a run; `whose` features are on the page."""
    held_out = f"{to_teacher(summary)}, held out, before and after"
    pairs = [
        (f"linear CKA {held_out}", _change(summary, "cka", "{:.3f}")),
        (f"unbiased CKA {held_out}", _change(summary, "cka_unbiased", "{:.3f}")),
        (
            f"of the variance of the {of_features(summary)} explained, held out, before and after",
            _change(summary, "explained", "{:.1%}"),
        ),
        (f"cosine {held_out}", _change(summary, "cosine", "{:.3f}")),
    ]
    for form, name in (("linear", "linear CKA"), ("unbiased", "unbiased CKA")):
        values = [
            f"{getattr(of, form):.3f}"
            for of in ((found.cka_before, found.cka) if found is not None else ())
            if of is not None and getattr(of, form) is not None
        ]
        if found is not None and found.cka is not None and getattr(found.cka, form) is not None:
            text = f"{name} to {whose} on the patches below" + (
                ", before and after" if len(values) > 1 else ""
            )
            pairs.append((text, " → ".join(values)))
    if summary.get("slides_per_step") is not None:
        pairs.append(("slides in a step, on the mean", f"{summary['slides_per_step']:.1f}"))
    if summary.get("data_wait") is not None:
        pairs.append(("of the time waiting for data", f"{summary['data_wait']:.1%}"))
    if found is not None and found.agreement is not None:
        pairs.append((f"of the nearest neighbours below are shared with {whose}", f"{found.agreement:.0%}"))
    shown = [(name, value) for name, value in pairs if value is not None]
    explained = f"<p>{_CKA}</p>" if any("CKA" in name for name, _ in shown) else ""
    return page.tiles(shown) + explained if shown else ""


def _run_facts(path: Path, run: RunFiles) -> str:
    options, summary = run.options, run.summary
    names = ("student", "loss", "alpha", "teacher_norm", "batch_size", "lr", "weight_decay", "seeds", "seed")
    pairs: list[tuple[str, Any]] = [(name.replace("_", " "), options.get(name)) for name in names]
    for name in ("steps", "steps_planned", "views_seen", "loss_first", "loss_last", "views_per_s", "seconds"):
        value = summary.get(name)
        pairs.append((name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value))
    if not summary:
        pairs.append(("state", "not finished"))
    elif summary.get("stopped_early"):
        pairs.append(("state", "stopped early"))
    pairs += [
        ("date", origin.last_date(path / files.RUN_LOG)),
        ("version of g2l", summary.get("g2l_version")),
        (
            "recipes of its stores" if run.stores else "recipe of its store",
            ", ".join(digest[:16] for _, digest, _ in run.stores) or run.store_recipe[:16],
        ),
    ]
    return page.facts(pairs)


def _qc(info: Mapping[str, Any]) -> str:
    """What another tool says of the patches of a store; empty where it was never asked."""
    if "qc" not in info:
        return ""
    judged = info["qc"]
    rows = []
    for column, of in judged["columns"].items():
        figures = [f"{of[name]:.3g}" if name in of else "" for name in ("mean", "p95", "max")]
        rows.append([column.removeprefix("qc_"), *figures, f"{of['known']:,}", f"{of['unknown']:,}"])
    head = ["class or score", "mean", "95th percentile", "max", "patches", "patches without a value"]
    said = f"{counted(judged['left_out'], 'patch', 'patches')} with enough tissue left out at tiling."
    return f"<h3>Quality, as another tool judged it</h3><p>{said}</p>" + (
        page.table("quality", head, rows) if rows else ""
    )


_DECLARED = "the features were imported from files of {}: teacher and views are what was declared, not proven"


def _store_facts(path: Path, info: Mapping[str, Any]) -> str:
    stored = recipe.load(path)
    teacher, patch = stored.teacher, stored.patch
    pairs: list[tuple[str, Any]] = [
        ("teacher", teacher.name if teacher else "none yet"),
        ("its weights", teacher.weights_sha256[:16] if teacher else ""),
        ("declared", _DECLARED.format(stored.declared.by) if stored.declared else None),
        (
            "features",
            f"{teacher.dim} numbers, {teacher.pooling}, computed in {teacher.dtype}" if teacher else "",
        ),
        ("licence of the teacher", expression(of_store(path, teacher.name)) if teacher else None),
        ("patches", f"{patch.size_px} px at {patch.mpp:g} micrometres a pixel, {patch.grid}"),
        ("policy", stored.policy["name"] if stored.policy else ""),
        ("slides", info["slides"]),
        ("patches in all", f"{info['patches']:,}"),
        *origin.split_sizes(path, info),
        ("views", f"{info['views']:,} under seeds {', '.join(map(str, info['seeds']))}"),
        ("complete", f"{info['complete']:.1%}"),
        ("patches that could not be read", info["bad_reads"]),
        ("size", human_bytes(sum(info["bytes"].values()))),
        ("recipe", stored.digest()[:16]),
        ("date of its last extraction", origin.last_date(path / LOGS / "extract-teacher.jsonl")),
    ]
    return page.facts(pairs) + _qc(info)
