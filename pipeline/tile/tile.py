"""Stage zero, ``tile``: tissue, patch grid and splits. Writes slides table, patches, and a picture of each slide.

Patches lie on a grid of whole patches from the level-0 origin. Those with enough tissue are kept, in Morton order, so
that consecutive rows are neighbours on the slide. A second run adds new slides and tries failed ones again; slides
that are done stay as they are.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS, ClusterOptions, to_json
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Advance, Cluster
from pipeline.slides.find import search_slides
from pipeline.slides.registry import open_slide
from pipeline.slides.slide import ReadPlan, SlideInfo, plan_read
from pipeline.tile import tissue
from pipeline.tile.frames import frame_counts
from pipeline.tile.grid import Grid, find_patches, patch_recipe
from pipeline.tile.options import TileOptions
from pipeline.tile.picture import draw_slide
from pipeline.tile.slides_csv import mpp_overrides, patient_of, read_slides_csv, split_of
from stores.errors import OptionError, RecipeMismatch, SlideError, StoreError
from stores.export import pseudonyms
from stores.format import layout, manifest, recipe
from stores.format.committed import in_two_splits
from stores.format.layout import read_options
from stores.io import files
from stores.io.lock import only_writer
from stores.io.text import is_utf8, unusable_lines, visible


@dataclass(frozen=True, slots=True)
class TileSummary:
    """What a run of ``tile`` left in the store."""

    store: Path
    slides: list[dict[str, Any]]
    """All rows of the slides table."""

    @property
    def unusable(self) -> list[dict[str, Any]]:
        """Rows without patches; each has a reason."""
        return [row for row in self.slides if row["status"] != manifest.OK]

    @property
    def n_patches(self) -> int:
        """Patches of all slides."""
        return sum(row["n_patches"] for row in self.slides)

    @property
    def some_failed(self) -> bool:
        """Whether some slide could not be used."""
        return bool(self.unusable)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        usable = [row for row in self.slides if row["status"] == manifest.OK]
        return {
            "store": str(self.store),
            "slides": len(self.slides),
            "slides_usable": len(usable),
            "patches": self.n_patches,
            "patches_by_slide": {row["slide_id"]: row["n_patches"] for row in self.slides},
            "splits": {
                name: sum(row["split"] == name for row in usable) for name in ("train", "val", "test")
            },
            "mask_frames": frame_counts(self.slides),
            "unusable": {row["slide_id"]: row["reason"] for row in self.unusable},
        }

    def lines(self) -> list[str]:
        """The same as text."""
        found = self.to_json()
        splits = ", ".join(f"{name} {count}" for name, count in found["splits"].items() if count)
        return [
            f"{found['slides_usable']} of {found['slides']} slides usable, {found['patches']} patches; "
            f"slides by split: {splits or 'none'}",
            *_frame_lines(found["mask_frames"]),
            f"pictures: {self.store / 'pictures'}",
            *unusable_lines(found["unusable"]),
        ]


def _frame_lines(counts: Mapping[str, int]) -> list[str]:
    named = {"slide": "the corner of the slide", "bounds": "the corner of the scanned bounds, as in QuPath"}
    return [f"masks that count from {named[name]}: {count}" for name, count in counts.items()]


def require_extendable(store: Path) -> None:
    """Refuse an export that slides or features cannot be added to.

    Raises
    ------
    RecipeMismatch
        When it keeps its features in int8, or they were imported.
    OptionError
        When it is under pseudonyms: the slides' own names would come back into it.
    """
    if not (store / layout.RECIPE).exists():
        return
    stored = recipe.load(store)
    if stored.declared is not None:
        raise RecipeMismatch(
            f"recipe.declared: {store} holds features that were imported from {stored.declared.by}; add more with "
            "`g2l store import`, or use another --store"
        )
    kind = (stored.compact or {}).get("kind")
    if kind is not None:
        raise RecipeMismatch(
            f"recipe.compact: {store} is a compact copy in {kind}, this run would write float16; "
            "use the store that it was made from, and export that again"
        )
    if any(pseudonyms.is_keyed(row["fingerprint"]) for row in manifest.read_slides(store)):
        raise OptionError(
            f"--store {store}: an export under pseudonyms, to which no slide can be matched; "
            "use the store that it was made from, and export that again"
        )


def prepare_store(store: Path, options: TileOptions) -> tissue.TissueRule:
    """Write the recipe's patch part and the options, or check that they are those of the store."""
    part, rule = patch_recipe(options)
    _require_whole(store)
    if (store / layout.RECIPE).exists():
        stored = recipe.load(store)
        recipe.require_same(stored, dataclasses.replace(stored, patch=part), str(store))
        old = read_options(store, "tile")
        for name in ("max_patches", "val"):
            if name in old and old[name] != getattr(options, name):
                flag = name.replace("_", "-")
                raise OptionError(
                    f"--{flag} {getattr(options, name)}: {store} was tiled with {old[name]}; "
                    "use that, or another --store"
                )
    else:
        files.write_json(store / layout.options_file("tile"), to_json(options))
        recipe.save(store, recipe.Recipe(part))
    return rule


