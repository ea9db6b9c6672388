"""The commands beside the stages: report, models, doctor, demo."""

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.click_options import JSON, PATH, Command, build, options_of, print_result, show
from pipeline.report.options import ReportOptions


@click.command("report", cls=Command, short_help="Write one HTML page on a run or a store")
@click.argument("paths", metavar="RUN|STORE [RUN]...", type=PATH, nargs=-1, required=True)
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    help="File to write. [default: report.html in a run, STORE-report.html beside a store, comparison.html here for "
    "several runs]",
)
@options_of(ReportOptions)
def report_command(paths: tuple[Path, ...], out: Path | None, as_json: bool, **values: Any) -> None:
    """Write one HTML page on a run or a store: curves, slides, features, neighbours, views, tables. Works offline.

    Of several runs the page compares the students: what they are, how near they are to which teacher, curves, tables.
    """
    from pipeline.report.compare import write_comparison
    from pipeline.report.report import write_report
    from pipeline.runtime.progress import reporter_for

    options, path = build(ReportOptions, values), paths[0]
    if len(paths) > 1:
        show(as_json, write_comparison(paths, out or Path("comparison.html"), options))
        return
    chosen = out or (
        path / "report.html" if (path / "metrics.jsonl").is_file() else Path(f"{path}-report.html")
    )
    with reporter_for(sys.stderr) as report:
        result = write_report(path, chosen, options, report)
    show(as_json, result)


@click.command("models", cls=Command, short_help="List the encoders that are known by name")
@JSON
def models_command(as_json: bool) -> None:
    """List the encoders that are known by name, with dimension, size and licence."""
    from pipeline.encoders import listing

    print_result(as_json, listing.to_json(), listing.lines)


@click.command("doctor", cls=Command, short_help="Check this machine")
@JSON
def doctor_command(as_json: bool) -> None:
    """Check this machine: versions, devices, OpenSlide, free disk space, and access to weights."""
    from pipeline.demo.doctor import examine

    show(as_json, examine(Path.cwd()))


@click.command("demo", cls=Command, short_help="Run both stages on synthetic slides")
@click.option("--out", default="demo", type=PATH, metavar="DIR", help="Folder to write into. [default: demo]")
@JSON
def demo_command(out: Path, as_json: bool) -> None:
    """Run both stages on small synthetic slides that the command itself writes. Takes a few minutes on a CPU."""
    from pipeline.demo.demo import run_demo
    from pipeline.runtime.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = run_demo(out, report)
    show(as_json, result)
