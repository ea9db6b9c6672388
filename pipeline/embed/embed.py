"""``embed``: the features of slides or tiles with any encoder, in the formats of the field.

Slides are tiled as in stage one, into ``OUT/tiling``; of every patch the view of seed 0 is embedded, the centre crop
that the encoder takes. Work is cut into blocks as in stage one and runs in this process or in the workers of
`open_cluster`. A block is kept as a part until its slide is whole; then the slide is published and its parts are
removed. Several encoders, each with a folder of its own, see the same patches: each is read once.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.embed import parts
from pipeline.embed.block import TILING, PartStage
from pipeline.embed.formats.base import TILES, Unit
from pipeline.embed.formats.registry import format_of
from pipeline.embed.options import EmbedOptions
from pipeline.embed.publish import EmbeddedTogether, EmbedSummary, Publisher
from pipeline.embed.tiles import BEFORE, RESAMPLING, TilesSource, TileTable, read_tiles
from pipeline.encoders.encoder import other_size
from pipeline.extract.options import require_distinct
from pipeline.extract.tasks import together
from pipeline.inference.facts import EncoderFacts, reader_identity
from pipeline.inference.loaded import EncoderSpec
from pipeline.inference.task import Task
from pipeline.inference.worker import TogetherWorker, WorkerEncoder
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS, ClusterOptions
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Cluster, Failures
from pipeline.slides.registry import reader_of
from pipeline.slides.sources import Source, inspect_again, open_slide_source
from pipeline.tile.grid import patch_recipe
from pipeline.tile.options import TileOptions
from pipeline.tile.slides_csv import read_slides_csv
from pipeline.tile.tile import tile_on
from stores.errors import DiskFull, OptionError, RecipeMismatch, SlideError
from stores.format import features, manifest, oblong, recipe
from stores.format.terms import expression
from stores.io import files
from stores.io.location import LOGS
from stores.io.lock import only_writer
from stores.io.text import counted, human_bytes

IDENTITY = "embed.json"


def embed(
    inputs: Sequence[Path],
    out: Path,
    options: EmbedOptions,
    tile_options: TileOptions,
    report: Reporter,
    where: ClusterOptions = IN_PROCESS,
) -> EmbedSummary:
    """Embed slides, or the tiles that one CSV lists, with one encoder; see `embed_together`."""
    (done,) = embed_together(inputs, [(out, options)], tile_options, report, where).outs
    return done


def embed_together(
    inputs: Sequence[Path],
    asked: Sequence[tuple[Path, EmbedOptions]],
    tile_options: TileOptions,
    report: Reporter,
    where: ClusterOptions = IN_PROCESS,
) -> EmbeddedTogether:
    """Embed slides, or the tiles that one CSV lists. Several encoders see patches that are read once.

    Parameters
    ----------
    asked
        Folders, and the options of the encoder of each, which differ in none of `pipeline.embed.options.SHARED`. The
        first is tiled, and new ones take over its tiling.

    Raises
    ------
    RecipeMismatch
        When a folder was begun with another encoder, patch, format or software.
    OptionError
        When an option does not fit the inputs or the encoder, or the encoders take views of different sizes.
    DiskFull, ClusterError
        As in stage one.
    """
    for _, own in asked:
        own.validate()
    outs, options = [out for out, _ in asked], asked[0][1]
    require_distinct(outs, "out")
    if tile_options.tiles or tile_options.pad != "none":
        raise OptionError("--tiles and --pad: are for `g2l tile`; embed takes tiles from a CSV, see --fit")
    table = _tiles_of(inputs, options)
    job = "\n".join(f"embed {out.absolute()}" for out in outs)
    with contextlib.ExitStack() as stack:
        for out in outs:
            stack.enter_context(only_writer(out))
        workers = stack.enter_context(open_cluster(where, job, report))
        runs = [_begin(job, out, own, tile_options, table, workers, report) for out, own in asked]
        _require_one_view(runs)
        for run in runs:
            _check_format(run.options, tile_options, table)
            _settle(run.out, {**run.about, "format": run.options.format})
        for run in runs:
            _plan_run(run, runs[0].out, inputs, tile_options, table, workers, report)
        _require_one_tiling(runs)
        _require_room(runs)
        for run in runs:
            into = f", into {run.out}" if len(runs) > 1 else ""
            report.note(f"encoder {run.encoder.described()}{into}")
        result = _encode(runs, workers, report)
        for run in runs:
            run.publisher.finish()
            if workers.outlives_workers:
                files.sweep_partials(run.out)
            run.summary.bad_reads = run.publisher.bad_reads
    return result


@dataclass(slots=True)
class _Run:
    """One of the encoders, and the folder that its features go to."""

    out: Path
    options: EmbedOptions
    worker_encoder: WorkerEncoder
    encoder: EncoderFacts
    stage: PartStage
    resampling: str
    about: Mapping[str, Any]
    summary: EmbedSummary
    publisher: Publisher
    tasks: list[Task] = field(default_factory=list)


def _begin(
    job: str,
    out: Path,
    options: EmbedOptions,
    tile_options: TileOptions,
    table: TileTable | None,
    workers: Cluster,
    report: Reporter,
) -> _Run:
    """Load an encoder where the work will be; nothing is written yet."""
    weights = None if options.weights is None else options.weights.absolute()
    options = dataclasses.replace(options, weights=weights)
    room_px = None if table is not None else tile_options.patch
    worker_encoder = WorkerEncoder(job, EncoderSpec.of(options.encoder, options, room_px=room_px))
    encoder = workers.call(worker_encoder.describe)
    stage = _stage(out, options, tile_options, encoder, table)
    resampling = _resampling(out, table, report)
    about = _about(encoder, options, tile_options, table, resampling)
    summary = EmbedSummary(out=out, dim=encoder.identity.dim)
    publisher = Publisher(out, options.format, summary)
    return _Run(out, options, worker_encoder, encoder, stage, resampling, about, summary, publisher)


def _require_one_view(runs: Sequence[_Run]) -> None:
    """Raise OptionError when the encoders do not see the same pixels."""
    first = runs[0]
    for run in runs[1:]:
        if run.stage != dataclasses.replace(first.stage, out=run.stage.out):
            raise OptionError(
                f"--encoder {run.options.encoder}: takes views of {run.stage.crop_px} px, and {first.options.encoder} "
                f"of {first.stage.crop_px}; embed with each by a command of its own"
            )
        if run.resampling != first.resampling:
            raise OptionError(
                f"--out {run.out}: was begun by another version than {first.out}, which resizes tiles otherwise; "
                "finish each by a command of its own"
            )


def _plan_run(
    run: _Run,
    base: Path,
    inputs: Sequence[Path],
    tile_options: TileOptions,
    table: TileTable | None,
    workers: Cluster,
    report: Reporter,
) -> None:
    """Tile, and find out what is to do for one of the encoders."""
    paths: Mapping[str, Path] = {}
    if table is None:
        if run.out != base:
            _take_over_tiling(base, run.out)
        units, paths = _slides(
            workers, inputs, run.out, run.options, tile_options, run.about, run.summary, report
        )
    else:
        units = [Unit(TILES, len(table), run.summary.dim, run.about, columns=table.columns)]
    crop_px, patch = run.stage.crop_px, patch_recipe(tile_options)[0]
    given = _Inputs(paths, patch, table, crop_px, run.options.fit, run.resampling)
    run.tasks = _plan(run.publisher, units, given, run.summary)
    refreshed = run.publisher.refreshed
    if refreshed:
        said = counted(len(refreshed), "slide")
        report.note(f"{said} published again with corrected columns, such as {refreshed[0]}")


def _take_over_tiling(base: Path, out: Path) -> None:
    """Give a new folder the tiling of the first one, so that tissue is looked for once."""
    target = out / TILING
    if target.exists():
        return
    partial = files.partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    shutil.copytree(base / TILING, partial, ignore=shutil.ignore_patterns(f"*{files.PARTIAL}", LOGS))
    partial.rename(target)


def _require_one_tiling(runs: Sequence[_Run]) -> None:
    """Raise OptionError when a slide has other patches in one of the folders, which may be older."""
    first = runs[0]
    for run in runs[1:]:
        mine, theirs = ({t.source.slide_id: t for t in r.tasks} for r in (run, first))
        for name in sorted(mine.keys() & theirs.keys()):
            a, b = run.stage.patches(mine[name]), first.stage.patches(theirs[name])
            same = mine[name].n_patches == theirs[name].n_patches and np.array_equal(a.coords, b.coords)
            if not same or mine[name].fingerprint != theirs[name].fingerprint:
                raise OptionError(
                    f"--out {run.out}: slide {name} has other patches there than in {first.out}; embed with each by a "
                    "command of its own"
                )


def _encode(runs: Sequence[_Run], workers: Cluster, report: Reporter) -> EmbeddedTogether:
    """Do what is to do, block by block."""
    before = sum(run.summary.views_before for run in runs)
    report.start("embed", before + sum(task.n_views for run in runs for task in run.tasks), before)
    began = time.monotonic()
    for run in runs:
        for unit in run.publisher.left:  # whose blocks an earlier run did
            run.publisher.publish_if_whole(unit.name, report)
    first = runs[0].options
    stages = tuple((run.worker_encoder, run.stage) for run in runs)
    worker = TogetherWorker(stages, first.threads, first.readers, workers.processes)
    order = dict.fromkeys(task.source.slide_id for run in runs for task in run.tasks)
    result = EmbeddedTogether([run.summary for run in runs])
    failures = [Failures(report) for _ in runs]
    for done in workers.run(worker.do, together([run.tasks for run in runs], list(order)), report):
        result.read += 0 if done.result is None else done.item.n_rendered
        for at, (number, task) in enumerate(done.item.tasks):
            run, outcome = runs[number], None if done.result is None else done.result[at]
            if outcome is None:
                run.summary.add(task, None, done.error)
            elif outcome.failure is None:
                failures[number].ok()
                run.summary.add(task, outcome, "")
            else:
                over = failures[number].over(f"{run.out}: {task}", outcome.failure, outcome.trace)
                run.summary.add(task, None, over.error)
            run.publisher.publish_if_whole(task.source.slide_id, report)
    for run in runs:
        run.summary.seconds = time.monotonic() - began
    return result


def _tiles_of(inputs: Sequence[Path], options: EmbedOptions) -> TileTable | None:
    """The table when the input is a CSV of tiles; None for slides."""
    tables = [path for path in inputs if path.suffix.lower() == ".csv"]
    if not tables:
        if options.column or options.root is not None:
            raise OptionError("--column and --root: are for a CSV of tiles, and the input is slides")
        return None
    if len(inputs) > 1:
        raise OptionError(f"{tables[0]}: one CSV of tiles, or slides; not {len(inputs)} inputs together")
    return read_tiles(tables[0], options.column, options.root)


def _stage(
    out: Path,
    options: EmbedOptions,
    tile_options: TileOptions,
    encoder: EncoderFacts,
    table: TileTable | None,
) -> PartStage:
    image_px = encoder.identity.image_px
    patch_px = tile_options.patch if table is None else image_px
    if patch_px < image_px:
        raise OptionError(
            f"--patch {patch_px}: smaller than the {image_px} px that {options.encoder} takes; "
            f"use --patch {image_px}, or more for a margin that is cropped{other_size(encoder.resizable, patch_px)}"
        )
    return PartStage(out.absolute(), patch_px, image_px, table is not None)


def _about(
    encoder: EncoderFacts,
    options: EmbedOptions,
    tile_options: TileOptions,
    table: TileTable | None,
    resampling: str,
) -> dict[str, Any]:
    """All that decides the embeddings; goes into the files that have room for it."""
    about: dict[str, Any] = {
        "schema": 1,
        "encoder": {**encoder.identity.to_json(), "licence": expression(encoder.terms)},
    }
    reader = dataclasses.asdict(reader_identity())
    if table is not None:
        return {**about, "tiles": {"sha256": table.digest, "fit": options.fit, "resampling": resampling}}
    patch = dataclasses.asdict(patch_recipe(tile_options)[0])
    return {**about, "patch": {**patch, "crop_px": encoder.identity.image_px}, "reader": reader}


def _check_format(options: EmbedOptions, tile_options: TileOptions, table: TileTable | None) -> None:
    own = read_slides_csv(tile_options.slides_csv) if table is None else {}
    columns = {name: None for row in own.values() for name in row} if table is None else table.columns
    format_of(options.format).check(columns, table is not None)


def _resampling(out: Path, table: TileTable | None, report: Reporter) -> str:
    """How tiles are resized: by the rule that `out` was begun with, which may be that of an older version."""
    path = out / IDENTITY
    if table is not None and path.exists():
        begun = files.read_json(path)
        tiles = begun.get("tiles") if isinstance(begun, dict) else None
        if isinstance(tiles, dict) and tiles.get("resampling") == BEFORE:
            report.note(
                f"{out}: was begun by an older version and is finished with its rule ({BEFORE}); "
                "another --out has torchvision's"
            )
            return BEFORE
    return RESAMPLING


def _settle(out: Path, wanted: Mapping[str, Any]) -> None:
    """Write what decides the embeddings, or compare it with what `out` was begun with."""
    path = out / IDENTITY
    wanted = json.loads(json.dumps(wanted))
    if not path.exists():
        files.write_json(path, wanted)
        return
    begun = files.read_json(path)
    for about in (begun, wanted):  # a licence decides no value, and older versions recorded less of it
        if isinstance(about, dict) and isinstance(about.get("encoder"), dict):
            about["encoder"].pop("licence", None)
    differing = recipe.value_differences(begun, wanted)
    if differing:
        name, old, new = differing[0]
        more = f" (and {len(differing) - 1} more)" if differing[1:] else ""
        raise RecipeMismatch(
            f"{name}: {out} has {old!r}, this run has {new!r}{more}; use the same options or another --out"
        )


def _slides(
    workers: Cluster,
    inputs: Sequence[Path],
    out: Path,
    options: EmbedOptions,
    tile_options: TileOptions,
    about: Mapping[str, Any],
    summary: EmbedSummary,
    report: Reporter,
) -> tuple[list[Unit], Mapping[str, Path]]:
    """Tile the inputs that are not tiled yet; the usable slides among them, and the files of all."""
    result = tile_on(workers, inputs, out / TILING, tile_options, report, for_training=False)
    units = []
    for row in result.slides:
        if row["slide_id"] not in result.paths:
            continue
        if row["status"] != manifest.OK:
            summary.failed_slides[row["slide_id"]] = row["reason"]
            continue
        if options.format == "eva" and not row.get("label"):
            summary.failed_slides[row["slide_id"]] = "no label in --slides-csv, which --format eva needs"
            continue
        if options.format in ("trident-h5", "clam") and oblong.mpp_in_y(row) is not None:
            summary.failed_slides[row["slide_id"]] = (
                f"its pixels are not square, and --format {options.format} has one side of a patch; use parquet"
            )
            continue
        unit = Unit(row["slide_id"], row["n_patches"], summary.dim, about, row=row)
        if options.format == "geojson":
            try:
                unit = dataclasses.replace(unit, corner_px0=_scanned_corner(row, result.paths[unit.name]))
            except SlideError as error:
                summary.failed_slides[unit.name] = str(error)
                continue
        units.append(unit)
    return units, result.paths


def _scanned_corner(row: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Left and top of what was scanned of a slide, from where QuPath counts."""
    with reader_of(path, row["fingerprint"]).open(path) as file:
        bounds = inspect_again(file, row, path).bounds_px0
    return (0, 0) if bounds is None else bounds[:2]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where the patches of units come from."""

    paths: Mapping[str, Path]
    """The slide files, by slide id."""
    patch: recipe.Patch
    table: TileTable | None
    """The tiles; None for slides."""
    crop_px: int
    fit: str
    resampling: str

    def sources(self, unit: Unit, blocks: Sequence[range]) -> list[Source]:
        """A source for each block of rows; SlideError when the slide is not the one that was tiled."""
        if not blocks:
            return []
        if self.table is None:
            return [open_slide_source(unit.row, self.paths[unit.name], self.patch)] * len(blocks)
        files, names = self.table.files, self.table.columns["path"]
        parts = [(rows.start, slice(rows.start, rows.stop)) for rows in blocks]
        return [
            TilesSource(unit.name, first, files[part], names[part], self.crop_px, self.fit, self.resampling)
            for first, part in parts
        ]


def _plan(publisher: Publisher, units: Sequence[Unit], inputs: _Inputs, summary: EmbedSummary) -> list[Task]:
    """A task for every block that has no part, of the units that are not published."""
    tasks: list[Task] = []
    for unit in units:
        if publisher.is_published(unit):
            summary.views_before += unit.n_patches
            continue
        n_patches = unit.n_patches
        missing = parts.missing_blocks(publisher.out, unit.name, n_patches)
        blocks = [features.block_range(n_patches, block) for block in missing]
        try:
            sources = inputs.sources(unit, blocks)
        except SlideError as error:
            summary.failed_slides[unit.name] = str(error)
            continue
        fingerprint, split = unit.row.get("fingerprint", ""), unit.row.get("split", "")
        of_unit = [
            Task(source, fingerprint, split, n_patches, block, range(1), rows)
            for source, block, rows in zip(sources, missing, blocks, strict=True)
        ]
        tasks += of_unit
        summary.views_before += unit.n_patches - sum(len(task.rows) for task in of_unit)
        publisher.wait_for(unit)
    return tasks


def _require_room(runs: Sequence[_Run]) -> None:
    """Raise DiskFull when the parts and the largest file made of them, twice for PLISM, will not fit."""
    of_disk: dict[int, list[_Run]] = {}
    for run in runs:
        of_disk.setdefault(os.stat(run.out).st_dev, []).append(run)
    for sharing in of_disk.values():
        todo, size = 0, 0
        for run in sharing:
            views = sum(task.n_views for task in run.tasks)
            largest = max((unit.n_patches for unit in run.publisher.left), default=0)
            todo, size = todo + views, size + 4 * run.summary.dim * (views + 2 * largest)
        free = min(files.free_bytes(run.out) for run in sharing)
        if free < size + files.MARGIN_BYTES:
            raise DiskFull(
                f"--out {', '.join(str(run.out) for run in sharing)}: {todo:,} embeddings need {human_bytes(size)} and "
                f"{human_bytes(free)} are free: make room"
            )