def _require_whole(store: Path) -> None:
    """Raise StoreError when recipe or slides table is missing beside committed views: new ones could be others."""
    for name in (layout.RECIPE, layout.SLIDES):
        if not (store / name).exists() and next(manifest.commits(store), None) is not None:
            raise StoreError(
                f"{store / name}: is missing, and the store has committed views; restore it from a copy of the store"
            )


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
        if workers.lost:
            files.sweep_partials(store)
        return summary


def tile_on(
    workers: Cluster,
    inputs: Sequence[Path],
    store: Path,
    options: TileOptions,
    report: Reporter,
    for_training: bool = True,
) -> TileSummary:
    """`tile` on a cluster that is open. A slide is a piece of work; only this process writes the slides table.

    Parameters
    ----------
    for_training : bool
        Refuse a patient in two splits.
    """
    options.validate()
    layout.require_unsealed(store)
    require_extendable(store)
    table = read_slides_csv(options.slides_csv)
    overrides = mpp_overrides(options.slide_mpp, table)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    found = search_slides(inputs, rows.values())
    found.tell(report)
    paths = found.slides
    for name in sorted((set(table) | set(overrides)) - set(paths)):
        report.note(f"{name}: named in an option or CSV, but there is no such slide among the inputs")
    prepare_store(store, options)
    slides = [_slide_work(name, path, table, overrides, rows, options) for name, path in paths.items()]
    if for_training:
        _require_one_split([*rows.values(), *(slide.row for slide in slides)])
    report.start("tile", len(paths))
    masks = None if options.masks is None else options.masks.absolute()
    work = functools.partial(tile_slide, store.absolute(), dataclasses.replace(options, masks=masks))
    for done in workers.run(work, slides, report):
        unusable = {**done.item.row, "status": "failed", "reason": visible(done.error)}
        rows[done.item.slide_id] = unusable if done.result is None else done.result
        manifest.write_slides(store, list(rows.values()))
    return TileSummary(store, manifest.read_slides(store))


@dataclass(frozen=True, slots=True)
class SlideWork:
    """A slide to tile."""

    slide_id: str
    path: Path
    row: Mapping[str, Any]
    """Its row of the slides table, as far as it is known before the slide is opened."""
    mpp: tuple[float, str] | None
    """A resolution that overrides the one in the slide, and its source."""
    old: Mapping[str, Any] | None
    """Its row of the slides table, when it was tiled before."""

    def __str__(self) -> str:
        return self.slide_id


