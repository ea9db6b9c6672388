"""Stage one, ``extract-teacher``: every view of every patch through the teacher, once, into the store.

Work is cut into tasks of (slide, block of rows, seeds). A task's patches are read and rendered by threads, well
ahead of the device and across tasks; batches are cut inside a task, so that where a task runs does not
change its bytes. A task is done when its commit record is written; whatever was interrupted is done again.
"""

import collections
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pyarrow as pa

from pipeline import devices, tiling, views
from pipeline import options as opts
from pipeline import slides as slide_files
from pipeline.patches import PatchPool, Reader
from pipeline.progress import Reporter
from pipeline.tasks import ExtractSummary, Task, plan_tasks
from pipeline.teacher import Teacher, collect, load_teacher
from pipeline.views import ViewParams
from stores import features, files, layout, manifest, pixels, recipe
from stores.errors import FeatureError, OptionError, ReadError


@dataclass(frozen=True, slots=True)
class RowViews:
    """A patch rendered under every seed of a task, or the reason why it could not be read."""

    views: npt.NDArray[np.uint8]
    """(seeds, crop_px, crop_px, 3)"""
    params: list[ViewParams]
    crcs: list[int]
    patch: npt.NDArray[np.uint8] | None
    error: str = ""


def reader_identity() -> recipe.Reader:
    """The software in this process that decides pixels."""
    return recipe.Reader(
        openslide=openslide.__library_version__,
        opencv=cv2.__version__,
        resampling=slide_files.RESAMPLING,
        rendering=views.RENDERING,
        colour="as stored",
    )


def extract(
    inputs: Sequence[Path],
    store: Path,
    options: opts.ExtractOptions,
    tile_options: opts.TileOptions,
    report: Reporter,
) -> ExtractSummary:
    """Run stage one over `inputs`; tiles slides that the store does not know yet.

    Raises
    ------
    RecipeMismatch
        When the store was made with other options, weights or software.
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
    teacher = load_teacher(options)  # before hours of tiling: its name or weights may be wrong
    if teacher.identity.image_px != policy.crop_px:
        raise OptionError(
            f"--policy {options.policy}: views of {policy.crop_px} px, "
            f"but {teacher.identity.name} takes {teacher.identity.image_px} px"
        )
    known = {row["slide_id"] for row in manifest.read_slides(store)}
    if set(paths) - known:
        tiling.tile([paths[name] for name in sorted(set(paths) - known)], store, tile_options, report)
    else:
        tiling.prepare_store(store, tile_options)
    _settle_recipe(store, teacher, policy, options)
    report.note(
        f"teacher {teacher.identity.name} on {teacher.device}: {teacher.identity.dtype}, because {teacher.dtype_reason}"
    )
    swept = files.sweep_partials(store)
    if swept:
        report.note(f"removed {swept} unfinished files of an interrupted run")
    summary = ExtractSummary()
    tasks = plan_tasks(store, paths, options, summary)
    report.start(
        "extract-teacher", summary.views_before + sum(t.n_views for t in tasks), summary.views_before
    )
    began = time.monotonic()
    run_tasks(store, tasks, teacher, policy, options, summary, report)
    summary.seconds = time.monotonic() - began
    summary.figures = devices.peak_memory(teacher.device)
    return summary


def _settle_recipe(store: Path, teacher: Teacher, policy: views.Policy, options: opts.ExtractOptions) -> None:
    stored = recipe.load(store)
    wanted = recipe.Recipe(stored.patch, teacher.identity, policy.to_json(), reader_identity())
    if stored.complete:
        recipe.require_same(stored, wanted, str(store))
        begun = files.read_options(store, "extract-teacher").get("pixels", options.pixels)
        if begun != options.pixels:
            raise OptionError(
                f"--pixels {options.pixels}: {store} was begun with {begun}; use that, or another --store"
            )
    else:
        path = store / "options" / "extract-teacher.json"
        files.write_json(path, opts.to_json(options) | {"teacher_licence": teacher.encoder.licence})
        recipe.save(store, wanted)


def run_tasks(
    store: Path,
    tasks: Sequence[Task],
    teacher: Teacher,
    policy: views.Policy,
    options: opts.ExtractOptions,
    summary: ExtractSummary,
    report: Reporter,
) -> None:
    """Encode and commit tasks one after another; reading runs ahead, writing behind."""
    threads = options.threads or os.cpu_count() or 1
    n_seeds = max((len(task.seeds) for task in tasks), default=1)
    ahead = 2 * threads + 4 * teacher.batch_size // n_seeds
    with PatchPool(threads) as pool, ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        rows = read_ahead(pool, tasks, policy, options.pixels, ahead)
        writing: Future[None] | None = None
        for task in tasks:
            block = encode_task(
                task, itertools.islice(rows, len(task.rows)), teacher, policy, options, summary, report
            )
            if writing is not None:
                writing.result()
            writing = writer.submit(write_task, store, task, block, options)
        if writing is not None:
            writing.result()


def read_ahead(
    pool: PatchPool, tasks: Sequence[Task], policy: views.Policy, keep: bool, ahead: int
) -> Iterator[Future[RowViews]]:
    """Futures of all rows of all tasks in order, at most `ahead` of them not yet consumed."""
    places = ((task, row) for task in tasks for row in task.rows)
    waiting: collections.deque[Future[RowViews]] = collections.deque()
    for task, row in places:
        waiting.append(pool.submit(task.source, render_row, task, row, policy, keep))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def render_row(reader: Reader, task: Task, row: int, policy: views.Policy, keep: bool) -> RowViews:
    """Read a patch once and render it under every seed of the task."""
    x_px0, y_px0 = int(task.patches.x_px0[row]), int(task.patches.y_px0[row])
    params = [views.draw(policy, task.fingerprint, x_px0, y_px0, seed) for seed in task.seeds]
    rendered = np.empty((len(params), policy.crop_px, policy.crop_px, 3), np.uint8)
    try:
        patch = reader.read(row, x_px0, y_px0)
    except ReadError as error:
        return RowViews(rendered, params, [], None, error=str(error))
    for i, param in enumerate(params):
        rendered[i] = views.render(patch, param, policy)
    crcs = [views.view_crc32(view) for view in rendered]
    return RowViews(rendered, params, crcs, patch if keep else None)


@dataclass(slots=True)
class Block:
    """The results of a task, ready to be written."""

    features: npt.NDArray[np.float16]
    """(seeds, rows of the whole block, dim); NaN where there is none."""
    views: pa.Table
    pixels: npt.NDArray[np.uint8] | None


def encode_task(
    task: Task,
    rows: Iterator[Future[RowViews]],
    teacher: Teacher,
    policy: views.Policy,
    options: opts.ExtractOptions,
    summary: ExtractSummary,
    report: Reporter,
) -> Block:
    """Pull the task's rows through the teacher, one batch in flight on the device."""
    whole = features.block_range(len(task.patches), task.block)
    result = np.full((len(task.seeds), len(whole), teacher.identity.dim), np.nan, np.float16)
    kept = None
    if options.pixels:
        kept = np.zeros((len(whole), policy.patch_px, policy.patch_px, 3), np.uint8)
    records: list[tuple[Any, ...]] = []
    batch: list[tuple[int, int, npt.NDArray[np.uint8]]] = []
    flight: list[tuple[list[tuple[int, int]], Any]] = []

    def land() -> None:
        places, launched = flight.pop()
        try:
            values = collect(launched)
        except FeatureError as error:
            seed, offset = places[0]
            where = f"{task.source.slide_id} from row {whole.start + offset} seed {task.seeds[seed]}"
            raise FeatureError(f"{where}: {error}") from None
        for (seed, offset), value in zip(places, values, strict=True):
            result[seed, offset] = value
        report.advance(len(places), f"{task.source.slide_id} block {task.block}")

    def launch() -> None:
        launched = teacher.launch(np.stack([view for _, _, view in batch]))
        flight.insert(0, ([(seed, offset) for seed, offset, _ in batch], launched))
        batch.clear()
        if len(flight) > 1:
            land()

    for row in task.rows:
        began = time.monotonic()
        got = next(rows).result()
        summary.wait_seconds += time.monotonic() - began
        offset = row - whole.start
        if got.error:
            summary.bad_reads.append(f"{task.source.slide_id} row {row}: {got.error}")
            report.advance(len(task.seeds))
        if kept is not None and got.patch is not None:
            kept[offset] = got.patch
        for i, (seed, param) in enumerate(zip(task.seeds, got.params, strict=True)):
            crc = None if got.error else got.crcs[i]
            records.append((row, seed, crc, param))
            if not got.error:
                batch.append((i, offset, got.views[i]))
                if len(batch) == teacher.batch_size:
                    launch()
    if batch:
        launch()
    if flight:
        land()
    summary.views += len(records)
    return Block(result, _views_table(task, records), kept)


