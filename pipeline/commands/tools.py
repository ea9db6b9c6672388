"""The commands beside the stages: report, models, doctor, demo."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.click_options import JSON, PATH, Command, build, options_of, print_result
from pipeline.report.options import ReportOptions


@click.command("report", cls=Command, short_help="Write one HTML page on a run or a store")
@click.argument("path", type=PATH)
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    help="File to write. [default: report.html in a run, STORE-report.html beside a store]",
)
@options_of(ReportOptions)
def report_command(path: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """Write one HTML page on a run or a store: curves, slides, features, neighbours, views, tables. Works offline."""
    from pipeline.report.report import write_report
    from pipeline.runtime.progress import reporter_for

    chosen = out or (
        path / "report.html" if (path / "metrics.jsonl").is_file() else Path(f"{path}-report.html")
    )
    with reporter_for(sys.stderr) as report:
        result = write_report(path, chosen, build(ReportOptions, values), report)
    summary = dataclasses.asdict(result) | {"path": str(result.path)}
    said = f"{result.path}: {result.size / 1e6:.1f} MB, {result.slides} slides, {result.patches} patches"
    print_result(as_json, summary, lambda: [said, *(f"note: {note}" for note in result.notes)])


@click.command("models", cls=Command, short_help="List the encoders that are known by name")
@JSON
def models_command(as_json: bool) -> None:
    """List the encoders that are known by name, with dimension, size and licence."""
    from pipeline.commands import summaries
    from pipeline.encoders.presets import PRESETS

    rows = [dataclasses.asdict(preset) for preset in PRESETS.values()]
    print_result(as_json, {"models": rows}, lambda: summaries.model_lines(rows))


@click.command("doctor", cls=Command, short_help="Check this machine")
@JSON
def doctor_command(as_json: bool) -> None:
    """Check this machine: versions, devices, OpenSlide, free disk space, and access to weights."""
    from pipeline.demo import doctor as examine

    result = examine.examine(Path.cwd())
    print_result(as_json, result, lambda: examine.lines(result))


@click.command("demo", cls=Command, short_help="Run both stages on synthetic slides")
@click.option("--out", default="demo", type=PATH, metavar="DIR", help="Folder to write into. [default: demo]")
@JSON
def demo_command(out: Path, as_json: bool) -> None:
    """Run both stages on small synthetic slides that the command itself writes. Takes a few minutes on a CPU."""
    from pipeline.demo import demo as whole
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = whole.run_demo(out, report)
    print_result(as_json, result, lambda: whole.lines(out, result))
