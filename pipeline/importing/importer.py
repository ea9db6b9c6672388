"""Features that exist become a store of one view: seed 0, the patch as tool and encoder's transform cut and scaled it.

The features are taken as they are, in float16. The views are read here, by the tool's rule: their checksums stand in
the manifest, so that stage two proves that it shows its student these pixels. That the features are those of these
pixels is declared; ``store verify --teacher`` proves a sample.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.extract.block import StoreSink
from pipeline.extract.result import IntoStore
from pipeline.extract.tasks import create_arrays
from pipeline.importing.declared import DeclaredEncoder, declared_encoder
from pipeline.importing.h5_files import HowCut, SlideFeatures, describe, find_h5, read_slide
from pipeline.importing.options import ImportOptions
from pipeline.inference.encoding import EncodedBlock, views_table
from pipeline.inference.facts import reader_identity
from pipeline.inference.task import Task
from pipeline.runtime.options import to_json
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import threads_of
from pipeline.slides import cut
from pipeline.slides.find import find_slides
from pipeline.slides.pool import PatchPool, rows_at_once
from pipeline.slides.registry import open_slide
from pipeline.slides.slide import SlideInfo, require_square
from pipeline.slides.sources import SlideSource, open_slide_source
from pipeline.slides.thumbnail import read_overview
from pipeline.tile.grid import THUMBNAIL_MPP, morton_order, scanned_patches
from pipeline.tile.picture import draw_slide
from pipeline.tile.slides_csv import Given, given_of, require_one_split
from pipeline.tile.splits import Splits
from pipeline.views.patch_views import RowViews, draw_row
from pipeline.views.policy import Policy
from stores.errors import CorruptStore, G2LError, OptionError, RecipeMismatch, SlideError, StoreError
from stores.format import features, layout, manifest, recipe, terms
from stores.format.index import drop_index, renew_index
from stores.format.splits import count_splits, split_warnings
from stores.io import files
from stores.io.lock import only_writer
from stores.io.ranges import aligned
from stores.io.text import counted, visible

_SEEDS = range(1)
_SHOWN = 3


@dataclass(kw_only=True)
class Imported(IntoStore):
    """What a run of ``store import`` did, and what the store holds now."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What a training on the splits cannot do, a line each."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.held_json(),
            "seconds": self.seconds,
            "notes": self.notes,
            "warnings": self.warnings,
            "bad_reads": self.bad_reads,
            "unusable": self.failed_slides,
        }

    def lines(self) -> list[str]:
        """The same as text."""
        return [
            f"{self.held_line()}; recipe {self.held['recipe_digest'][:12]}",
            "teacher and views are what was declared; `g2l store verify --slides SLIDES --teacher TEACHER` proves a "
            "sample",
            *(f"note: {text}" for text in self.notes),
            *(f"warning: {text}" for text in self.warnings),
            *self.failed_lines(),
        ]


def import_features(
    folder: Path, inputs: Sequence[Path], store: Path, options: ImportOptions, report: Reporter
) -> Imported:
    """Import the h5 files of `folder` into a store, new or begun. A slide that cannot be used is a row with a reason.

    Raises
    ------
    OptionError
        When no file is of a slide among the inputs, or too little is known of the encoder.
    RecipeMismatch
        When the store was made otherwise.
    """
    options.validate()
    layout.require_unsealed(store)
    paths, found = find_slides(inputs, report=report), find_h5(folder)
    both = sorted(set(paths) & set(found))
    if not both:
        raise OptionError(
            f"{folder}: no file is of a slide that was given: the files are {_few(found)}, the slides {_few(paths)}; "
            "both need the same name before the ending"
        )
    given = given_of(options, {**found, **paths}, report=report)
    slides = [_Slide(name, found[name], paths.get(name), given) for name in found]
    result = Imported(store=store)
    if more := len(set(paths) - set(found)):
        result.notes.append(
            f"{counted(more, 'slide has', 'slides have')} no h5 file in {folder}: not in the store"
        )
    with only_writer(store):
        stored = _settle_recipe(store, [slide for slide in slides if slide.path is not None], options)
        report.start("import", len(slides))
        began = time.monotonic()
        with PatchPool(threads_of(options.threads, None)) as pool:
            _Import(store, stored, options, result, pool).run(slides, report)
        if (problem := renew_index(store)) is not None:
            result.warnings.append(problem)
        result.seconds = time.monotonic() - began
        if options.val:
            result.warnings += split_warnings(count_splits(manifest.read_slides(store)))
    return result


