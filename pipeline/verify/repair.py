"""``store verify --repair``: makes again what is broken, from the slides and with the teacher, and nothing else.

The unit of work is the commit record: a block under the seeds that were extracted together. All of it is computed
again, so that batches are cut as they were and the same bytes result on a CPU; only the broken files are written.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.extract.block import StoreSink, kept_of_teacher
from pipeline.extract.tasks import create_arrays
from pipeline.inference.encoding import EncodedBlock
from pipeline.inference.engine import Channel, Engine
from pipeline.inference.facts import reader_identity
from pipeline.inference.loaded import OnDevice, load_on_device
from pipeline.inference.task import Task
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import threads_of
from pipeline.tiles.places import Place, find_places
from pipeline.verify.options import VerifyOptions
from pipeline.verify.slide_views import require_teacher_of, spec_of
from stores.errors import CorruptStore, OptionError, RecipeMismatch, StoreError, ViewMismatch
from stores.format import arrays, attention, features, layout, manifest, pixels, recipe, tiles, tokens
from stores.format.index import drop_index, renew_index
from stores.format.qc import was_judged
from stores.io.ranges import ranges_of
from stores.verify.findings import Finding

_WHOLE = ("commit", "missing", "view")  # the record is written anew, with all that it lists


@dataclass(slots=True)
class _Slide:
    """What is broken of one slide."""

    metadata: set[str] = field(default_factory=set)
    """Files that follow from the manifest alone: ``zarr.json`` and coords."""
    patches: bool = False
    chunks: set[tuple[int, int]] = field(default_factory=set)
    """(block, seed) whose features are broken."""
    stats: set[tuple[int, int]] = field(default_factory=set)
    """(block, seed) whose statistics are broken."""
    records: set[tuple[int, int]] = field(default_factory=set)
    """(block, seed) whose commit record is broken or missing."""
    pixels: set[int] = field(default_factory=set)
    """Blocks with broken pixels."""


def repair(store: Path, findings: Sequence[Finding], options: VerifyOptions, report: Reporter) -> list[str]:
    """Mend what the findings name; returns what was done, a line each. Stray files are left alone.

    Raises
    ------
    StoreError
        When recipe or slides table are broken: nothing that is left says what they were.
    RecipeMismatch
        When the teacher or the software that reads and renders is not what made the store.
    """
    drop_index(store)
    broken = [f for f in findings if f.kind != "index"]
    done = _repair(store, broken, options, report) if broken else []
    problem = renew_index(store)
    if problem is not None:
        report.note(f"warning: {problem}")
    elif len(broken) < len(findings):
        done.append(f"{layout.INDEX} written again")
    return done


def _repair(store: Path, findings: Sequence[Finding], options: VerifyOptions, report: Reporter) -> list[str]:
    lost = [f for f in findings if f.kind == "file" and f.file in (layout.RECIPE, layout.SLIDES)]
    if lost:
        raise StoreError(f"{lost[0]}: cannot be computed again; restore this file from a copy")
    stored = recipe.load_complete(store)
    if stored.compact is not None:
        raise StoreError(f"{store}: a compact copy cannot be repaired; repair the original, export it again")
    if stored.declared is not None:
        raise StoreError(
            f"{store}: its features were imported, and cannot be computed again; leave out the slide with "
            "`g2l store subset`, and import it again"
        )
    recipe.require_same(stored, dataclasses.replace(stored, reader=reader_identity()), str(store))
    teacher = load_on_device(spec_of(options, stored))
    require_teacher_of(stored, teacher, options)
    if teacher.identity.dtype != stored.teacher.dtype:
        raise RecipeMismatch(
            f"--dtype: this machine would compute in {teacher.identity.dtype}, the store was made in "
            f"{stored.teacher.dtype}; give --dtype {stored.teacher.dtype}"
        )
    broken = _by_slide(findings)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    places = find_places(store, stored.patch, rows.values(), options.slides, report=report)
    missing = sorted(set(broken) - set(places))
    if missing:
        raise OptionError(f"--slides: no file of slide {missing[0]}, which is to be repaired")
    done = _groups(store, [f.file for f in findings if f.kind == "metadata" and f.slide_id is None])
    report.start("repair", len(broken))
    for slide_id, what in sorted(broken.items()):
        work = _Repair(store, rows[slide_id], what, stored, teacher, options, done)
        work.run(places)
        report.advance(detail=slide_id)
    return done


def _groups(store: Path, names: Sequence[str]) -> list[str]:
    """Write the ``zarr.json`` of groups anew."""
    for name in names:
        arrays.write_group(store, name.removesuffix(f"/{layout.METADATA}"))
    return [f"{name} written again" for name in names]


def _by_slide(findings: Iterable[Finding]) -> dict[str, _Slide]:
    broken: dict[str, _Slide] = {}
    for finding in findings:
        if finding.slide_id is None or finding.kind in ("stray", "seal", "file"):
            continue
        what = broken.setdefault(finding.slide_id, _Slide())
        places = {(finding.block or 0, seed) for seed in finding.seeds or ()}
        if finding.kind in ("metadata", "coords"):
            what.metadata.add(finding.file)
        elif finding.kind == "patches":
            what.patches = True
        elif finding.kind == "pixels":
            what.pixels.add(finding.block or 0)
        elif finding.kind in _WHOLE:
            what.records |= places
        elif finding.kind == "stats":
            what.stats |= places
        else:
            what.chunks |= places
    return broken


@dataclass(slots=True)
class _HeldBlock:
    """A `Sink` that holds a block back: it is written when its views are found to be the old ones."""

    seeds: set[int]
    """Whose tokens are held, counted from the task's first."""
    chunks: list[tuple[int, int, npt.NDArray[np.float16]]] = field(default_factory=list)
    block: EncodedBlock = field(init=False)

    def tokens(self, seed: int, index: int, values: npt.NDArray[np.float16]) -> None:
        if seed in self.seeds:
            self.chunks.append((seed, index, values.copy()))

    def commit(self, block: EncodedBlock) -> None:
        self.block = block