def _slide_work(
    slide_id: str,
    path: Path,
    table: Mapping[str, Mapping[str, str]],
    overrides: Mapping[str, tuple[float, str]],
    rows: Mapping[str, Mapping[str, Any]],
    options: TileOptions,
) -> SlideWork:
    own = table.get(slide_id, {})
    patient_id = own.get("patient_id", patient_of(slide_id))
    row: dict[str, Any] = {
        **{key: value for key, value in own.items() if key != "mpp"},
        "slide_id": slide_id,
        "file_name": path.name,
        "patient_id": patient_id,
        "split": own.get("split", split_of(patient_id, options.val)),
        "n_patches": 0,
    }
    old = rows.get(slide_id)
    if old is not None and old["status"] == manifest.OK:
        _require_unchanged(old, row, ("patient_id", "split"))
    return SlideWork(slide_id, path.absolute(), row, overrides.get(slide_id), old)


def _require_one_split(rows: Sequence[Mapping[str, Any]]) -> None:
    latest = {row["slide_id"]: row for row in rows}
    for slide_id, problem in in_two_splits(list(latest.values()), "patient_id", "patient"):
        raise OptionError(
            f"slide {slide_id}: {problem}; give all slides of a patient one split in --slides-csv, or none"
        )


def tile_slide(store: Path, options: TileOptions, slide: SlideWork, advance: Advance) -> dict[str, Any]:
    """Tile one slide, write its picture and patches, and return its row of the slides table."""
    row = _tile_slide(store, slide, options)
    advance(1)
    return row


def _tile_slide(store: Path, slide: SlideWork, options: TileOptions) -> dict[str, Any]:
    slide_id, old, row = slide.slide_id, slide.old, dict(slide.row)
    try:
        if not is_utf8(slide.path.name):
            raise SlideError(f"{visible(slide.path.name)}: its name is not UTF-8 text; rename the file")
        with open_slide(slide.path) as file:
            info = file.inspect(slide_id, *(slide.mpp or (None, "")))
            plan = plan_read(info, options.mpp, options.patch)
            row |= {
                "fingerprint": info.fingerprint,
                "vendor": info.vendor,
                "width_px0": info.width_px0,
                "height_px0": info.height_px0,
                "mpp": info.mpp,
                "mpp_source": info.mpp_source,
                "patch_px0": plan.patch_px0,
                "patch_mpp": plan.mpp,
            }
            if old is not None and old["status"] == manifest.OK:
                _require_unchanged(old, row, ("fingerprint", "mpp"))
                if old.get("mask_frame") and options.mask_frame != "auto":
                    _require_unchanged(old, {"mask_frame": options.mask_frame}, ("mask_frame",))
                return {**old, **row, "status": manifest.OK, "reason": "", "n_patches": old["n_patches"]}
            _, rule = patch_recipe(options)
            grid = find_patches(file, info, plan, rule, options)
    except SlideError as error:
        return row | {"status": "failed", "reason": visible(error)}
    if grid.mask_frame:
        row["mask_frame"] = grid.mask_frame
    draw_slide(store / layout.picture_file(slide_id), info, plan, grid.thumbnail, grid.mask, grid.patches)
    if len(grid.patches) == 0:
        return row | {"status": "no_tissue", "reason": _why_none(info, plan, grid, options)}
    patches = grid.patches
    manifest.write_patches(store, slide_id, patches.x_px0, patches.y_px0, patches.tissue)
    return row | {"status": manifest.OK, "reason": "", "n_patches": len(patches)}


def _require_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if old[name] != new[name]:
            raise OptionError(
                f"slide {old['slide_id']}: tiled with {name} {old[name]!r}, now {new[name]!r}; use another --store"
            )


def _why_none(info: SlideInfo, plan: ReadPlan, grid: Grid, options: TileOptions) -> str:
    if min(info.width_px0, info.height_px0) < plan.patch_px0:
        return f"{info.width_px0}x{info.height_px0} px, smaller than one patch of {plan.patch_px0} px"
    return (
        f"no patch of {plan.patch_px0} px has {options.min_tissue:.0%} tissue; "
        f"{grid.mask.mean():.1%} of the slide is tissue; see its picture, or lower --min-tissue"
    )
