"""Stage one, ``extract-teacher``: every view of every patch through the teacher, once, into the store.

Work is cut into tasks of (slide, block of rows, seeds); `pipeline.blocks` does one, wherever `pipeline.cluster` sends
it. A task is done when its commit record is written; whatever was interrupted is done again.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import blocks, cluster, tiling, views
from pipeline import options as opts
from pipeline import slides as slide_files
from pipeline.plan import MANIFEST_BYTES_PER_VIEW
from pipeline.progress import Reporter
from pipeline.tasks import Tally, Task, plan_tasks, prepared
from stores import disk, files, layout, manifest, recipe
from stores.errors import DiskFull, OptionError
from stores.text import human_bytes


def extract(
    inputs: Sequence[Path],
    store: Path,
    options: opts.ExtractOptions,
    tile_options: opts.TileOptions,
    report: Reporter,
    where: opts.ClusterOptions = opts.IN_PROCESS,
) -> Tally:
    """Run stage one over `inputs`; tiles slides that the store does not know yet.

    Raises
    ------
    RecipeMismatch
        When the store was made with other options, weights or software.
    DiskFull
        When there is no room for what is to be written.
    ClusterError
        When the workers cannot be reached, or everything fails.
    """
    options.validate()
    policy = views.load_policy(options.policy)
    if policy.patch_px != tile_options.patch:
        raise OptionError(
            f"--policy {options.policy}: for patches of {policy.patch_px} px, not {tile_options.patch}"
        )
    paths = slide_files.find_slides(inputs)
    layout.require_unsealed(store)
    tiling.require_extendable(store)
    options = _absolute(options)
    job = f"extract-teacher {store.absolute()}"
    with files.only_writer(store), cluster.open_cluster(where, job, report) as workers:
        # before hours of tiling: its name or weights may be wrong
        teacher = workers.call(blocks.describe_teacher, workers.job, options)
        if teacher.identity.image_px != policy.crop_px:
            raise OptionError(
                f"--policy {options.policy}: views of {policy.crop_px} px, "
                f"but {teacher.identity.name} takes {teacher.identity.image_px} px"
            )
        known = {row["slide_id"] for row in manifest.read_slides(store)}
        if set(paths) - known:
            new = [paths[name] for name in sorted(set(paths) - known)]
            tiling.tile_on(workers, new, store, tile_options, report)
        else:
            tiling.prepare_store(store, tile_options)
        summary = Tally()
        tasks = plan_tasks(store, paths, options, summary)
        _require_room(store, tasks, teacher, policy.patch_px, options)
        _settle_recipe(store, teacher, policy, options)
        report.note(f"teacher {teacher.described()}")
        swept = files.sweep_partials(store)
        if swept:
            report.note(f"removed {swept} unfinished files of an interrupted run")
        n_views = summary.views_before + sum(task.n_views for task in tasks)
        report.start("extract-teacher", n_views, summary.views_before)
        began = time.monotonic()
        setup = blocks.Setup(workers.job, store.absolute(), options, workers.processes)
        ready = prepared(store, tasks, options)
        for done in workers.run(functools.partial(blocks.extract_block, setup), ready, report):
            summary.add(done.item, done.result, done.error)
        summary.seconds = time.monotonic() - began
    return summary


def _absolute(options: opts.ExtractOptions) -> opts.ExtractOptions:
    """Paths that are right wherever a worker stands."""
    weights = None if options.weights is None else options.weights.absolute()
    return dataclasses.replace(options, weights=weights)


def _require_room(
    store: Path,
    tasks: Sequence[Task],
    teacher: blocks.TeacherFacts,
    patch_px: int,
    options: opts.ExtractOptions,
) -> None:
    """Raise DiskFull when what is left to do will not fit: hours before it would be noticed."""
    n_views = sum(task.n_views for task in tasks)
    size = n_views * (2 * teacher.identity.dim + MANIFEST_BYTES_PER_VIEW)
    if teacher.tokens is not None:
        size += n_views * teacher.tokens.count * (2 * teacher.tokens.dim + 4)
    if options.pixels:
        size += sum(len(task.rows) for task in tasks if task.seeds.start == 0) * 3 * patch_px**2
    free = disk.free_bytes(store)
    if free < size + disk.MARGIN_BYTES:
        raise DiskFull(
            f"--store {store}: {n_views:,} views need {human_bytes(size)} and {human_bytes(free)} are free: "
            "make room, or take fewer --seeds or --limit first; `g2l plan` reckons"
        )


def _settle_recipe(
    store: Path, teacher: blocks.TeacherFacts, policy: views.Policy, options: opts.ExtractOptions
) -> None:
    stored = recipe.load(store)
    reader = blocks.reader_identity()
    wanted = recipe.Recipe(stored.patch, teacher.identity, policy.to_json(), reader, tokens=teacher.tokens)
    if stored.complete:
        recipe.require_same(stored, wanted, str(store))
        begun = files.read_options(store, "extract-teacher").get("pixels", options.pixels)
        if begun != options.pixels:
            raise OptionError(
                f"--pixels {options.pixels}: {store} was begun with {begun}; use that, or another --store"
            )
    else:
        path = store / "options" / "extract-teacher.json"
        files.write_json(path, opts.to_json(options) | {"teacher_licence": teacher.licence})
        recipe.save(store, wanted)
