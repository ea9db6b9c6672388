"""``report``: one HTML page about a run or a store, complete in itself: no server, no other file, no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.distill.metrics_log import read_metrics
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from pipeline.report import page
from pipeline.report.gather import Gathered, gather
from pipeline.report.options import ReportOptions
from pipeline.runtime.progress import Reporter
from stores.errors import EncoderError, OptionError
from stores.format import layout, recipe
from stores.format.layout import read_options
from stores.info import store_info
from stores.io import files
from stores.io.text import human_bytes


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    path: Path
    size: int
    slides: int
    patches: int
    notes: Sequence[str]


def write_report(path: Path, out: Path, options: ReportOptions, report: Reporter) -> Report:
    """Write the page about `path`, a run's folder or a store, to `out`.

    Raises
    ------
    OptionError
        When `path` is neither, or options do not fit.
    """
    options.validate()
    tables = [_table(table) for table in options.tables]
    if (path / layout.RECIPE).is_file():
        title, sections, found = _of_store(path, options, report)
    elif (path / "options.json").is_file() and (path / "metrics.jsonl").is_file():
        title, sections, found = _of_run(path, options, report)
    else:
        raise OptionError(
            f"{path}: neither a run's folder (options.json, metrics.jsonl) nor a store ({layout.RECIPE})"
        )
    sections.append(("evaluation", "Evaluation", page.evaluation(tables)))
    subtitle = (
        "Made by g2l; complete in itself: it can be opened, printed and sent as it is. Not for clinical use."
    )
    files.write_text(out, page.page(title, subtitle, sections))
    slides = found.slides if found else []
    return Report(
        out, out.stat().st_size, len(slides), sum(len(s.rows) for s in slides), found.notes if found else []
    )


def _table(path: Path) -> Mapping[str, Any]:
    value = files.read_json(path)
    try:
        rows = [row for result in value["results"] for row in result["figures"]]
        whole = all({"figure", "k", "value"} <= set(row) for row in rows)
        whole = whole and all({"task", "name"} <= set(result) for result in value["results"])
    except (TypeError, KeyError):
        whole = False
    if not whole:
        raise OptionError(f"--tables {path}: not a table.json of `g2l evaluate all`")
    found: Mapping[str, Any] = value
    return found


Sections = list[tuple[str, str, str]]


def _of_store(path: Path, options: ReportOptions, report: Reporter) -> tuple[str, Sections, Gathered | None]:
    if options.store is not None:
        raise OptionError(f"--store {options.store}: is for the report of a run, and {path} is a store")
    student = None
    if options.student is not None:
        student = load_encoder(options.student, random_weights=options.random_weights)
    found = gather(path, student, options, report)
    sections = [("about", "What it is", _store_facts(path) + _notes(found)), *_shown(found)]
    return f"Store {path.resolve().name}", sections, found


def _of_run(path: Path, options: ReportOptions, report: Reporter) -> tuple[str, Sections, Gathered | None]:
    begun = files.read_json(path / "options.json")
    records = read_metrics(path / "metrics.jsonl")
    summary = files.read_json(path / "summary.json") if (path / "summary.json").is_file() else {}
    found: Gathered | None = None
    about = _run_facts(begun, summary)
    if options.student is not None:
        raise OptionError(f"--student {options.student}: a run has its own; it is for the report of a store")
    if options.store is not None:
        if recipe.load(options.store).digest() != begun["store_recipe"]:
            raise OptionError(
                f"--store {options.store}: another store than the run trained on (recipe {begun['store_recipe'][:12]})"
            )
        student = _student(path, begun["options"]["student"])
        before, why = _before(begun["options"]) if student else (None, "")
        found = gather(options.store, student, options, report, before)
        found.notes += [why] * bool(why)
        about += "<h3>Its store</h3>" + _store_facts(options.store) + _notes(found)
    figures = _figures(summary, found)
    sections = [
        ("about", "What it is", figures + about),
        ("training", "Training", page.curves(records)),
        *(_shown(found) if found else []),
    ]
    return f"Run {path.resolve().name}", sections, found


def _student(run: Path, name: str) -> Encoder | None:
    """The student of a run, None while it trains; one made by a user's function opens by the function's name."""
    folder = run / "student"
    if not (folder / "config.json").is_file():
        return None
    if "architecture" in files.read_json(folder / "config.json"):
        return load_encoder(str(folder))
    return load_encoder(name, weights=folder)


def _before(options: Mapping[str, Any]) -> tuple[Encoder | None, str]:
    """The student as the run began with it, or why it cannot be had."""
    weights = None if options.get("weights") is None else Path(options["weights"])
    try:
        return load_encoder(
            options["student"], weights=weights, random_weights=options.get("random_weights")
        ), ""
    except EncoderError as error:
        return None, f"the student before training could not be loaded: {error}"


def _shown(found: Gathered) -> Sections:
    return [
        ("slides", "Slides, features and neighbours", page.browser(found)),
        ("views", "Views of a patch", page.seeds(found)),
    ]


def _notes(found: Gathered) -> str:
    return page.facts([("note", note) for note in found.notes]) if found.notes else ""


def _figures(summary: Mapping[str, Any], found: Gathered | None) -> str:
    """The large figures of a run."""

    def change(name: str) -> str | None:
        before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
        return None if before is None or after is None else f"{before:.3f} → {after:.3f}"

    pairs = [
        ("linear CKA to the teacher, held out, before and after", change("cka")),
        ("cosine to the teacher, held out, before and after", change("cosine")),
    ]
    if found is not None and found.cka is not None:
        before = "" if found.cka_before is None else f"{found.cka_before:.3f} → "
        text = "linear CKA to the teacher on the patches below" + (", before and after" if before else "")
        pairs.append((text, f"{before}{found.cka:.3f}"))
    if summary.get("data_wait") is not None:
        pairs.append(("of the time waiting for data", f"{summary['data_wait']:.1%}"))
    if found is not None and found.agreement is not None:
        pairs.append(
            ("of the nearest neighbours below are shared with the teacher", f"{found.agreement:.0%}")
        )
    return page.tiles([(name, value) for name, value in pairs if value is not None])


def _run_facts(begun: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    options = begun["options"]
    names = ("student", "loss", "alpha", "teacher_norm", "batch_size", "lr", "weight_decay", "seeds", "seed")
    pairs: list[tuple[str, Any]] = [(name.replace("_", " "), options.get(name)) for name in names]
    for name in ("steps", "steps_planned", "views_seen", "loss_first", "loss_last", "views_per_s", "seconds"):
        value = summary.get(name)
        pairs.append((name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value))
    if not summary:
        pairs.append(("state", "not finished"))
    elif summary.get("stopped_early"):
        pairs.append(("state", "stopped early"))
    return page.facts([*pairs, ("recipe of its store", str(begun["store_recipe"])[:16])])


def _store_facts(path: Path) -> str:
    info = store_info(path)
    stored = recipe.load(path)
    teacher, patch = stored.teacher, stored.patch
    pairs: list[tuple[str, Any]] = [
        ("teacher", teacher.name if teacher else "none yet"),
        ("its weights", teacher.weights_sha256[:16] if teacher else ""),
        (
            "features",
            f"{teacher.dim} numbers, {teacher.pooling}, computed in {teacher.dtype}" if teacher else "",
        ),
        ("licence of the teacher", read_options(path, "extract-teacher").get("teacher_licence")),
        ("patches", f"{patch.size_px} px at {patch.mpp:g} micrometres a pixel, {patch.grid}"),
        ("policy", stored.policy["name"] if stored.policy else ""),
        ("slides", info["slides"]),
        ("patches in all", f"{info['patches']:,}"),
        ("views", f"{info['views']:,} under seeds {', '.join(map(str, info['seeds']))}"),
        ("complete", f"{info['complete']:.1%}"),
        ("patches that could not be read", info["bad_reads"]),
        ("size", human_bytes(sum(info["bytes"].values()))),
        ("recipe", stored.digest()[:16]),
    ]
    return page.facts(pairs)
