"""The command line: parse, call one function, print. Everything heavy is imported inside the commands."""

import dataclasses
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.commands.click_options import (
    JSON,
    PATH,
    STORE,
    Commands,
    build,
    opened,
    options_of,
    print_result,
    remote_options,
    tile_options,
    write_summary,
)
from pipeline.commands.evaluate import evaluate
from pipeline.commands.store import store
from pipeline.report.options import ReportOptions
from pipeline.runtime.options import (
    ClusterOptions,
    DistillOptions,
    EmbedOptions,
    ExtractOptions,
    PlanOptions,
    PrototypeOptions,
    TileOptions,
)
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
@options_of(TileOptions, ClusterOptions)
def tile(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Find tissue, lay the patch grid, split by patient; writes a picture of each slide."""
    from pipeline.commands import summaries
    from pipeline.runtime.log import RunLog
    from pipeline.runtime.progress import reporter_for
    from pipeline.tile import tile as tiling
    from stores.format.layout import LOGS

    options = tile_options(store, values)
    with reporter_for(sys.stderr) as shown, RunLog(shown, store / LOGS / "tile.jsonl") as report:
        result = tiling.tile(slides, store, options, report, build(ClusterOptions, values))
    summary, lines = summaries.tile_json(store, result), summaries.tile_lines(store, result)
    write_summary(store / LOGS / "tile", summary, lines)
    print_result(as_json, summary, lambda: lines)
    _exit_if(bool(result.unusable))


@g2l.command("plan")
@click.argument("inputs", nargs=-1, required=True, type=STORE)
@options_of(PlanOptions, TileOptions)
def plan_command(inputs: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """What slides, or a store that is tiled, will come to: patches, views, bytes, files, hours. Writes nothing."""
    from pipeline.extract import plan
    from pipeline.runtime.progress import reporter_for
    from stores.remote.store import is_url

    options, tile_values = build(PlanOptions, values), build(TileOptions, values)
    with reporter_for(sys.stderr) as report:
        paths = [Path(text) for text in inputs]
        is_store = is_url(inputs[0]) or (paths[0] / "recipe.json").is_file()
        found = opened(inputs[0]) if len(inputs) == 1 and is_store else paths
        result = plan.plan(found, options, tile_values, report)
    print_result(as_json, plan.to_json(result), lambda: plan.lines(result))
    _exit_if(bool(result.unusable))


@g2l.command("extract-teacher")
@click.argument("slides", nargs=-1, required=True, type=PATH)
@click.option("--store", required=True, type=PATH, help="Folder of the store.")
@options_of(ExtractOptions, TileOptions, ClusterOptions)
def extract_teacher(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Run the teacher once over every view of every patch; tiles first what is not tiled."""
    from pipeline.commands import summaries
    from pipeline.extract import extract
    from pipeline.runtime.log import RunLog
    from pipeline.runtime.progress import reporter_for
    from stores.format.layout import LOGS

    options, tiling = build(ExtractOptions, values), tile_options(store, values)
    with reporter_for(sys.stderr) as shown, RunLog(shown, store / LOGS / "extract-teacher.jsonl") as report:
        where = build(ClusterOptions, values)
        result = extract.extract(slides, store, options, tiling, report, where)
    summary, lines = summaries.extract_json(store, result), summaries.extract_lines(store, result)
    write_summary(store / LOGS / "extract-teacher", summary, lines)
    print_result(as_json, summary, lambda: lines)
    _exit_if(bool(result.failed_slides or result.failed_blocks or result.bad_reads))


@g2l.command()
@click.option("--store", required=True, type=STORE, help="Folder or URL of the store.")
@click.option("--out", "run", required=True, type=PATH, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Insist on going on from a checkpoint; a run goes on anyway.")
@remote_options
@options_of(DistillOptions)
def distill(
    store: str, run: Path, resume: bool, cache: Path | None, cache_gb: float, as_json: bool, **values: Any
) -> None:
    """Train a student against the store, with no teacher in memory."""
    from pipeline.commands import summaries
    from pipeline.distill.train import distill as train
    from pipeline.runtime.progress import reporter_for
    from stores.io.files import write_text

    with reporter_for(sys.stderr) as report:
        found = opened(store, cache, cache_gb)
        result = train(found, run, build(DistillOptions, values), resume, report)
    if result:  # the first process of several speaks
        lines = summaries.distill_lines(run, result)
        write_text(run / "summary.txt", "\n".join(lines) + "\n")
        print_result(as_json, result, lambda: lines)


@g2l.command("prototypes")
@click.option("--store", required=True, type=STORE, help="Folder or URL of the store.")
@click.option("--out", type=PATH, help="Folder to write into; STORE-prototypes-K beside a local store.")
@remote_options
@options_of(PrototypeOptions)
def prototypes_command(
    store: str, out: Path | None, cache: Path | None, cache_gb: float, as_json: bool, **values: Any
) -> None:
    """Prototypes of the teacher's features and tokens, for distill --loss dino and ibot."""
    from pipeline.distill.prototypes import fit
    from pipeline.runtime.progress import reporter_for
    from stores.remote.store import is_url

    options = build(PrototypeOptions, values)
    if out is None:
        if is_url(store):
            raise click.UsageError("--out: give a folder, since the store is behind a URL")
        out = Path(f"{store.rstrip('/')}-prototypes-{options.k}")
    with reporter_for(sys.stderr) as report:
        result = fit.fit(opened(store, cache, cache_gb), out, options, report)
    print_result(as_json, result, lambda: fit.lines(out, result))


@g2l.command("embed")
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder to write into.")
@options_of(EmbedOptions, TileOptions, ClusterOptions)
def embed_command(inputs: tuple[Path, ...], out: Path, as_json: bool, **values: Any) -> None:
    """Features of slides, or of the tiles in a CSV, with any encoder; in the formats that other tools read."""
    from pipeline.commands import summaries
    from pipeline.embed.block import TILING
    from pipeline.embed.embed import embed
    from pipeline.runtime.log import RunLog
    from pipeline.runtime.progress import reporter_for
    from stores.format.layout import LOGS

    options, tiling = build(EmbedOptions, values), tile_options(out / TILING, values)
    with reporter_for(sys.stderr) as shown, RunLog(shown, out / LOGS / "embed.jsonl") as report:
        result = embed(inputs, out, options, tiling, report, build(ClusterOptions, values))
    summary, lines = summaries.embed_json(out, result), summaries.embed_lines(out, result)
    write_summary(out / LOGS / "embed", summary, lines)
    print_result(as_json, summary, lambda: lines)
    _exit_if(bool(result.failed_slides or result.failed_blocks or result.bad_reads))


g2l.add_command(store)
g2l.add_command(evaluate)


@g2l.command("report")
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


@g2l.command()
@JSON
def models(as_json: bool) -> None:
    """The encoders that are known by name, with dimension, size and licence."""
    from pipeline.commands import summaries
    from pipeline.encoders.presets import PRESETS

    rows = [dataclasses.asdict(preset) for preset in PRESETS.values()]
    print_result(as_json, {"models": rows}, lambda: summaries.model_lines(rows))


@g2l.command()
@JSON
def doctor(as_json: bool) -> None:
    """Check this machine: versions, devices, OpenSlide, free disk, whether weights can be reached."""
    from pipeline.demo import doctor as examine

    result = examine.examine(Path.cwd())
    print_result(as_json, result, lambda: examine.lines(result))


@g2l.command()
@click.option("--out", default="demo", show_default=True, type=PATH, help="Folder to write into.")
@JSON
def demo(out: Path, as_json: bool) -> None:
    """Both stages on small synthetic slides that the command writes itself; a few minutes on a CPU."""
    from pipeline.demo import demo as whole
    from pipeline.runtime.progress import reporter_for

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
