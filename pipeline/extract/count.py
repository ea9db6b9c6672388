"""The patches of a plan: counted on thumbnails by the very code of ``tile``, or taken from a store that is tiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS
from pipeline.runtime.progress import Reporter
from pipeline.slides.find import find_slides
from pipeline.slides.registry import open_slide
from pipeline.slides.slide import plan_read, require_square
from pipeline.tile.grid import find_patches, patch_recipe
from pipeline.tile.groups import group_tiles, require_no_slide_options, table_of
from pipeline.tile.options import TileOptions
from pipeline.tile.qc import qc_of
from pipeline.tile.slides_csv import given_of
from pipeline.tile.splits import Splits
from pipeline.tiles.table import are_tiles, list_tiles
from stores.errors import SlideError
from stores.format import manifest, recipe
from stores.io.location import StoreLike


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """What is planned for one slide."""

    slide_id: str
    patches: int
    split: str
    patient_id: str


@dataclass(frozen=True, slots=True)
class Counted:
    """The patches that are planned."""

    slides: list[SlidePlan]
    unusable: dict[str, str]
    """Reasons, by slide."""
    refused: list[str]
    """A line for each tile that cannot be used; empty for slides."""
    patch: recipe.Patch | None = None
    """How they are cut; None where tiles are counted that are in no store yet."""
    seeds: int = 0
    """Those that views are committed under, where a store has some."""

    @property
    def n_patches(self) -> int:
        return sum(slide.patches for slide in self.slides)


def count(inputs: list[Path] | StoreLike, options: TileOptions, report: Reporter) -> Counted:
    """Count the patches of slides, of tiles, or of a store that is tiled."""
    if not isinstance(inputs, list):
        seeds = max((commit.seeds.stop for commit in manifest.commits(inputs)), default=0)
        return Counted(*_tiled(inputs), [], recipe.load(inputs).patch, seeds)
    if are_tiles(inputs, options.tiles):
        return Counted(*_count_tiles(inputs, options, report))
    return Counted(*_count(inputs, options, report), [], patch_recipe(options)[0])


def _tiled(store: StoreLike) -> tuple[list[SlidePlan], dict[str, str]]:
    """The slides of a store that is tiled already."""
    rows = manifest.read_slides(store)
    usable = [row for row in rows if row["status"] == manifest.OK]
    slides = [SlidePlan(r["slide_id"], r["n_patches"], r["split"], r["patient_id"]) for r in usable]
    return slides, {r["slide_id"]: r["reason"] for r in rows if r["status"] != manifest.OK}


def _count(
    inputs: Sequence[Path], options: TileOptions, report: Reporter
) -> tuple[list[SlidePlan], dict[str, str]]:
    paths = find_slides(inputs, report=report)
    given, qc = given_of(options, paths, report=report), qc_of(options, paths, report)
    _, rule = patch_recipe(options)
    found: dict[str, int] = {}
    unusable: dict[str, str] = {}
    report.start("plan", len(paths))
    for slide_id, path in paths.items():
        try:
            with open_slide(path) as file:
                info = file.inspect(slide_id, *given.mpp.get(slide_id, (None, "")))
                if not options.square_pixels:
                    require_square(info)
                read = plan_read(info, options.mpp, options.patch)
                of_slide = None if qc is None else qc.of(slide_id)
                grid = find_patches(file, info, read, rule, options, of_slide)
            if len(grid.patches):
                found[slide_id] = len(grid.patches)
            else:
                bad = ", or QC left it out" if grid.left_out is not None and len(grid.left_out) else ""
                unusable[slide_id] = f"no patch of it has {options.min_tissue:.0%} tissue{bad}"
        except SlideError as error:
            unusable[slide_id] = str(error)
        report.advance(detail=slide_id)
    splits = Splits({}, given, found, options.val)
    slides = [SlidePlan(i, count, splits.of(i), splits.patients[i]) for i, count in found.items()]
    return slides, unusable


def _count_tiles(
    inputs: Sequence[Path], options: TileOptions, report: Reporter
) -> tuple[list[SlidePlan], dict[str, str], list[str]]:
    """Groups, those without a patch with their reasons, and a line for each tile that cannot be used."""
    require_no_slide_options(options)
    listed = list_tiles(inputs, options.root, options.column)
    with open_cluster(IN_PROCESS, "plan", report) as workers:
        grouped = group_tiles(workers, listed, options, {}, {}, report)
    found, unusable = [], {}
    for _, group in sorted(grouped.groups.items()):
        row = table_of(grouped, group, options).row
        if row["n_patches"]:
            found.append(SlidePlan(group.slide_id, row["n_patches"], group.split, group.patient_id))
        else:
            unusable[group.slide_id] = row["reason"]
    return found, unusable, grouped.refused
