"""Stage one, ``extract-teacher``: every view of every patch through the teacher, once, into the store.

Work is cut into tasks of (slide, block of rows, seeds). A `BlockWorker` does one, in this process or in the workers of
`open_cluster`. A task is done when its commit record is written; what was interrupted is done again.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.encoders.encoder import other_size
from pipeline.extract.block import StoreStage
from pipeline.extract.like import Like, not_among, note_left_out
from pipeline.extract.options import ExtractOptions
from pipeline.extract.plan import MANIFEST_BYTES_PER_VIEW
from pipeline.extract.tasks import plan_tasks, prepared, views_to_compare
from pipeline.inference.arithmetic import Arithmetic
from pipeline.inference.facts import EncoderFacts, reader_identity
from pipeline.inference.loaded import EncoderSpec
from pipeline.inference.task import Tally, Task
from pipeline.inference.worker import BlockWorker, WorkerEncoder
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS, ClusterOptions, to_json
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Cluster
from pipeline.slides.find import find_slides
from pipeline.tile.options import TileOptions
from pipeline.tile.prepare import prepare_store, require_extendable
from pipeline.tile.slides_csv import given_of
from pipeline.tile.summary import TileSummary
from pipeline.tile.tile import tile_on
from pipeline.tile.tile_list import note_tiled, refused_before
from pipeline.tiles.places import Place, SlidePlace, find_places
from pipeline.tiles.search import root_of
from pipeline.tiles.table import are_tiles, list_tiles
from pipeline.views.policy import Policy, load_policy, sized
from stores.errors import DiskFull, OptionError
from stores.format import arithmetic, layout, manifest, recipe, terms, tiles
from stores.format.layout import read_options
from stores.info import store_info
from stores.io import files
from stores.io.lock import only_writer
from stores.io.text import counted, first_of, human_bytes

VIEW_PX = 224
"""Side of the views that a built-in policy asks the teacher for, where patches are as large."""


@dataclass(slots=True, kw_only=True)
class Extracted(Tally):
    """What a run of ``extract-teacher`` did, and what the store holds now."""

    store: Path
    refused: list[str] = field(default_factory=list)
    """A line for each tile of the list that could not be used; empty for slides."""
    like: str = ""
    """The store whose views were made again; empty without one."""
    compared: int = 0
    """Views of the store whose checksum is that of the other one."""

    @property
    def some_failed(self) -> bool:
        """Whether a slide, a tile, a block or a patch could not be done."""
        return super(Extracted, self).some_failed or bool(self.refused)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        info = store_info(self.store)
        return {
            "store": str(self.store),
            "recipe_digest": info["recipe_digest"],
            "views": info["views"],
            "views_new": self.views,
            "views_before": self.views_before,
            "complete": info["complete"],
            "bytes": info["bytes"],
            "bytes_per_view": info["bytes_per_view"],
            **self.figures_json(),
            **({"refused_tiles": self.refused} if self.refused else {}),
            **({"like": self.like, "compared": self.compared} if self.like else {}),
        }

    def lines(self) -> list[str]:
        """The same as text."""
        found = self.to_json()
        lines = [
            f"{found['views']} views in {self.store} ({self.views} new, {self.views_before} found done), "
            f"{found['complete']:.1%} of all patches; recipe {found['recipe_digest'][:12]}"
        ]
        if self.views:
            size, memory = human_bytes(found["bytes_per_view"]), human_bytes(found["peak_rss_bytes"])
            lines.append(f"{self.speed()}; {size} a view, peak memory {memory}")
        if self.like:
            others = found["views"] - self.compared
            lines.append(
                f"{counted(self.compared, 'view has', 'views have')} the checksum of that in {self.like}; "
                f"{counted(others, 'view is', 'views are')} not there"
            )
        return [*lines, *self.failed_lines(), *first_of("tile not used", self.refused)]


def extract(
    inputs: Sequence[Path],
    store: Path,
    options: ExtractOptions,
    tile_options: TileOptions,
    report: Reporter,
    where: ClusterOptions = IN_PROCESS,
    like: Like | None = None,
) -> Extracted:
    """Run stage one over `inputs`; tiles slides that the store does not know yet, or that failed before.

    Parameters
    ----------
    like : Like, optional
        A store whose slides, patches, policy and seeds are taken over; no slide is tiled then.

    Raises
    ------
    RecipeMismatch
        When the store was made with other options, weights or software.
    ViewMismatch
        When a view is not that of `like`.
    DiskFull
        When there is no room for what is to be written.
    ClusterError
        When the workers cannot be reached, or everything fails.
    """
    options.validate()
    asked = f"--policy {options.policy}" if like is None else f"--like {like}"
    if like is None:
        policy = sized(load_policy(options.policy), tile_options.patch, VIEW_PX)
    else:
        policy = like.policy
    if policy.patch_px != tile_options.patch:
        raise OptionError(f"{asked}: for patches of {policy.patch_px} px, not {tile_options.patch}")
    of_tiles = like is None and (are_tiles(inputs, tile_options.tiles) or _holds_tiles(store))
    if not of_tiles and like is None:  # mistakes in inputs and table are told before a teacher is loaded
        given_of(tile_options, find_slides(inputs, manifest.read_slides(store)), for_training=False)
    layout.require_unsealed(store)
    require_extendable(store)
    options = _absolute(options)
    job = f"extract-teacher {store.absolute()}"
    with only_writer(store) as writer, open_cluster(where, job, report) as workers:
        if like is None:
            note_left_out(store, report)
        # loaded before hours of tiling, since its name or weights may be wrong
        spec, reason = _spec(store, options, policy)
        encoder = WorkerEncoder(job, spec)
        teacher = workers.call(encoder.describe, options.tokens, options.attention)
        if like is None:
            policy = sized(policy, tile_options.patch, teacher.identity.image_px)
        if teacher.identity.image_px > tile_options.patch:
            raise OptionError(
                f"--patch {tile_options.patch}: patches of {tile_options.patch} px, but {teacher.identity.name} takes "
                f"{teacher.identity.image_px} px: give a larger --patch (smaller tiles get a margin with --pad), or "
                f"another teacher{other_size(teacher.resizable, tile_options.patch)}"
            )
        if teacher.identity.image_px != policy.crop_px:
            raise OptionError(
                f"{asked}: views of {policy.crop_px} px, "
                f"but {teacher.identity.name} takes {teacher.identity.image_px} px"
                f"{other_size(teacher.resizable, policy.crop_px)}"
            )
        summary = Extracted(store=store)
        places: Mapping[str, Place]
        if like is not None:
            like.begin(store)
            patch = like.stored.patch
            places = find_places(
                store.absolute(), patch, like.rows.values(), inputs, tile_options.root, report
            )
            summary.failed_slides |= not_among(list(places), like.rows, report)
        elif of_tiles:
            summary.refused += _tile_new_tiles(workers, inputs, store, tile_options, report)
            patch, rows = recipe.load(store).patch, manifest.read_slides(store)
            places = find_places(store.absolute(), patch, rows, inputs, tile_options.root, report)
        else:
            found = tile_on(workers, inputs, store, tile_options, report, look_again=False)
            _warn_of_splits(found, report)
            places = {slide_id: SlidePlace(path) for slide_id, path in found.paths.items()}
        tiled = recipe.load(store)
        tasks = plan_tasks(store, tiled, places, options, summary)
        _require_room(store, tasks, teacher, policy.patch_px, options)
        measured = None
        if spec.dtype == "auto":
            views = views_to_compare(store, tasks)
            measured = workers.call(encoder.compare, policy, views, options.threads)
            reason = teacher.dtype_reason if measured is None else measured.reason
            dtype = teacher.identity.dtype if measured is None else measured.chosen
            # by name, so that workers on other devices compute in it too
            encoder = WorkerEncoder(job, dataclasses.replace(spec, dtype=dtype, compile=options.compile))
            teacher = workers.call(encoder.describe, options.tokens, options.attention)
        if reason:
            teacher = dataclasses.replace(teacher, dtype_reason=reason)
        stored = _settle_recipe(store, tiled, teacher, policy, options, measured, like)
        report.note(f"teacher {teacher.described()}")
        if writer.swept:
            report.note(f"removed {counted(writer.swept, 'unfinished file')} of an interrupted run")
        n_views = summary.views_before + sum(task.n_views for task in tasks)
        report.start("extract-teacher", n_views, summary.views_before)
        began = time.monotonic()
        stage = StoreStage(store.absolute(), stored, options.pixels, options.tokens, options.attention)
        worker = BlockWorker(encoder, stage, options.threads, options.readers, workers.processes)
        todo = prepared(store, stored, tasks, options)
        for done in workers.run(worker.do, todo if like is None else like.expected(todo), report):
            summary.add(done.item, done.result, done.error)
        summary.seconds = time.monotonic() - began
        if workers.outlives_workers:
            files.sweep_partials(store)
        if like is not None:
            summary.like, summary.compared = str(like), like.compared(store)
    return summary


def _holds_tiles(store: Path) -> bool:
    return (store / layout.RECIPE).exists() and recipe.load(store).patch.grid == tiles.GRID


def _tile_new_tiles(
    workers: Cluster, inputs: Sequence[Path], store: Path, options: TileOptions, report: Reporter
) -> list[str]:
    """Tile the inputs when they list a name that the store does not have; folders may only be where its tiles are.

    Returns a line for each tile that could not be used.
    """
    refused: list[str] = []
    if are_tiles(inputs, options.tiles):
        known = set(_tile_names(store, manifest.read_slides(store)))
        tables = [path for path in inputs if path.suffix.lower() == ".csv"]
        if options.root is None and known and tables:  # of absolute paths: as they were tiled
            options = dataclasses.replace(options, root=root_of(tables[0], known))
        listed = list_tiles(inputs, options.root, options.column)
        left_out = len(set(listed.names) - known)
        if left_out:
            before = refused_before(store, listed)
            if before is None:
                tiled = tile_on(workers, inputs, store, options, report)
                _warn_of_splits(tiled, report)
                return tiled.refused
            refused = before
            report.note(
                f"{counted(left_out, 'tile of the list is', 'tiles of the list are')} not in the store, as `g2l tile` "
                "said: unusable, or with the content of others"
            )
        elif known:  # a command that was killed may have left that out
            note_tiled(store, listed, [])
    prepare_store(store, options, of_tiles=True)
    return refused


def _warn_of_splits(tiled: TileSummary, report: Reporter) -> None:
    for text in tiled.warnings:
        report.note(f"warning: {text}")


def _tile_names(store: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["status"] == manifest.OK:
            yield from manifest.read_further(store, row["slide_id"], (manifest.TILE_FILE,))[0].to_pylist()


def _absolute(options: ExtractOptions) -> ExtractOptions:
    """Options with absolute paths, since workers may stand in another folder."""
    weights = None if options.weights is None else options.weights.absolute()
    return dataclasses.replace(options, weights=weights)


def _spec(store: Path, options: ExtractOptions, policy: Policy) -> tuple[EncoderSpec, str]:
    """The teacher that is asked for, and why it has its arithmetic; that is open for a new store with `auto`."""
    spec = EncoderSpec.of(options.teacher, options, options.tokens is not None, view_px=policy.crop_px)
    if spec.dtype != "auto":
        return spec, ""
    stored = recipe.load(store).teacher if (store / layout.RECIPE).exists() else None
    if stored is not None and stored.dtype in recipe.DTYPES:
        return dataclasses.replace(spec, dtype=stored.dtype), "the store was begun with it"
    return dataclasses.replace(spec, compile=False), ""  # compiled when its arithmetic is known


def _require_room(
    store: Path,
    tasks: Sequence[Task],
    teacher: EncoderFacts,
    patch_px: int,
    options: ExtractOptions,
) -> None:
    """Raise DiskFull now, not after hours, when what is left to do will not fit."""
    n_views = sum(task.n_views for task in tasks)
    size = n_views * (2 * teacher.identity.dim + MANIFEST_BYTES_PER_VIEW)
    if teacher.tokens is not None:
        size += n_views * teacher.tokens.count * (2 * teacher.tokens.dim + 4)
    if teacher.attention is not None:
        size += n_views * 2 * teacher.attention.grid**2
    if options.pixels:
        size += sum(len(task.rows) for task in tasks if task.seeds.start == 0) * 3 * patch_px**2
    free = files.free_bytes(store)
    if free < size + files.MARGIN_BYTES:
        raise DiskFull(
            f"--store {store}: {n_views:,} views need {human_bytes(size)} and {human_bytes(free)} are free: "
            "make room, or take fewer --seeds or a smaller --limit; `g2l plan` calculates what is needed"
        )


def _settle_recipe(
    store: Path,
    stored: recipe.Recipe,
    teacher: EncoderFacts,
    policy: Policy,
    options: ExtractOptions,
    measured: Arithmetic | None,
    like: Like | None,
) -> recipe.CompleteRecipe:
    """Complete the store's recipe, or compare it when it is complete already; returns it."""
    parts = stored.patch, teacher.identity, policy.to_json(), reader_identity()
    wanted = recipe.CompleteRecipe(*parts, tokens=teacher.tokens, attention=teacher.attention)
    if stored.complete:
        recipe.require_same(stored, wanted, str(store))
        begun = read_options(store, "extract-teacher").get("pixels", options.pixels)
        if begun != options.pixels:
            raise OptionError(
                f"--pixels {options.pixels}: {store} was begun with {begun}; use that, or another --store"
            )
        return recipe.require_complete(stored, store)
    path = store / layout.options_file("extract-teacher")
    found = {} if measured is None else arithmetic.recorded(measured.chosen, measured.views, measured.errors)
    about = {} if like is None else like.about()
    files.write_json(path, to_json(options) | terms.recorded(teacher.terms) | found | about)
    recipe.save(store, wanted)
    return wanted
