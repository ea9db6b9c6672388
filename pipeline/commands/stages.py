"""The commands of the two stages: tile, plan, extract-teacher, prototypes, distill, embed."""

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.commands.click_options import (
    PATH,
    STORE,
    Command,
    build,
    opened,
    options_of,
    print_result,
    remote_options,
    tile_options,
    write_summary,
)
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.embed.options import EmbedOptions
from pipeline.extract.options import ExtractOptions, PlanOptions
from pipeline.runtime.options import ClusterOptions
from pipeline.tile.options import TileOptions
from stores.errors import SOME_SLIDES_FAILED


@click.command("tile", cls=Command, short_help="Find tissue and lay the patch grid")
@click.argument("slides", nargs=-1, required=True, type=PATH)
@click.option("--store", required=True, type=PATH, metavar="DIR", help="Folder of the store.")
@options_of(TileOptions, ClusterOptions)
def tile_command(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Find tissue, lay the patch grid, split by patient, and draw a picture of each slide."""
    from pipeline.commands import summaries
    from pipeline.runtime.log import RunLog
    from pipeline.runtime.progress import reporter_for
    from pipeline.tile import tile as tiling
    from stores.io.location import LOGS

    options = tile_options(store, values)
    with reporter_for(sys.stderr) as shown, RunLog(shown, store / LOGS / "tile.jsonl") as report:
        result = tiling.tile(slides, store, options, report, build(ClusterOptions, values))
    summary, lines = summaries.tile_json(store, result), summaries.tile_lines(store, result)
    write_summary(store / LOGS / "tile", summary, lines)
    print_result(as_json, summary, lambda: lines)
    _exit_if(bool(result.unusable))


@click.command("plan", cls=Command, short_help="Predict patches, disk space and time")
@click.argument("inputs", nargs=-1, required=True, type=STORE)
@options_of(PlanOptions, TileOptions)
def plan_command(inputs: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Predict what slides, or a tiled store, will need: patches, views, bytes, files and hours. Writes nothing."""
    from pipeline.extract import plan
    from pipeline.runtime.progress import reporter_for
    from stores.format import layout
    from stores.remote.objects import is_url

    options, tile_values = build(PlanOptions, values), build(TileOptions, values)
    with reporter_for(sys.stderr) as report:
        paths = [Path(text) for text in inputs]
        is_store = is_url(inputs[0]) or (paths[0] / layout.RECIPE).is_file()
        found = opened(inputs[0]) if len(inputs) == 1 and is_store else paths
        result = plan.plan(found, options, tile_values, report)
    print_result(as_json, plan.to_json(result), lambda: plan.lines(result))
    _exit_if(bool(result.unusable))


@click.command("extract-teacher", cls=Command, short_help="Run the teacher over all views, once")
@click.argument("slides", nargs=-1, required=True, type=PATH)
@click.option("--store", required=True, type=PATH, metavar="DIR", help="Folder of the store.")
@options_of(ExtractOptions, TileOptions, ClusterOptions)
def extract_command(slides: tuple[Path, ...], store: Path, as_json: bool, **values: Any) -> None:
    """Run the teacher once over every view of every patch. Slides that are not tiled yet are tiled first."""
    from pipeline.commands import summaries
    from pipeline.extract import extract
    from pipeline.runtime.log import RunLog
    from pipeline.runtime.progress import reporter_for
    from stores.io.location import LOGS

    options, tiling = build(ExtractOptions, values), tile_options(store, values)
    with reporter_for(sys.stderr) as shown, RunLog(shown, store / LOGS / "extract-teacher.jsonl") as report:
        where = build(ClusterOptions, values)
        result = extract.extract(slides, store, options, tiling, report, where)
    summary, lines = summaries.extract_json(store, result), summaries.extract_lines(store, result)
    write_summary(store / LOGS / "extract-teacher", summary, lines)
    print_result(as_json, summary, lambda: lines)
    _exit_if(bool(result.failed_slides or result.failed_blocks or result.bad_reads))


@click.command("distill", cls=Command, short_help="Train a student on a store")
@click.option("--store", required=True, type=STORE, metavar="DIR|URL", help="The store: a folder or a URL.")
@click.option("--out", "run", required=True, type=PATH, metavar="DIR", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Fail unless a checkpoint exists.")
@remote_options
@options_of(DistillOptions)
def distill_command(
    store: str, run: Path, resume: bool, cache: Path | None, cache_gb: float, as_json: bool, **values: Any
) -> None:
    """Train a student on the teacher features of a store. The teacher itself is not loaded.

    The same command continues a run that was stopped.
    """
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


@click.command("prototypes", cls=Command, short_help="Fit prototypes for the dino and ibot losses")
@click.option("--store", required=True, type=STORE, metavar="DIR|URL", help="The store: a folder or a URL.")
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    help="Folder to write into. [default: STORE-prototypes-K, beside a local store]",
)
@remote_options
@options_of(PrototypeOptions)
def prototypes_command(
    store: str, out: Path | None, cache: Path | None, cache_gb: float, as_json: bool, **values: Any
) -> None:
    """Fit prototypes of the teacher's features and tokens, which `distill --loss dino` and `ibot` need."""
    from pipeline.distill.prototypes import fit
    from pipeline.runtime.progress import reporter_for
    from stores.remote.objects import is_url

    options = build(PrototypeOptions, values)
    if out is None:
        if is_url(store):
            raise click.UsageError("--out: give a folder, since the store is behind a URL")
        out = Path(f"{store.rstrip('/')}-prototypes-{options.k}")
    with reporter_for(sys.stderr) as report:
        result = fit.fit(opened(store, cache, cache_gb), out, options, report)
    print_result(as_json, result, lambda: fit.lines(out, result))


@click.command("embed", cls=Command, short_help="Compute features with any encoder")
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder to write into.")
@options_of(EmbedOptions, TileOptions, ClusterOptions)
def embed_command(inputs: tuple[Path, ...], out: Path, as_json: bool, **values: Any) -> None:
    """Compute features of slides, or of the tiles in a CSV, with any encoder, in formats that other tools read."""
    from pipeline.commands import summaries
    from pipeline.embed.block import TILING
    from pipeline.embed.embed import embed
    from pipeline.runtime.log import RunLog
    from pipeline.runtime.progress import reporter_for
    from stores.io.location import LOGS

    options, tiling = build(EmbedOptions, values), tile_options(out / TILING, values)
    with reporter_for(sys.stderr) as shown, RunLog(shown, out / LOGS / "embed.jsonl") as report:
        result = embed(inputs, out, options, tiling, report, build(ClusterOptions, values))
    summary, lines = summaries.embed_json(out, result), summaries.embed_lines(out, result)
    write_summary(out / LOGS / "embed", summary, lines)
    print_result(as_json, summary, lambda: lines)
    _exit_if(bool(result.failed_slides or result.failed_blocks or result.bad_reads))


def _exit_if(some_failed: bool) -> None:
    if some_failed:
        sys.exit(SOME_SLIDES_FAILED)
