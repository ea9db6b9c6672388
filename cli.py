"""The command line: parse, call one function, print. Everything heavy is imported inside the commands."""

import dataclasses
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.cli_options import JSON, PATH, Commands, build, options_of, print_result, tile_options
from pipeline.options import DistillOptions, ExtractOptions, TileOptions
from stores.errors import SOME_SLIDES_FAILED


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="g2l")
def g2l() -> None:
    """Distil a giant pathology encoder into a small one, from a store of teacher features.

    tile -> extract-teacher -> distill. Every command can be stopped at any moment and started again.
    """


@g2l.command()
@click.argument("slides", nargs=-1, required=True, type=PATH)
@click.option("--store", required=True, type=PATH, help="Folder of the store.")
@options_of(TileOptions)
def tile(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Find tissue, lay the patch grid, split by patient; writes a picture of each slide."""
    from pipeline import summaries, tiling
    from pipeline.progress import reporter_for

    options = tile_options(store, values)
    with reporter_for(sys.stderr) as report:
        result = tiling.tile(slides, store, options, report)
    print_result(as_json, summaries.tile_json(store, result), lambda: summaries.tile_lines(store, result))
    _exit_if(bool(result.unusable))


@g2l.command("extract-teacher")
@click.argument("slides", nargs=-1, required=True, type=PATH)
@click.option("--store", required=True, type=PATH, help="Folder of the store.")
@options_of(ExtractOptions, TileOptions)
def extract_teacher(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Run the teacher once over every view of every patch; tiles first what is not tiled."""
    from pipeline import extract, summaries
    from pipeline.progress import reporter_for

    options, tiling = build(ExtractOptions, values), tile_options(store, values)
    with reporter_for(sys.stderr) as report:
        result = extract.extract(slides, store, options, tiling, report)
    print_result(
        as_json, summaries.extract_json(store, result), lambda: summaries.extract_lines(store, result)
    )
    _exit_if(bool(result.failed_slides or result.bad_reads))


@g2l.command()
@click.option("--store", required=True, type=PATH, help="Folder of the store.")
@click.option("--out", "run", required=True, type=PATH, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Insist on going on from a checkpoint; a run goes on anyway.")
@options_of(DistillOptions)
def distill(store: Path, run: Path, resume: bool, as_json: bool, **values: Any) -> None:
    """Train a student against the store, with no teacher in memory."""
    from pipeline import summaries
    from pipeline.distill.train import distill as train
    from pipeline.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = train(store, run, build(DistillOptions, values), resume, report)
    print_result(as_json, result, lambda: summaries.distill_lines(run, result))


@g2l.group()
def store() -> None:
    """Look at a store."""


@store.command()
@click.argument("path", type=PATH)
@JSON
def info(path: Path, as_json: bool) -> None:
    """What a store holds: recipe, slides, patches, views per seed and split, bytes, completeness."""
    from pipeline import summaries
    from stores.info import store_info

    result = store_info(path)
    print_result(as_json, result, lambda: summaries.info_lines(path, result))


@store.command()
@click.argument("path", metavar="STORE", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder of the new store.")
@click.option("--pseudonymise", type=PATH, help="File with a key: keyed hashes replace all names.")
@click.option("--compact", type=click.Choice(["lossless", "int8"]), help="Smaller features.")
@click.option("--no-pixels", is_flag=True, help="Leave the patches' pixels out.")
@click.option("--keep-column", multiple=True, help="Column of your own that may leave under pseudonyms.")
@click.option("--mapping", type=PATH, help="CSV of names and pseudonyms to write, for yourself.")
@JSON
def export(
    path: Path,
    out: Path,
    pseudonymise: Path | None,
    compact: str | None,
    no_pixels: bool,
    keep_column: tuple[str, ...],
    mapping: Path | None,
    as_json: bool,
) -> None:
    """A copy for others: under pseudonyms, smaller for a slow line, or both."""
    from pipeline import summaries
    from pipeline.progress import reporter_for
    from stores import export as copies

    options = copies.ExportOptions(pseudonymise, compact, not no_pixels, keep_column, mapping)
    plan = copies.plan(path, out, options)
    with reporter_for(sys.stderr) as report:
        report.start("store export", plan.total)
        result = copies.write(plan, report.advance)
    print_result(as_json, result, lambda: summaries.export_lines(result))


@g2l.command()
@JSON
def models(as_json: bool) -> None:
    """The encoders that are known by name, with dimension, size and licence."""
    from pipeline import summaries
    from pipeline.presets import PRESETS

    rows = [dataclasses.asdict(preset) for preset in PRESETS.values()]
    print_result(as_json, {"models": rows}, lambda: summaries.model_lines(rows))


@g2l.command()
@JSON
def doctor(as_json: bool) -> None:
    """Check this machine: versions, devices, OpenSlide, free disk, whether weights can be reached."""
    from pipeline import doctor as examine

    result = examine.examine(Path.cwd())
    print_result(as_json, result, lambda: examine.lines(result))


@g2l.command()
@click.option("--out", default="demo", show_default=True, type=PATH, help="Folder to write into.")
@JSON
def demo(out: Path, as_json: bool) -> None:
    """Both stages on small synthetic slides that the command writes itself; a few minutes on a CPU."""
    from pipeline import demo as whole
    from pipeline.progress import reporter_for

    with reporter_for(sys.stderr) as report:
        result = whole.run_demo(out, report)
    print_result(as_json, result, lambda: whole.lines(out, result))


def _exit_if(some_failed: bool) -> None:
    if some_failed:
        sys.exit(SOME_SLIDES_FAILED)


def main() -> None:
    """Entry point of ``g2l`` and ``python cli.py``."""

    def terminate(number: int, frame: types.FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    # Waiting OpenMP threads sleep instead of spinning: beside one busy process on two cores extract-teacher made 88
    # views/s instead of 55, and on an idle machine as many as before. Has to be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, terminate)  # a cluster's way of Ctrl-C
    g2l(prog_name="g2l")


if __name__ == "__main__":
    main()
