"""``embed``: the features of slides or tiles with any encoder, in the formats of the field.

Slides are tiled as in stage one, into ``OUT/tiling``; of every patch the view of seed 0 is embedded, the centre crop
that the encoder takes. Work is cut into blocks as in stage one and runs in this process or in the workers of
`open_cluster`. A block is kept as a part until its slide is whole; then the slide is published and its parts are
removed.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.embed import parts
from pipeline.embed.block import TILING, PartStage
from pipeline.embed.formats.base import TILES, Unit
from pipeline.embed.formats.registry import format_of
from pipeline.embed.options import EmbedOptions
from pipeline.embed.publish import EmbedSummary, Publisher
from pipeline.embed.tiles import BEFORE, RESAMPLING, TilesSource, TileTable, read_tiles
from pipeline.encoders.encoder import other_size
from pipeline.inference.facts import EncoderFacts, reader_identity
from pipeline.inference.loaded import EncoderSpec
from pipeline.inference.task import Task
from pipeline.inference.worker import BlockWorker, WorkerEncoder
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS, ClusterOptions
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Cluster
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
    """Embed slides, or the tiles that one CSV lists.

    Raises
    ------
    RecipeMismatch
        When `out` was begun with another encoder, patch, format or software.
    OptionError
        When an option does not fit the inputs or the encoder.
    DiskFull, ClusterError
        As in stage one.
    """
    options.validate()
    weights = None if options.weights is None else options.weights.absolute()
    options = dataclasses.replace(options, weights=weights)
    if tile_options.tiles or tile_options.pad != "none":
        raise OptionError("--tiles and --pad: are for `g2l tile`; embed takes tiles from a CSV, see --fit")
    table = _tiles_of(inputs, options)
    room_px = None if table is not None else tile_options.patch
    job = f"embed {out.absolute()}"
    with only_writer(out), open_cluster(where, job, report) as workers:
        worker_encoder = WorkerEncoder(job, EncoderSpec.of(options.encoder, options, room_px=room_px))
        encoder = workers.call(worker_encoder.describe)
        stage = _stage(out, options, tile_options, encoder, table)
        resampling = _resampling(out, table, report)
        about = _about(encoder, options, tile_options, table, resampling)
        _check_format(options, tile_options, table)
        _settle(out, {**about, "format": options.format})
        summary = EmbedSummary(out=out, dim=encoder.identity.dim)
        paths: Mapping[str, Path] = {}
        if table is None:
            units, paths = _slides(workers, inputs, out, options, tile_options, about, summary, report)
        else:
            units = [Unit(TILES, len(table), summary.dim, about, columns=table.columns)]
        publisher = Publisher(out, options.format, summary)
        given = _Inputs(paths, patch_recipe(tile_options)[0], table, stage.crop_px, options.fit, resampling)
        tasks = _plan(publisher, units, given, summary)
        if publisher.refreshed:
            said = counted(len(publisher.refreshed), "slide")
            report.note(f"{said} published again with corrected columns, such as {publisher.refreshed[0]}")
        _require_room(out, tasks, publisher.left, summary.dim)
        report.note(f"encoder {encoder.described()}")
        total = summary.views_before + sum(task.n_views for task in tasks)
        report.start("embed", total, summary.views_before)
        began = time.monotonic()
        for unit in publisher.left:  # whose blocks an earlier run did
            publisher.publish_if_whole(unit.name, report)
        worker = BlockWorker(worker_encoder, stage, options.threads, options.readers, workers.processes)
        for done in workers.run(worker.do, tasks, report):
            summary.add(done.item, done.result, done.error)
            publisher.publish_if_whole(done.item.source.slide_id, report)
        publisher.finish()
        if workers.outlives_workers:
            files.sweep_partials(out)
        summary.bad_reads = publisher.bad_reads
        summary.seconds = time.monotonic() - began
    return summary


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


def _require_room(out: Path, tasks: Sequence[Task], units: Sequence[Unit], dim: int) -> None:
    """Raise DiskFull when the parts and the largest file made of them, twice for PLISM, will not fit."""
    todo = sum(task.n_views for task in tasks)
    size = 4 * dim * (todo + 2 * max((unit.n_patches for unit in units), default=0))
    free = files.free_bytes(out)
    if free < size + files.MARGIN_BYTES:
        raise DiskFull(
            f"--out {out}: {todo:,} embeddings need {human_bytes(size)} and {human_bytes(free)} are free: make room"
        )