@dataclass(slots=True)
class _Repair:
    """The repair of one slide."""

    store: Path
    row: Mapping[str, Any]
    what: _Slide
    stored: recipe.CompleteRecipe
    teacher: OnDevice
    options: VerifyOptions
    done: list[str]

    @property
    def slide_id(self) -> str:
        return str(self.row["slide_id"])

    def run(self, places: Mapping[str, Place]) -> None:
        source = places[self.slide_id].source(self.row, self.stored)
        if self.what.patches:
            self._patches()
        patches = manifest.read_patches(self.store, self.slide_id)
        records, intact = self._records(patches)
        if self.what.metadata:
            self._metadata(patches, records)
        n_seeds = max((seeds.stop for _, seeds in records), default=1)
        damaged = self.what.chunks | self.what.records
        for block, seed in sorted(self.what.stats - damaged):
            values = features.open_features(self.store, self.slide_id).read_block(seed, block)
            features.write_stats(self.store, self.slide_id, seed, block, values)
            self.done.append(f"slide {self.slide_id} block {block}: statistics of seed {seed} computed again")
        for block, seeds in records:
            broken = [seed for seed in seeds if (block, seed) in damaged]
            if not broken and block not in self.what.pixels:
                continue
            rows = features.block_range(len(patches), block)
            task = Task(source, self.row["fingerprint"], self.row["split"], len(patches), block, seeds, rows)
            old = intact.get((block, seeds))
            if old is not None:
                last = int(old.read(["row"])["row"].to_numpy().max())
                task = dataclasses.replace(task, rows=range(rows.start, last + 1))
            self._redo(task, patches, old, broken, n_seeds)

    def _records(
        self, patches: manifest.Patches
    ) -> tuple[list[tuple[int, range]], dict[tuple[int, range], manifest.Commit]]:
        """Every (block, seeds) that there is or should be, and the commit records that can be relied on."""
        found: list[tuple[int, range]] = []
        intact: dict[tuple[int, range], manifest.Commit] = {}
        for commit in manifest.commits(self.store, self.slide_id):
            found.append((commit.block, commit.seeds))
            if not any((commit.block, seed) in self.what.records for seed in commit.seeds):
                intact[commit.block, commit.seeds] = commit
        covered = {(block, seed) for block, seeds in found for seed in seeds}
        for block in range(features.n_blocks(len(patches))):
            lost = sorted(seed for b, seed in self.what.records - covered if b == block)
            found += [(block, seeds) for seeds in ranges_of(lost)]
        return sorted(found, key=lambda item: (item[0], item[1].start)), intact

    def _redo(
        self,
        task: Task,
        patches: manifest.Patches,
        old: manifest.Commit | None,
        broken: list[int],
        n_seeds: int,
    ) -> None:
        keep = pixels.has_pixels(self.store, self.slide_id)
        channel = Channel(self.teacher, kept_of_teacher(self.stored, keep))
        engine = Engine([channel], threads_of(self.options.threads, None))
        wanted = set(task.seeds if old is None else broken)
        held = _HeldBlock({seed for seed in range(len(task.seeds)) if task.seeds[seed] in wanted})
        with contextlib.closing(engine):
            engine.run(task, patches, held, lambda count: None)
        made, sink = held.block, StoreSink(self.store, task)
        where = f"slide {self.slide_id} rows {task.rows.start}-{task.rows.stop - 1}"
        if old is None:
            create_arrays(self.store, self.slide_id, n_seeds, self.stored, keep)
            for chunk in held.chunks:
                sink.tokens(*chunk)
            sink.commit(made)
            self.done.append(f"{where}: seeds {task.seeds.start}-{task.seeds.stop - 1} extracted again")
            return
        if not old.read().equals(made.views):
            raise ViewMismatch(
                f"{where}: the views are not those of {old.path.name} any more: another slide file or decoder; "
                "nothing was written for this block"
            )
        for chunk in held.chunks:
            sink.tokens(*chunk)
        for seed in broken:
            at = seed - task.seeds.start
            features.write_block(self.store, self.slide_id, seed, task.block, made.features[at])
            if made.positions is not None:
                tokens.write_positions(self.store, self.slide_id, seed, task.block, made.positions[at])
            if made.attention is not None:
                attention.write_block(self.store, self.slide_id, seed, task.block, made.attention[at])
            self.done.append(f"{where}: features of seed {seed} computed again")
        if task.block in self.what.pixels and made.pixels is not None:
            start = features.block_range(task.n_patches, task.block).start
            pixels.write_rows(self.store, self.slide_id, start, made.pixels)
            self.done.append(f"{where}: pixels read again")

    def _metadata(self, patches: manifest.Patches, records: Sequence[tuple[int, range]]) -> None:
        """Write ``zarr.json`` files and coords anew, each in the place of the broken one."""
        store, slide_id = self.store, self.slide_id
        n_seeds = max((seeds.stop for _, seeds in records), default=1)
        coords = patches.coords
        forms = features.forms(len(patches), n_seeds, self.stored.teacher.dim)
        if self.stored.tokens is not None:
            forms |= tokens.forms(len(patches), n_seeds, self.stored.tokens)
        if self.stored.attention is not None:
            forms[attention.LEAF] = attention.form(len(patches), n_seeds, self.stored.attention)
        of_array = {layout.feature_array(slide_id, leaf): form for leaf, form in forms.items()}
        of_array[layout.pixel_array(slide_id)] = pixels.form(len(patches), self.stored.patch.size_px)
        for name in sorted(self.what.metadata, key=lambda name: (not name.endswith(layout.METADATA), name)):
            array = name.removesuffix(f"/{layout.METADATA}")
            if array in of_array:
                metadata = arrays.fitting_metadata(store, array, of_array[array])
                arrays.write_metadata(store, array, metadata)
            elif array == layout.slide_group(slide_id):
                arrays.write_group(store, array)
            elif name == layout.chunk_file(layout.feature_array(slide_id, "coords"), (0, 0)):
                features.write_coords(store, slide_id, coords)
            else:
                raise CorruptStore(f"{store / name}: cannot be made again")
            self.done.append(f"slide {slide_id}: {name} written again")

    def _patches(self) -> None:
        """The list of patches from the commit records, if together they hold every row; they do not know tiles."""
        if self.stored.patch.grid == tiles.GRID:
            raise StoreError(
                f"slide {self.slide_id}: the list of its patches is broken, and no other file says which tiles they "
                f"were cut from; restore {layout.patches_file(self.slide_id)} from a copy"
            )
        tables = []
        for commit in manifest.commits(self.store, self.slide_id):
            try:
                tables.append(commit.read(["row", "x_px0", "y_px0", "tissue"]))
            except StoreError:
                continue
        names = ("row", "x_px0", "y_px0", "tissue")
        listed = (zip(*(table[name].to_pylist() for name in names), strict=True) for table in tables)
        found = {row: place for rows in listed for row, *place in rows}
        n_rows = self.row["n_patches"]
        if sorted(found) != list(range(n_rows)):
            raise StoreError(
                f"slide {self.slide_id}: the list of its {n_rows} patches is broken and the commit records hold "
                f"{len(found)} of them; restore {layout.patches_file(self.slide_id)} from a copy"
            )
        x, y, tissue = zip(*(found[row] for row in range(n_rows)), strict=True)
        manifest.write_patches(
            self.store,
            self.slide_id,
            np.array(x, np.int32),
            np.array(y, np.int32),
            np.array(tissue, np.float32),
        )
        without = ", without their QC columns, which no record has" if was_judged(self.row) else ""
        self.done.append(f"slide {self.slide_id}: patches written again from the commit records{without}")
