"""What stage one has to do: tasks of (slide, block, seeds), less what is committed already."""

import bisect
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipeline.extract.options import ExtractOptions
from pipeline.inference.arithmetic import COMPARED, ViewToRead
from pipeline.inference.task import Tally, Task, Together
from pipeline.slides.sources import Source
from pipeline.tiles.places import Place
from pipeline.tiles.source import GroupSource
from stores.errors import CorruptStore, SlideError
from stores.format import attention, features, manifest, pixels, recipe, tokens
from stores.format.index import Index, read_index
from stores.io.ranges import ranges_of, spread


def plan_tasks(
    store: Path,
    stored: recipe.Recipe,
    places: Mapping[str, Place],
    options: ExtractOptions,
    summary: Tally,
) -> list[Task]:
    """What is still to do, in order of slide, block and seeds; fills in what is done and what cannot be."""
    tasks: list[Task] = []
    index = index_of(store)
    left = options.limit if options.limit is not None else 1 << 62
    for row in manifest.read_slides(store):
        slide_id = row["slide_id"]
        if row["status"] != manifest.OK:
            summary.failed_slides[slide_id] = row["reason"]
            continue
        take = min(left, row["n_patches"])
        left -= take
        if take == 0 or slide_id not in places:
            continue
        try:
            source = places[slide_id].source(row, stored)
        except SlideError as error:
            summary.failed_slides[slide_id] = str(error)
            continue
        n_patches = row["n_patches"]
        moved = isinstance(source, GroupSource) and bool(source.moved)
        tile = manifest.read_patches(store, slide_id).tile if moved else None
        records = done_of(store, slide_id, index)
        for block in range(features.n_blocks(n_patches)):
            rows = features.block_range(n_patches, block)
            rows = range(rows.start, min(rows.stop, take))
            missing = missing_seeds(records.get(block, ()), rows, options.seeds, summary)
            part = source
            if isinstance(source, GroupSource) and tile is not None:
                part = source.for_part(f"block {block}", tile[rows.start : rows.stop])
            for seeds in missing:
                tasks.append(Task(part, row["fingerprint"], row["split"], n_patches, block, seeds, rows))
    return tasks


def views_to_compare(store: Path, tasks: Sequence[Task], n: int = COMPARED) -> list[ViewToRead]:
    """At most `n` views, evenly spread over the patches of `tasks`, under their seeds in turn."""
    ends = list(itertools.accumulate(len(task.rows) for task in tasks))
    found = []
    for i, number in enumerate(spread(ends[-1] if ends else 0, n)):
        at = bisect.bisect_right(ends, number)
        task = tasks[at]
        row = task.rows[number - ends[at]]  # from the end of its task
        patches = manifest.read_patches(store, task.source.slide_id, task.n_patches)
        x_px0, y_px0 = int(patches.x_px0[row]), int(patches.y_px0[row])
        seed = task.seeds[i % len(task.seeds)]
        found.append(ViewToRead(task.source, patches.key(row, task.fingerprint), row, x_px0, y_px0, seed))
    return found


def shared_sources(places: Mapping[str, Place]) -> dict[str, Place]:
    """The places, each of which opens its slide once, however many stores are planned."""
    return {slide_id: _Once(place) for slide_id, place in places.items()}


@dataclass(slots=True)
class _Once:
    """A place that keeps what it found; of one patch recipe."""

    place: Place
    found: Source | SlideError | None = None

    @property
    def name(self) -> str:
        return self.place.name

    def source(self, row: Mapping[str, Any], stored: recipe.Recipe) -> Source:
        if self.found is None:
            try:
                self.found = self.place.source(row, stored)
            except SlideError as error:
                self.found = error
        if isinstance(self.found, SlideError):
            raise self.found
        return self.found