def _views_table(task: Task, records: Sequence[tuple[Any, ...]]) -> pa.Table:
    """The commit record's rows, ordered by seed, then row."""
    ordered = sorted(records, key=lambda record: (record[1], record[0]))
    rows = np.array([record[0] for record in ordered])
    n = len(ordered)
    columns: dict[str, Any] = {
        "slide_id": [task.source.slide_id] * n,
        "row": rows,
        "x_px0": task.patches.x_px0[rows],
        "y_px0": task.patches.y_px0[rows],
        "seed": [record[1] for record in ordered],
        "split": [task.split] * n,
        "tissue": task.patches.tissue[rows],
        "status": [manifest.BAD_READ if record[2] is None else manifest.OK for record in ordered],
        "view_crc32": [record[2] for record in ordered],
    }
    for name in manifest.DRAWN_SCHEMA.names:
        columns[name] = [getattr(record[3], name) for record in ordered]
    return pa.table(columns, schema=manifest.VIEWS_SCHEMA)


def write_task(store: Path, task: Task, block: Block, options: opts.ExtractOptions) -> None:
    """Write chunks, flush them, then publish the commit record: in this order a kill loses nothing."""
    slide_id = task.source.slide_id
    coords = np.stack([task.patches.x_px0, task.patches.y_px0], axis=1)
    features.create_slide(
        store, slide_id, coords, max(options.seeds, task.seeds.stop), block.features.shape[2]
    )
    for i, seed in enumerate(task.seeds):
        features.write_block(store, slide_id, seed, task.block, block.features[i])
    if block.pixels is not None:
        pixels.create_slide(store, slide_id, len(task.patches), block.pixels.shape[1])
        start = features.block_range(len(task.patches), task.block).start
        pixels.write_rows(store, slide_id, start, block.pixels)
    manifest.write_commit(store, slide_id, task.block, task.seeds, block.views)
