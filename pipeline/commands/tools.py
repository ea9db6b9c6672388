"""The commands beside the stages: report, models, doctor, demo."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.click_options import JSON, PATH, build, options_of, print_result
from pipeline.report.options import ReportOptions


@click.command("report")
@click.argument("path", type=PATH)
@click.option("--out", type=PATH, help="File to write; report.html beside or in PATH.")
@options_of(ReportOptions)
def report_command(path: Path, out: Path | None, as_json: bool, **values: Any) -> None:
    """One HTML page about a run or a store: curves, slides, features, neighbours, views, tables. Works offline."""
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


@click.command("models")
@JSON
def models_command(as_json: bool) -> None:
    """The encoders that are known by name, with dimension, size and licence."""
    from pipeline.commands import summaries
    from pipeline.encoders.presets import PRESETS

    rows = [dataclasses.asdict(preset) for preset in PRESETS.values()]
    print_result(as_json, {"models": rows}, lambda: summaries.model_lines(rows))


@click.command("doctor")
@JSON
def doctor_command(as_json: bool) -> None:
    """Check this machine: versions, devices, OpenSlide, free disk, whether weights can be reached."""
    from pipeline.demo import doctor as examine

    result = examine.examine(Path.cwd())
    print_result(as_json, result, lambda: examine.lines(result))


@click.command("demo")
@click.option("--out", default="demo", show_default=True, type=PATH, help="Folder to write into.")
@JSON
def demo_command(out: Path, as_json: bool) -> None:
    """Both stages on small synthetic slides that the command writes itself; a few minutes on a CPU."""
    from pipeline.demo import demo as whole
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = whole.run_demo(out, report)
    print_result(as_json, result, lambda: whole.lines(out, result))