def _few(names: Mapping[str, Any]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


@dataclass(frozen=True, slots=True)
class _Slide:
    """A slide whose features are imported."""

    slide_id: str
    h5: Path
    path: Path | None
    """The slide file; None when it is not among the inputs."""
    given: Given
    """What the user says of slides."""

    @property
    def file(self) -> Path:
        """The slide file; SlideError when there is none."""
        if self.path is None:
            raise SlideError(f"{self.h5.name}: no slide of this name was given")
        return self.path

    def inspect(self, row: Mapping[str, Any]) -> SlideInfo:
        """What is known of the slide without reading pixels; an mpp that the user gave before stays."""
        own = (row["mpp"], row["mpp_source"]) if row.get("mpp_source") in ("csv", "option") else (None, "")
        with open_slide(self.file) as file:
            info = file.inspect(self.slide_id, *self.given.mpp.get(self.slide_id, own))
        require_square(
            info,
            "the tools whose features are imported cut squares of them, and features of those are not imported",
        )
        return info

    def row(self, splits: Splits) -> dict[str, Any]:
        """What is known before the slide is opened."""
        own = self.given.cells.get(self.slide_id, {})
        return {
            **{key: value for key, value in own.items() if key != "mpp"},
            "slide_id": self.slide_id,
            "file_name": (self.path or self.h5).name,
            "patient_id": splits.patients[self.slide_id],
            "split": splits.of(self.slide_id),
            "status": "failed",
            "reason": "",
            "n_patches": 0,
        }


def _settle_recipe(store: Path, slides: Sequence[_Slide], options: ImportOptions) -> recipe.CompleteRecipe:
    """Write the store's recipe, or compare it when there is one. The first file that can be used says how it was cut.

    Raises
    ------
    SlideError, StoreError
        When no file can be used: the reason of the first.
    """
    problem: G2LError | None = None
    for slide in slides:
        try:
            how, dim = describe(slide.h5, options.coords, options.layout)
            info = slide.inspect({})
            side_px0 = _side_px0(info, how)
        except (SlideError, StoreError) as error:
            problem = problem or error
            continue
        encoder = declared_encoder(options, how.by, dim)
        wanted = _recipe(encoder, how, side_px0 * info.mpp)
        return _settled(store, wanted, encoder, options)
    raise problem or OptionError("nothing to import")


def _recipe(encoder: DeclaredEncoder, how: HowCut, side_um: float) -> recipe.CompleteRecipe:
    size_px, view_px = encoder.resize_px, encoder.teacher.image_px
    mpp = how.target_mpp * how.cut_px / size_px if how.target_mpp else round(side_um / size_px, 4)
    return recipe.CompleteRecipe(
        recipe.Patch(mpp, size_px, recipe.AS_DECLARED, 0.0, {"kind": "declared"}),
        encoder.teacher,
        Policy("none", patch_px=size_px, crop_px=view_px, random_crop=False).to_json(),
        replace(reader_identity(), resampling=cut.rule_of(how.by)),
        declared=recipe.Declared(how.by, how.cut_px, encoder.filter, cut.VERSION),
    )


def _settled(
    store: Path, wanted: recipe.CompleteRecipe, encoder: DeclaredEncoder, options: ImportOptions
) -> recipe.CompleteRecipe:
    if not (store / layout.RECIPE).exists():
        if next(manifest.commits(store), None) is not None:
            raise StoreError(f"{store / layout.RECIPE}: is missing; restore it from a copy of the store")
        files.write_json(store / layout.options_file("import"), to_json(options))
        files.write_json(store / layout.options_file("extract-teacher"), terms.recorded(encoder.terms))
        recipe.save(store, wanted)
        return wanted
    stored = recipe.load(store)
    if stored.declared is None:
        raise RecipeMismatch(
            f"recipe.declared: {store} holds what g2l computed itself; import into another --out"
        )
    if stored.declared.by == "clam":  # its mpp is nominal: that of the slide which came first
        wanted = replace(wanted, patch=replace(wanted.patch, mpp=stored.patch.mpp))
    recipe.require_same(stored, wanted, str(store))
    return recipe.require_complete(stored, store)


def _side_px0(info: SlideInfo, how: HowCut) -> int:
    """Side of a patch in level-0 pixels."""
    if how.patch_px0 is not None:
        return how.patch_px0
    level = how.level or 0
    if level >= len(info.downsamples):
        raise SlideError(
            f"{info.slide_id}: patches of level {level}, and the slide has {len(info.downsamples)} levels"
        )
    return cut.level0_side(how.cut_px, info.downsamples[level])


@dataclass(frozen=True, slots=True)
class _Import:
    """The slides of one run."""

    store: Path
    stored: recipe.CompleteRecipe
    options: ImportOptions
    result: Imported
    pool: PatchPool

    def run(self, slides: Sequence[_Slide], report: Reporter) -> None:
        """Import slide after slide. Its row is written before its views, as by ``tile``."""
        rows = {row["slide_id"]: row for row in manifest.read_slides(self.store)}
        settled = {slide_id: row for slide_id, row in rows.items() if row["status"] == manifest.OK}
        splits = Splits(rows, slides[0].given, [slide.slide_id for slide in slides], self.options.val)
        splits.decide(rows, [slide.slide_id for slide in slides if slide.path is not None])
        planned: dict[str, dict[str, Any]] = {s.slide_id: s.row(splits) for s in slides} | settled
        require_one_split({**rows, **planned}.values())
        for slide in slides:
            row = planned[slide.slide_id]
            if slide.slide_id in settled:
                _require_unchanged(row, slide.given.cells.get(slide.slide_id, {}), ("patient_id", "split"))
            try:
                self._slide(slide, row, rows)
            except (SlideError, StoreError) as error:
                reason = self.result.failed_slides[slide.slide_id] = visible(str(error))
                if rows.get(slide.slide_id, row)["status"] != manifest.OK:
                    rows[slide.slide_id] = {**row, "status": "failed", "reason": reason, "n_patches": 0}
                    manifest.write_slides(self.store, list(rows.values()))
            report.advance(detail=slide.slide_id)

    def _slide(self, slide: _Slide, row: Mapping[str, Any], rows: dict[str, dict[str, Any]]) -> None:
        """Import one slide, and put its row into `rows`."""
        begun = row["status"] == manifest.OK
        done = {commit.block for commit in manifest.commits(self.store, slide.slide_id)} if begun else set()
        if begun and done == set(range(features.n_blocks(row["n_patches"]))):
            self.result.views_before += row["n_patches"]
            return
        info = slide.inspect(row)
        for other in rows.values():
            same = other["status"] == manifest.OK and other["fingerprint"] == info.fingerprint
            if same and other["slide_id"] != slide.slide_id:
                raise SlideError(
                    f"{slide.file.name}: the same picture as slide {other['slide_id']} (equal fingerprints); give one "
                    "of the two files"
                )
        how, dim = describe(slide.h5, self.options.coords, self.options.layout)
        placed = self._placed(row, info, how, dim, slide)
        content = read_slide(slide.h5, self.options.coords)
        source = open_slide_source(placed, slide.file, self.stored.patch, self.stored.declared)
        with source.reader.open(slide.file) as file:
            overview = read_overview(file, info, THUMBNAIL_MPP)
            order = self._order(content, info, source.plan.patch_px0, slide)
            x, y = content.coords[order].astype(np.int32).T
            seen = scanned_patches(
                file, source.plan, overview.scanned, x, y, (info.width_px0, info.height_px0)
            )
        if not seen.any():
            raise CorruptStore(f"{slide.h5}: no scanned pixel lies in its patches; is it of this slide?")
        if not seen.all():
            lost = f"{slide.slide_id}: {int((~seen).sum())} of {len(seen)} patches were never scanned, and are left out"
            self.result.notes.append(lost)
        order = order[seen]
        placed |= {"status": manifest.OK, "reason": "", "n_patches": len(order)}
        if begun:
            _require_unchanged(row, placed, ("fingerprint", "mpp", "patch_px0"))
        self._write_patches(slide.slide_id, content.coords[order], begun)
        patches = manifest.read_patches(self.store, slide.slide_id)
        picture = self.store / layout.picture_file(slide.slide_id)
        draw_slide(picture, info, source.plan, overview.pixels, None, patches)
        rows[slide.slide_id] = placed
        manifest.write_slides(self.store, list(rows.values()))
        drop_index(self.store)
        self._write_views(source, placed, patches, content.features[order], done)

    def _placed(
        self, row: Mapping[str, Any], info: SlideInfo, how: HowCut, dim: int, slide: _Slide
    ) -> dict[str, Any]:
        """The row with what the slide file says; StoreError when its patches are not those of the recipe."""
        about, patch, teacher = self.stored.declared, self.stored.patch, self.stored.teacher
        side_px0 = _side_px0(info, how)
        mpp = side_px0 * info.mpp / patch.size_px
        if about is None or (how.by, how.cut_px) != (about.by, about.cut_px):
            known = "" if about is None else f"{about.cut_px} px by {about.by}"
            raise CorruptStore(
                f"{slide.h5}: patches of {how.cut_px} px by {how.by}, the store has {known}; use another --out"
            )
        if dim != teacher.dim:
            raise CorruptStore(f"{slide.h5}: features of {dim} numbers, the store has {teacher.dim}")
        if not 1 / recipe.DECLARED_FACTOR <= mpp / patch.mpp <= recipe.DECLARED_FACTOR:
            raise CorruptStore(
                f"{slide.h5}: its patches have {mpp:g} micrometres a pixel, the store {patch.mpp:g}; is the mpp of the "
                "slide right (--slide-mpp), and the magnification that of the others?"
            )
        return {**row, **info.columns(), "patch_px0": side_px0, "patch_mpp": mpp}

    def _order(
        self, content: SlideFeatures, info: SlideInfo, side_px0: int, slide: _Slide
    ) -> npt.NDArray[np.int64]:
        """The order of rows: a Morton curve over cells of a patch's side, whatever the order in the file."""
        x, y = content.coords.T
        for name, at, size in (("x", x, info.width_px0), ("y", y, info.height_px0)):
            if int(at.max()) >= size:
                raise CorruptStore(
                    f"{slide.h5}: {name} {at.max()} lies outside of the slide of {size} pixels; is it of this slide?"
                )
        order = np.lexsort((x, y))
        return order[morton_order(x[order] // side_px0, y[order] // side_px0)]

    def _write_patches(self, slide_id: str, coords: npt.NDArray[np.int64], begun: bool) -> None:
        if begun:
            if not np.array_equal(manifest.read_patches(self.store, slide_id).coords, coords):
                raise CorruptStore(
                    f"{slide_id}: begun with other coordinates than its file has now; use another --out"
                )
            return
        x_px0, y_px0 = coords.astype(np.int32).T
        manifest.write_patches(self.store, slide_id, x_px0, y_px0, np.ones(len(coords), np.float32))

    def _write_views(
        self,
        source: SlideSource,
        row: Mapping[str, Any],
        patches: manifest.Patches,
        values: npt.NDArray[np.float16],
        done: set[int],
    ) -> None:
        """Read every patch, and write each block that is not there: chunks first, its commit record last."""
        create_arrays(self.store, source.slide_id, 1, self.stored, self.options.pixels)
        policy = Policy.from_json(self.stored.policy)
        read = functools.partial(draw_row, policy, _SEEDS, self.options.pixels, ())
        for block in range(features.n_blocks(len(patches))):
            rows = features.block_range(len(patches), block)
            if block in done:
                self.result.views_before += len(rows)
                continue
            jobs = [
                self.pool.submit_all(
                    source,
                    read,
                    [(row["fingerprint"], i, int(patches.x_px0[i]), int(patches.y_px0[i])) for i in part],
                )
                for part in aligned(rows, rows_at_once(1))
            ]
            views: list[RowViews] = [found for job in jobs for found in job.result()]
            task = Task(source, row["fingerprint"], row["split"], len(patches), block, _SEEDS, rows)
            StoreSink(self.store, task).commit(
                self._block(task, patches, views, values[rows.start : rows.stop])
            )
            self.result.views += len(rows)

    def _block(
        self,
        task: Task,
        patches: manifest.Patches,
        views: Sequence[RowViews],
        values: npt.NDArray[np.float16],
    ) -> EncodedBlock:
        kept = values[None].copy()
        pixels = None
        if self.options.pixels:
            side = self.stored.patch.size_px
            pixels = np.zeros((len(views), side, side, 3), np.uint8)
        records: list[tuple[Any, ...]] = []
        reasons: dict[int, str] = {}
        for offset, (row, found) in enumerate(zip(task.rows, views, strict=True)):
            records.append((row, 0, None if found.error else found.crcs[0], found.params[0]))
            if found.error:
                kept[0, offset] = np.nan
                reasons[row] = found.error
                self.result.bad_reads.append(f"{task.source.slide_id} row {row}: {found.error}")
            elif pixels is not None and found.patch is not None:
                pixels[offset] = found.patch
        return EncodedBlock(kept, views_table(task, patches, records), pixels, reasons)


def _require_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if old[name] != new.get(name, old[name]):
            raise OptionError(
                f"slide {old['slide_id']}: imported with {name} {old[name]!r}, now {new[name]!r}; use another --out"
            )
