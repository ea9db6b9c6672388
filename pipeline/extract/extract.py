"""Stage one, ``extract-teacher``: every view of every patch through the teacher, once, into the store.

Work is cut into tasks of (slide, block of rows, seeds). A `TogetherWorker` does those of a block, in this process or in
the workers of `open_cluster`. A task is done when its commit record is written; what was interrupted is done again.

Several teachers, each with a store of its own, see the same views: each is read and rendered once.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.extract.like import Like, not_among, note_left_out
from pipeline.extract.options import ExtractOptions, require_distinct
from pipeline.extract.original import Original, expected
from pipeline.extract.result import Extracted, ExtractedTogether
from pipeline.extract.store_run import StoreRun
from pipeline.extract.tasks import plan_tasks, prepared, shared_sources, together
from pipeline.extract.tiling import first_tiled, holds_tiles, tile_and_find
from pipeline.inference.worker import TogetherWorker
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS, ClusterOptions
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Cluster, Done, Failures
from pipeline.slides.find import find_slides
from pipeline.tile.options import TileOptions
from pipeline.tile.prepare import require_extendable
from pipeline.tile.slides_csv import given_of
from pipeline.tiles.places import Place, find_places
from pipeline.tiles.table import are_tiles
from pipeline.views.policy import VIEW_PX, load_policy, sized
from stores.errors import DiskFull, OptionError
from stores.format import layout, manifest, recipe
from stores.format.index import drop_index, renew_index
from stores.io import files
from stores.io.lock import only_writer
from stores.io.text import counted, human_bytes


def extract(
    inputs: Sequence[Path],
    store: Path,
    options: ExtractOptions,
    tile_options: TileOptions,
    report: Reporter,
    where: ClusterOptions = IN_PROCESS,
    like: Like | None = None,
) -> Extracted:
    """Run stage one over `inputs` into one store, see `extract_together`."""
    (done,) = extract_together(inputs, [(store, options)], tile_options, report, where, like).stores
    return done


def extract_together(
    inputs: Sequence[Path],
    asked: Sequence[tuple[Path, ExtractOptions]],
    tile_options: TileOptions,
    report: Reporter,
    where: ClusterOptions = IN_PROCESS,
    like: Like | None = None,
) -> ExtractedTogether:
    """Run stage one over `inputs`; tiles slides that the stores do not know yet, or that failed before.

    One store is tiled further, see `first_tiled`, and the others take over its slides, patches and splits.

    Parameters
    ----------
    asked
        Stores, and the options of the teacher of each, which differ in none of `pipeline.extract.options.SHARED`.
    like : Like, optional
        A store whose slides, patches, policy and seeds are taken over; no slide is tiled then.

    Raises
    ------
    RecipeMismatch
        When a store was made with other options, weights or software.
    ViewMismatch
        When a view is not that of `like`, or of another of the stores.
    DiskFull
        When there is no room for what is to be written.
    ClusterError
        When the workers cannot be reached, or everything fails.
    """
    stores, options = [store for store, _ in asked], asked[0][1]
    for _, own in asked:
        own.validate()
    require_distinct(stores)
    said = f"--policy {options.policy}" if like is None else f"--like {like}"
    if like is None:
        policy = sized(load_policy(options.policy), tile_options.patch, VIEW_PX)
    else:
        policy = like.policy
    if policy.patch_px != tile_options.patch:
        raise OptionError(f"{said}: for patches of {policy.patch_px} px, not {tile_options.patch}")
    base = first_tiled(stores)
    of_tiles = like is None and (are_tiles(inputs, tile_options.tiles) or holds_tiles(base))
    if not of_tiles and like is None:  # mistakes in inputs and table are told before a teacher is loaded
        given_of(tile_options, find_slides(inputs, manifest.read_slides(base)), for_training=False)
    for store in stores:
        layout.require_unsealed(store)
        require_extendable(store)
    job = "\n".join(f"extract-teacher {store.absolute()}" for store in stores)
    with contextlib.ExitStack() as stack:
        swept = sum(stack.enter_context(only_writer(store)).swept for store in stores)
        workers = stack.enter_context(open_cluster(where, job, report))
        if like is None:
            for store in stores:
                note_left_out(store, [other.name for other in stores if other != store], report)
        # loaded before hours of tiling, since its name or weights may be wrong
        runs: list[StoreRun] = []
        for store, own in asked:
            run = StoreRun.load(store, own, workers, policy)
            if like is None and not runs:
                policy = sized(policy, tile_options.patch, run.image_px)
            run.require_fitting(policy, said, first=not runs)
            runs.append(run)
        original, places = _begin(runs, base, workers, inputs, tile_options, of_tiles, report, like)
        _plan(runs, base, places)
        _require_room(runs, policy.patch_px)
        for run in runs:
            run.choose_arithmetic(workers, policy)
        wanted = [run.wanted_recipe(policy) for run in runs]
        for run, stored in zip(runs, wanted, strict=True):
            run.settle(stored, original if like is not None or run.store != base else None, like is not None)
            into = f", into {run.store}" if len(runs) > 1 else ""
            report.note(f"teacher {run.teacher.described()}{into}")
        if swept:
            report.note(f"removed {counted(swept, 'unfinished file')} of an interrupted run")
        for run in runs:
            if run.tasks:
                drop_index(run.store)
        result = _encode(runs, wanted, base, workers, like, report)
        if workers.outlives_workers:
            for store in stores:
                files.sweep_partials(store)
        for store in stores:
            if (problem := renew_index(store)) is not None:
                report.note(f"warning: {problem}")
        if like is not None:
            for run in runs:
                run.summary.like, run.summary.compared = str(like), like.original.compared(run.store)
    return result


def _begin(
    runs: Sequence[StoreRun],
    base: Path,
    workers: Cluster,
    inputs: Sequence[Path],
    options: TileOptions,
    of_tiles: bool,
    report: Reporter,
    like: Like | None,
) -> tuple[Original | None, dict[str, Place]]:
    """Tile, or take over what is tiled; the store that others are like, if any, and where the slides are.

    Views that two stores have already are compared.
    """
    original = None if like is None else like.original
    if original is None:
        places, refused = tile_and_find(workers, inputs, base, options, of_tiles, report)
        for run in runs:
            run.summary.refused += refused
        others = [run for run in runs if run.store != base]
        if others:
            original = _original(base)
            for run in others:
                original.begin(run.store)
    else:
        for run in runs:
            original.begin(run.store)
        rows = original.rows
        places = find_places(base.absolute(), original.patch, rows.values(), inputs, options.root, report)
        missing = not_among(list(places), rows, report)
        for run in runs:
            run.summary.failed_slides |= missing
    for a, b in itertools.combinations(runs, 2):
        if like is not None or base not in (a.store, b.store):
            _original(a.store).compared(b.store)
    return original, places


def _original(store: Path) -> Original:
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    return Original(store, recipe.load(store).patch, rows, str(store))


def _plan(runs: Sequence[StoreRun], base: Path, places: Mapping[str, Place]) -> None:
    """Fill in what is to do for each store."""
    places = shared_sources(places) if len(runs) > 1 else places
    tiled = recipe.load(base)
    for run in runs:
        run.tasks = plan_tasks(run.store, tiled, places, run.options, run.summary)


def _require_room(runs: Sequence[StoreRun], patch_px: int) -> None:
    """Raise DiskFull now, not after hours, when what is left to do will not fit."""
    of_disk: dict[int, list[StoreRun]] = {}
    for run in runs:
        of_disk.setdefault(os.stat(run.store).st_dev, []).append(run)
    for sharing in of_disk.values():
        n_views = sum(run.n_views for run in sharing)
        size = sum(run.bytes_to_do(patch_px) for run in sharing)
        free = min(files.free_bytes(run.store) for run in sharing)
        if free < size + files.MARGIN_BYTES:
            raise DiskFull(
                f"--store {', '.join(str(run.store) for run in sharing)}: {n_views:,} views need {human_bytes(size)} "
                f"and {human_bytes(free)} are free: make room, or take fewer --seeds or a smaller --limit; "
                "`g2l plan` calculates what is needed"
            )


def _encode(
    runs: Sequence[StoreRun],
    recipes: Sequence[recipe.CompleteRecipe],
    base: Path,
    workers: Cluster,
    like: Like | None,
    report: Reporter,
) -> ExtractedTogether:
    """Do what is to do, block by block."""
    order = [row["slide_id"] for row in manifest.read_slides(base)]
    items = together([run.tasks for run in runs], order)
    before = sum(run.summary.views_before for run in runs)
    report.start("extract-teacher", before + sum(run.n_views for run in runs), before)
    began = time.monotonic()
    options = runs[0].options
    stages = tuple((run.encoder, run.stage(stored)) for run, stored in zip(runs, recipes, strict=True))
    worker = TogetherWorker(stages, options.threads, options.readers, workers.processes)
    todo = prepared(
        items, [(run.store, stored, run.options) for run, stored in zip(runs, recipes, strict=True)]
    )
    others: list[tuple[int | None, Original]] = [] if like is None else [(None, like.original)]
    if len(runs) > 1:
        others += [(number, _original(run.store)) for number, run in enumerate(runs)]
    if others:
        todo = expected(todo, others)
    result = ExtractedTogether([run.summary for run in runs])
    failures = [Failures(report) for _ in runs]
    for done in workers.run(worker.do, todo, report):
        _add(result, runs, failures, done)
    for run in runs:
        run.summary.seconds = time.monotonic() - began
    return result


def _add(
    result: ExtractedTogether, runs: Sequence[StoreRun], failures: Sequence[Failures], done: Done[Any, Any]
) -> None:
    """Count a block: what became of it in each store."""
    result.rendered += 0 if done.result is None else done.item.n_rendered
    for at, (number, task) in enumerate(done.item.tasks):
        summary = runs[number].summary
        if done.result is None:
            summary.add(task, None, done.error)
            continue
        outcome = done.result[at]
        if outcome.failure is None:
            failures[number].ok()
            summary.add(task, outcome, "")
        else:
            over = failures[number].over(f"{runs[number].store}: {task}", outcome.failure, outcome.trace)
            summary.add(task, None, over.error)