def together(tasks: Sequence[Sequence[Task]], order: Sequence[str]) -> list[Together]:
    """The tasks of several stores, block by block: those of a block are done together.

    Parameters
    ----------
    tasks
        Those of each store.
    order
        Ids of slides, in the order in which they are done.
    """
    place = {slide_id: i for i, slide_id in enumerate(order)}
    blocks: dict[tuple[int, int], list[tuple[int, Task]]] = {}
    for number, of_store in enumerate(tasks):
        for task in of_store:
            of_block = blocks.setdefault((place[task.source.slide_id], task.block), [])
            # one source for all, since it may be large and travels with them
            source = of_block[0][1].source if of_block else task.source
            of_block.append((number, replace(task, source=source)))
    return [Together(tuple(of_block)) for _, of_block in sorted(blocks.items(), key=lambda item: item[0])]


def prepared(
    items: Sequence[Together], stores: Sequence[tuple[Path, recipe.CompleteRecipe, ExtractOptions]]
) -> Iterator[Together]:
    """The items, each after its slide's arrays are there: this process alone makes arrays and adds seeds to them.

    Parameters
    ----------
    stores
        What the items number: store, recipe, and the options of its teacher.
    """
    for slide_id, group in itertools.groupby(items, key=lambda item: item.first.source.slide_id):
        of_slide = list(group)
        for number, (store, stored, options) in enumerate(stores):
            stops = [task.seeds.stop for item in of_slide for n, task in item.tasks if n == number]
            if stops:
                create_arrays(store, slide_id, max(options.seeds, *stops), stored, options.pixels)
        yield from of_slide


def create_arrays(
    store: Path, slide_id: str, n_seeds: int, stored: recipe.CompleteRecipe, with_pixels: bool
) -> None:
    """Make a slide's arrays as the recipe has them, with the committed seeds at least, or let them grow."""
    n_seeds = max([n_seeds, *(commit.seeds.stop for commit in manifest.commits(store, slide_id))])
    patches = manifest.read_patches(store, slide_id)
    coords = patches.coords
    if stored.tokens is not None:
        tokens.create_slide(store, slide_id, len(patches), n_seeds, stored.tokens)
    if stored.attention is not None:
        attention.create_slide(store, slide_id, len(patches), n_seeds, stored.attention)
    if with_pixels:
        pixels.create_slide(store, slide_id, len(patches), stored.patch.size_px)
    features.create_slide(store, slide_id, coords, n_seeds, stored.teacher.dim)


Done = tuple[manifest.Commit, npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""A commit record, the rows that it lists, and those of them that could not be read."""


def index_of(store: Path) -> Index | None:
    """The index of a store that is to be extended; none where it does not fit: it is written again at the end."""
    with contextlib.suppress(CorruptStore):
        return read_index(store)
    return None


def done_of(store: Path, slide_id: str, index: Index | None) -> dict[int, list[Done]]:
    """The records of each block of a slide, from the index where there is one."""
    found: dict[int, list[Done]] = {}
    if index is not None:
        for record in index.of_slide.get(slide_id, ()):
            bad = np.setdiff1d(record.rows, record.ok)
            found.setdefault(record.commit.block, []).append((record.commit, record.rows, bad))
        return found
    for commit in manifest.commits(store, slide_id):
        table = commit.read(["row", "seed", "status"])
        unread = table.filter(pc.equal(table["status"], manifest.BAD_READ))
        rows, bad = (np.unique(part["row"].to_numpy()) for part in (table, unread))
        found.setdefault(commit.block, []).append((commit, rows, bad))
    return found


def missing_seeds(records: Iterable[Done], rows: range, n_seeds: int, summary: Tally) -> list[range]:
    """Ranges of seeds of a block that have none of its commit records, or one with fewer rows than wanted.

    Fills in what is done.
    """
    if not rows:
        return []
    todo: list[range] = []
    covered: set[int] = set()
    for commit, listed, bad in records:
        covered |= set(commit.seeds)
        if not len(listed) or listed[-1] < rows.stop - 1:
            todo.append(commit.seeds)
        else:
            summary.views_before += len(rows) * len(commit.seeds)
            summary.bad_reads += [f"{commit.slide_id} row {r}" for r in bad.tolist()]
    return [*todo, *ranges_of(seed for seed in range(n_seeds) if seed not in covered)]
