"""Stage zero, ``tile``: tissue, patch grid and splits. Writes slides table, patches, and a picture of each slide.

Patches lie on a grid of whole patches from the level-0 origin. Those with enough tissue are kept, in Morton order, so
that consecutive rows are neighbours on the slide. A second run adds new slides and tries failed ones again; slides
that are done stay as they are, but for what the user says of them: see `slide_rows`.

One picture is one slide: of files with equal fingerprints the one that the user's table names is kept, else the first
by id; a slide that was usable before stays.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS, ClusterOptions
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Advance, Cluster
from pipeline.slides.find import search_slides
from pipeline.slides.registry import open_slide
from pipeline.slides.slide import ReadPlan, SlideInfo, plan_read, require_square
from pipeline.tile.grid import Grid, find_patches, patch_recipe
from pipeline.tile.options import TileOptions
from pipeline.tile.picture import draw_slide
from pipeline.tile.prepare import prepare_store, require_extendable
from pipeline.tile.qc import qc_columns, qc_of
from pipeline.tile.same_picture import Pictures
from pipeline.tile.slide_rows import (
    SlideWork,
    failed,
    new_row,
    require_one_spelling,
    require_unchanged,
    slide_work,
)
from pipeline.tile.slides_csv import given_of, require_one_split
from pipeline.tile.splits import Splits
from pipeline.tile.summary import TileSummary
from pipeline.tile.tile_list import tile_list
from pipeline.tiles.table import are_tiles
from stores.errors import OptionError, SlideError
from stores.format import layout, manifest, oblong
from stores.format.committed import same_picture, same_pictures
from stores.format.qc import described
from stores.io import files
from stores.io.lock import only_writer
from stores.io.text import counted, is_utf8, visible

_WRITE_EVERY_S = 5.0
"""Seconds of work that a kill may lose: writing the table for each of 1,000 tiny slides takes longer than these."""


def tile(
    inputs: Sequence[Path],
    store: Path,
    options: TileOptions,
    report: Reporter,
    where: ClusterOptions = IN_PROCESS,
) -> TileSummary:
    """Tile every slide that is not tiled yet. A slide that cannot be used becomes a row with a reason."""
    job = f"tile {store.absolute()}"
    with only_writer(store), open_cluster(where, job, report) as workers:
        summary = tile_on(workers, inputs, store, options, report)
        if workers.outlives_workers:
            files.sweep_partials(store)
        return summary


def tile_on(
    workers: Cluster,
    inputs: Sequence[Path],
    store: Path,
    options: TileOptions,
    report: Reporter,
    for_training: bool = True,
    look_again: bool = True,
) -> TileSummary:
    """`tile` on a cluster that is open. A slide is a piece of work; only this process writes the slides table.

    Parameters
    ----------
    for_training : bool
        Refuse a patient in two splits.
    look_again : bool
        Open slides that are done too, and refuse one whose file is another now.
    """
    options.validate()
    layout.require_unsealed(store)
    require_extendable(store)
    if are_tiles(inputs, options.tiles):
        return tile_list(workers, inputs, store, options, report)
    _require_no_tile_options(options)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    found = search_slides(inputs, rows.values())
    found.tell(report)
    doubled = {slide_id: paths[0] for slide_id, paths in found.doubled.items()}
    given = given_of(options, found.slides | doubled, for_training, report)
    begun = (store / layout.RECIPE).exists()
    qc = None if begun else qc_of(options, found.slides, report)  # what is refused leaves no store behind
    prepare_store(store, options)
    splits = Splits(rows, given, [*found.slides, *(i for i in doubled if i not in found.slides)], options.val)
    works = [
        slide_work(store, i, path, given, splits, rows.get(i), options) for i, path in found.slides.items()
    ]
    planned = {**rows, **{work.slide_id: work.row for work in works}}
    for slide_id, paths in found.doubled.items():
        if slide_id not in rows or rows[slide_id]["status"] != manifest.OK:
            row = new_row(slide_id, paths[0], given, splits)
            planned[slide_id] = failed(
                row, f"{len(paths)} files have this name, in different folders; rename them"
            )
    require_one_spelling(planned, given)
    if for_training:
        require_one_split(planned.values())
    settled = {slide_id: row for slide_id, row in rows.items() if row["status"] == manifest.OK}
    todo = [work for work in works if look_again or not work.done]
    if begun and not all(work.done for work in todo):
        qc = qc_of(options, found.slides, report, again=True)
    if qc is not None:
        todo = [dataclasses.replace(work, qc=qc.of(work.slide_id)) for work in todo]
    started = {work.slide_id for work in todo}
    kept = {slide_id: row for slide_id, row in planned.items() if slide_id not in started}
    if any(rows.get(slide_id) != row for slide_id, row in kept.items()):
        rows |= kept
        manifest.write_slides(store, list(rows.values()))
    _tell(settled, [work for work in todo if work.slide_id in rows and not work.done], rows, report)
    report.start("tile", len(todo))
    run = functools.partial(tile_slide, store.absolute(), _absolute(options))
    pictures = Pictures(store, rows, settled, given.cells)
    by_id = {work.slide_id: work for work in todo}
    written, unwritten = time.monotonic(), 0
    try:
        for stage in splits.stages(list(by_id), rows):
            rows |= {slide_id: splits.enter(row) for slide_id, row in rows.items()}
            now = (
                dataclasses.replace(work, row=splits.enter(work.row))
                for work in map(by_id.__getitem__, stage)
            )
            for done in workers.run(run, now, report):
                row = failed(done.item.row, done.error) if done.result is None else done.result
                pictures.take(row)
                unwritten += 1
                if time.monotonic() - written > _WRITE_EVERY_S:
                    _write(store, rows, pictures)
                    written, unwritten = time.monotonic(), 0
    finally:  # an interruption keeps what is done
        if unwritten:
            _write(store, rows, pictures)
    return TileSummary(store, manifest.read_slides(store), found.slides, holds_out=options.val > 0)


def _absolute(options: TileOptions) -> TileOptions:
    """The options for workers, which may have another working folder."""
    masks, qc = (None if path is None else path.absolute() for path in (options.masks, options.qc))
    return dataclasses.replace(options, masks=masks, qc=qc)


def _write(store: Path, rows: Mapping[str, Mapping[str, Any]], pictures: Pictures) -> None:
    manifest.write_slides(store, list(rows.values()))
    pictures.remove_dropped()


def _tell(
    settled: Mapping[str, Mapping[str, Any]],
    again: Sequence["SlideWork"],
    rows: Mapping[str, Mapping[str, Any]],
    report: Reporter,
) -> None:
    failed = [work.slide_id for work in again if rows[work.slide_id]["status"] == "failed"]
    if failed:
        said = counted(len(failed), "slide that failed before is", "slides that failed before are")
        report.note(f"{said} tried again, such as {failed[0]}")
    for row, other in itertools.islice(same_pictures(settled.values()), 3):
        report.note(f"slide {row['slide_id']}: {same_picture(row, other)}")


def _require_no_tile_options(options: TileOptions) -> None:
    given = {
        "--pad": options.pad != "none",
        "--root": options.root is not None,
        "--column": bool(options.column),
    }
    for flag, is_given in given.items():
        if is_given:
            raise OptionError(
                f"{flag}: is for tiles, and the inputs are slides; for images in folders add --tiles"
            )


def tile_slide(store: Path, options: TileOptions, slide: SlideWork, advance: Advance) -> dict[str, Any]:
    """Tile one slide, write its picture and patches, and return its row of the slides table."""
    row = _tile_slide(store, slide, options)
    advance(1)
    return row


def _tile_slide(store: Path, slide: SlideWork, options: TileOptions) -> dict[str, Any]:
    slide_id, row = slide.slide_id, oblong.without_columns(slide.row)
    try:
        if not is_utf8(slide.path.name):
            raise SlideError(f"{visible(slide.path.name)}: its name is not UTF-8 text; rename the file")
        with open_slide(slide.path, row["fingerprint"] if slide.done else None) as file:
            info = file.inspect(slide_id, *(slide.mpp or (None, "")))
            if not (options.square_pixels or slide.is_oblong):
                require_square(info)
            plan = plan_read(info, options.mpp, options.patch)
            measured = {
                **info.columns(),
                "patch_px0": plan.patch_px0,
                "patch_mpp": plan.mpp,
                **oblong.columns(info.mpp_y, plan.sides_px0[1]),
            }
            if slide.done:
                names = ("fingerprint", "width_px0", "height_px0", "mpp", oblong.MPP_Y)
                require_unchanged(slide.row, measured, names)
                return row | measured
            row |= measured
            _, rule = patch_recipe(options)
            grid = find_patches(file, info, plan, rule, options, slide.qc)
    except SlideError as error:
        said = str(error)
        qc = slide.qc.regions if slide.qc is not None else None
        folders = (slide.path.parent, options.masks, None if qc is None else qc.parent)
        for folder in folders:  # a reason stands in the store, which others get
            said = said.replace(f"{folder}/", "")
        return failed(row, said)
    if grid.mask_frame:
        row["mask_frame"] = grid.mask_frame
    if slide.qc is not None and grid.qc is not None:
        row |= qc_columns(slide.qc, grid.qc)
    picture = store / layout.picture_file(slide_id)
    draw_slide(picture, info, plan, grid.thumbnail, grid.mask, grid.patches, grid.qc, grid.left_out)
    if len(grid.patches) == 0:
        reason = _why_none(info, plan, grid, options)
        return row | {"status": "no_tissue", "reason": reason, "n_patches": 0}
    patches = grid.patches
    manifest.write_patches(store, slide_id, patches.x_px0, patches.y_px0, patches.tissue, qc=patches.qc)
    return row | {"status": manifest.OK, "reason": "", "n_patches": len(patches)}


def _why_none(info: SlideInfo, plan: ReadPlan, grid: Grid, options: TileOptions) -> str:
    wide, high = plan.sides_px0
    side = f"{wide}" if plan.heights is None else f"{wide}x{high}"
    if info.width_px0 < wide or info.height_px0 < high:
        return f"{info.width_px0}x{info.height_px0} px, smaller than one patch of {side} px"
    if grid.qc is not None and not grid.qc.judged.keep.all():
        n, judged = len(grid.qc.judged.keep), grid.qc.judged
        return (
            f"{counted(n, 'patch', 'patches')} of {side} px with enough tissue, all left out by QC "
            f"({described(judged.beyond, judged.unknown)})"
        )
    return (
        f"no patch of {side} px has {options.min_tissue:.0%} tissue; "
        f"{grid.mask.mean():.1%} of the slide is tissue; see its picture, or lower --min-tissue"
    )
