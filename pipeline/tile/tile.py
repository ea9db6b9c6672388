"""Stage zero, ``tile``: tissue, patch grid and splits. Writes slides table, patches, and a picture of each slide.

Patches lie on a grid of whole patches from the level-0 origin. Those with enough tissue are kept, in Morton order, so
that consecutive rows are neighbours on the slide. A second run adds new slides and tries failed ones again; slides
that are done stay as they are, but for what the user says of them: see `_known_row`.

One picture is one slide: of files with equal fingerprints the one that the user's table names is kept, else the first
by id; a slide that was usable before stays.
"""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import IN_PROCESS, ClusterOptions, to_json
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Advance, Cluster
from pipeline.slides.find import search_slides
from pipeline.slides.registry import open_slide
from pipeline.slides.slide import ReadPlan, SlideInfo, plan_read, require_square
from pipeline.tile.frames import frame_counts
from pipeline.tile.grid import Grid, find_patches, patch_recipe
from pipeline.tile.groups import (
    group_tiles,
    owners_of,
    require_no_slide_options,
    table_of,
    tiles_recipe,
    write_group,
)
from pipeline.tile.options import OF_TILES, TileOptions
from pipeline.tile.picture import draw_slide
from pipeline.tile.slides_csv import Given, given_of, require_one_split, split_of
from pipeline.tiles.table import TileList, are_tiles, list_tiles
from stores.errors import OptionError, RecipeMismatch, SlideError, StoreError
from stores.export import pseudonyms
from stores.format import layout, manifest, oblong, recipe
from stores.format.committed import same_picture, same_pictures
from stores.format.layout import read_options
from stores.io import files
from stores.io.lock import only_writer
from stores.io.text import first_of, is_utf8, unusable_lines, visible

_LISTED = "listed"
_OVERRIDES = ("csv", "option")
"""Sources of an mpp that the user gave."""
_MEASURED = manifest.RESERVED - {"slide_id", "file_name", "patient_id", "split"}


@dataclass(frozen=True, slots=True)
class TileSummary:
    """What a run of ``tile`` left in the store."""

    store: Path
    slides: list[dict[str, Any]]
    """All rows of the slides table."""
    paths: Mapping[str, Path] = field(default_factory=dict)
    """The slide files of the inputs, by slide id."""
    refused: list[str] = field(default_factory=list)
    """A line for each tile that could not be used; empty for slides."""

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
        """Whether some slide or tile could not be used."""
        return bool(self.unusable or self.refused)

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
        } | ({"refused_tiles": self.refused} if self.refused else {})

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
            *first_of("tile not used", self.refused),
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


def prepare_store(store: Path, options: TileOptions, of_tiles: bool = False) -> None:
    """Write the recipe's patch part and the options, or check that they are those of the store."""
    part = tiles_recipe(options) if of_tiles else patch_recipe(options)[0]
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
        said = to_json(options)
        if not options.square_pixels:  # of older stores nothing says it
            del said["square_pixels"]
        record = {name: value for name, value in said.items() if of_tiles or name not in OF_TILES}
        files.write_json(store / layout.options_file("tile"), record)
        recipe.save(store, recipe.Recipe(part))


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
        return _tile_tiles(workers, inputs, store, options, report)
    _require_no_tile_options(options)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    found = search_slides(inputs, rows.values())
    found.tell(report)
    doubled = {slide_id: paths[0] for slide_id, paths in found.doubled.items()}
    given = given_of(options, found.slides | doubled, for_training, report)
    prepare_store(store, options)
    works = [_slide_work(store, i, path, given, rows.get(i), options) for i, path in found.slides.items()]
    planned = {**rows, **{work.slide_id: work.row for work in works}}
    for slide_id, paths in found.doubled.items():
        if slide_id not in rows or rows[slide_id]["status"] != manifest.OK:
            row = _new_row(slide_id, paths[0], given, options)
            planned[slide_id] = _failed(
                row, f"{len(paths)} files have this name, in different folders; rename them"
            )
    _require_one_spelling(planned, given)
    if for_training:
        require_one_split(planned.values())
    settled = {slide_id: row for slide_id, row in rows.items() if row["status"] == manifest.OK}
    todo = [work for work in works if look_again or not work.done]
    started = {work.slide_id for work in todo}
    kept = {slide_id: row for slide_id, row in planned.items() if slide_id not in started}
    if any(rows.get(slide_id) != row for slide_id, row in kept.items()):
        rows |= kept
        manifest.write_slides(store, list(rows.values()))
    _tell(settled, [work for work in todo if work.slide_id in rows and not work.done], rows, report)
    report.start("tile", len(todo))
    masks = None if options.masks is None else options.masks.absolute()
    run = functools.partial(tile_slide, store.absolute(), dataclasses.replace(options, masks=masks))
    pictures = _Pictures(store, rows, settled, given.cells)
    for done in workers.run(run, todo, report):
        row = _failed(done.item.row, done.error) if done.result is None else done.result
        pictures.take(row)
        manifest.write_slides(store, list(rows.values()))
        pictures.remove_dropped()
    return TileSummary(store, manifest.read_slides(store), found.slides)


def _tell(
    settled: Mapping[str, Mapping[str, Any]],
    again: Sequence["SlideWork"],
    rows: Mapping[str, Mapping[str, Any]],
    report: Reporter,
) -> None:
    failed = [work.slide_id for work in again if rows[work.slide_id]["status"] == "failed"]
    if failed:
        report.note(f"{len(failed)} slides that failed before are tried again, such as {failed[0]}")
    for row, other in itertools.islice(same_pictures(settled.values()), 3):
        report.note(f"slide {row['slide_id']}: {same_picture(row, other)}")


@dataclass(slots=True)
class _Pictures:
    """Enters rows into the slides table so that one picture is one usable slide, whatever order rows come in."""

    store: Path
    rows: dict[str, dict[str, Any]]
    """The slides table."""
    settled: Mapping[str, Mapping[str, Any]]
    """Slides that were usable before: they stay."""
    listed: Collection[str]
    """Slides that the user's table names: of new ones they are kept."""
    _kept: dict[str, str] = field(default_factory=dict)
    _dropped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for slide_id, row in self.settled.items():
            self._kept.setdefault(row["fingerprint"], slide_id)

    def take(self, row: dict[str, Any]) -> None:
        """Enter a row; of two with one fingerprint, the settled, the listed, or else the first is usable."""
        slide_id = row["slide_id"]
        self.rows[slide_id] = row
        if row["status"] != manifest.OK or slide_id in self.settled:
            return
        other = self._kept.setdefault(row["fingerprint"], slide_id)
        if other != slide_id:
            keep, drop = sorted(
                (other, slide_id), key=lambda i: (i not in self.settled, i not in self.listed, i)
            )
            self._kept[row["fingerprint"]] = keep
            reason = f"the same picture as slide {keep} (equal fingerprints); give one of the two files"
            self.rows[drop] = _failed(self.rows[drop], reason)
            self._dropped.append(drop)

    def remove_dropped(self) -> None:
        """Remove the patches of slides that are no longer usable; call it when the slides table says so."""
        for slide_id in self._dropped:
            manifest.patches_path(self.store, slide_id).unlink(missing_ok=True)
        self._dropped.clear()


def _failed(row: Mapping[str, Any], reason: object) -> dict[str, Any]:
    return {**row, "status": "failed", "reason": visible(reason), "n_patches": 0}


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


def refused_before(store: Path, listed: TileList) -> list[str] | None:
    """What `note_tiled` kept of this list, when it was the last to be tiled and no group failed; None otherwise.

    The images of such a list need not be decoded again.
    """
    kept = read_options(store, _LISTED)
    whole = all(row["status"] == manifest.OK for row in manifest.read_slides(store))
    refused = kept.get("refused")
    if not whole or kept.get("digest") != listed.digest() or not isinstance(refused, list):
        return None
    return [visible(text) for text in refused]


def note_tiled(store: Path, listed: TileList, refused: Sequence[str]) -> None:
    """Keep for `refused_before` that a list is in the store, but for the tiles of these lines."""
    kept = {"digest": listed.digest(), "refused": list(refused)}
    files.write_json(store / layout.options_file(_LISTED), kept)


def _tile_tiles(
    workers: Cluster, inputs: Sequence[Path], store: Path, options: TileOptions, report: Reporter
) -> TileSummary:
    """`tile_on` where the inputs are tiles: each group of them is a row of the slides table."""
    require_no_slide_options(options)
    listed = list_tiles(inputs, options.root, options.column)
    prepare_store(store, options, of_tiles=True)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    grouped = group_tiles(workers, listed, options, owners_of(store, list(rows.values())), report)
    for note in grouped.notes:
        report.note(note)
    tables = [table_of(grouped, group, options) for _, group in sorted(grouped.groups.items())]
    require_one_split([*rows.values(), *(table.row for table in tables)])
    for table in tables:
        old = rows.get(table.row["slide_id"])
        if old is None or old["status"] != manifest.OK:
            continue
        if old["fingerprint"] != table.row["fingerprint"]:
            raise OptionError(
                f"group {old['slide_id']}: tiled with {old['n_patches']} patches, now {table.row['n_patches']} of "
                "other tiles: a group stays as it is; give new tiles a group of their own (column group), or another "
                "--store"
            )
        _require_unchanged(old, table.row, ("patient_id", "split"))
    for table in tables:
        slide_id = table.row["slide_id"]
        if table.row["n_patches"]:
            old = rows.get(slide_id)
            if old is None or old["status"] != manifest.OK:
                write_group(store, grouped, table)
        rows[slide_id] = table.row
    manifest.write_slides(store, list(rows.values()))
    note_tiled(store, listed, grouped.refused)
    return TileSummary(store, manifest.read_slides(store), refused=grouped.refused)


@dataclass(frozen=True, slots=True)
class SlideWork:
    """A slide to tile."""

    slide_id: str
    path: Path
    row: Mapping[str, Any]
    """Its row of the slides table, as far as it is known before the slide is opened."""
    mpp: tuple[float, str] | None
    """A resolution that overrides the one in the slide, and its source."""
    done: bool = False
    """Whether it was tiled before, and `row` is whole."""
    is_oblong: bool = False
    """Whether its pixels were resampled to square ones before."""

    def __str__(self) -> str:
        return self.slide_id


def _slide_work(
    store: Path,
    slide_id: str,
    path: Path,
    given: Given,
    old: Mapping[str, Any] | None,
    options: TileOptions,
) -> SlideWork:
    if old is None:
        row = _new_row(slide_id, path, given, options)
        return SlideWork(slide_id, path.absolute(), row, given.mpp.get(slide_id))
    row = _known_row(store, old, path, given, options)
    mpp = given.mpp.get(slide_id)
    if mpp is None and old["mpp_source"] in _OVERRIDES:
        mpp = old["mpp"], old["mpp_source"]
    is_oblong = old.get(oblong.MPP_Y) is not None
    same = mpp is None or (mpp[0] == old["mpp"] and not is_oblong)
    done = old["status"] == manifest.OK and same and _frame(old, options) == old.get("mask_frame")
    return SlideWork(slide_id, path.absolute(), row, mpp, done, is_oblong)


def _new_row(slide_id: str, path: Path, given: Given, options: TileOptions) -> dict[str, Any]:
    patient_id, split = given.patient_and_split(slide_id, options.val)
    row = {**given.cells.get(slide_id, {}), "slide_id": slide_id, "file_name": path.name}
    mpp, source = given.mpp.get(slide_id, (None, None))
    return {**row, "mpp": mpp, "mpp_source": source, "patient_id": patient_id, "split": split, "n_patches": 0}


def _known_row(
    store: Path, old: Mapping[str, Any], path: Path, given: Given, options: TileOptions
) -> dict[str, Any]:
    """The row of a slide that the store knows, with what the user says of it now; what nobody says stays.

    Raises
    ------
    OptionError
        When patient, split or mpp would change, and views were committed with the old one.
    """
    slide_id = old["slide_id"]
    cells = given.cells.get(slide_id, {})
    own = {name: value for name, value in cells.items() if name != "mpp"}
    row = {**old, **own, "file_name": path.name}
    if row["patient_id"] != old["patient_id"] and "split" not in cells:
        row["split"] = split_of(row["patient_id"], options.val)
    mpp, source = given.mpp.get(slide_id, (old["mpp"], ""))
    mpp_flag = "--slide-mpp" if source == "option" else "--slides-csv"
    for name, now, flag in (
        ("patient_id", row["patient_id"], "--slides-csv"),
        ("split", row["split"], "--slides-csv"),
        ("mpp", mpp, mpp_flag),
        (oblong.MPP_Y, None if slide_id in given.mpp else old.get(oblong.MPP_Y), mpp_flag),
        ("mask_frame", _frame(old, options), "--mask-frame"),
    ):
        if old["status"] == manifest.OK and now != old.get(name) and _has_views(store, slide_id):
            raise OptionError(
                f"slide {slide_id}: its views are committed with {name} {old[name]!r}, {flag} says {now!r}; "
                "correct that, or use another --store"
            )
    if old["status"] == manifest.OK:
        return row
    known = {name: value for name, value in row.items() if name not in _MEASURED}
    if slide_id in given.mpp:
        known |= {"mpp": mpp, "mpp_source": source}
    elif old["mpp_source"] in _OVERRIDES:
        known |= {"mpp": old["mpp"], "mpp_source": old["mpp_source"]}
    return known


def _frame(old: Mapping[str, Any], options: TileOptions) -> str | None:
    """The frame of a slide's mask, as the options have it now; None where it has no mask."""
    frame = old.get("mask_frame")
    return frame if frame is None or options.mask_frame == "auto" else options.mask_frame


def _has_views(store: Path, slide_id: str) -> bool:
    return next(manifest.commits(store, slide_id), None) is not None


def _require_one_spelling(rows: Mapping[str, Mapping[str, Any]], given: Given) -> None:
    """Raise OptionError when a patient of the CSV differs from another in case alone."""
    of_table = {i: cells["patient_id"] for i, cells in given.cells.items() if "patient_id" in cells}
    spelled = {patient_id.casefold(): patient_id for patient_id in of_table.values()}
    for slide_id, row in rows.items():
        patient_id = spelled.get(row["patient_id"].casefold(), row["patient_id"])
        if patient_id != row["patient_id"]:
            raise OptionError(
                f"--slides-csv: patient {patient_id!r}, and {row['patient_id']!r} of slide {slide_id} in the store; "
                "write one patient in one way"
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
            measured: dict[str, Any] = {
                "fingerprint": info.fingerprint,
                "vendor": info.vendor,
                "width_px0": info.width_px0,
                "height_px0": info.height_px0,
                "mpp": info.mpp,
                "mpp_source": info.mpp_source,
                "patch_px0": plan.patch_px0,
                "patch_mpp": plan.mpp,
                **oblong.columns(info.mpp_y, plan.sides_px0[1]),
            }
            if slide.done:
                names = ("fingerprint", "width_px0", "height_px0", "mpp", oblong.MPP_Y)
                _require_unchanged(slide.row, measured, names)
                return row | measured
            row |= measured
            _, rule = patch_recipe(options)
            grid = find_patches(file, info, plan, rule, options)
    except SlideError as error:
        said = str(error)
        for folder in (slide.path.parent, options.masks):  # a reason stands in the store, which others get
            said = said.replace(f"{folder}/", "")
        return _failed(row, said)
    if grid.mask_frame:
        row["mask_frame"] = grid.mask_frame
    draw_slide(store / layout.picture_file(slide_id), info, plan, grid.thumbnail, grid.mask, grid.patches)
    if len(grid.patches) == 0:
        reason = _why_none(info, plan, grid, options)
        return row | {"status": "no_tissue", "reason": reason, "n_patches": 0}
    patches = grid.patches
    manifest.write_patches(store, slide_id, patches.x_px0, patches.y_px0, patches.tissue)
    return row | {"status": manifest.OK, "reason": "", "n_patches": len(patches)}


def _require_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if old.get(name) != new.get(name):
            raise OptionError(
                f"slide {old['slide_id']}: tiled with {name} {old.get(name)!r}, now {new.get(name)!r}; use another "
                "--store"
            )


def _why_none(info: SlideInfo, plan: ReadPlan, grid: Grid, options: TileOptions) -> str:
    wide, high = plan.sides_px0
    side = f"{wide}" if plan.heights is None else f"{wide}x{high}"
    if info.width_px0 < wide or info.height_px0 < high:
        return f"{info.width_px0}x{info.height_px0} px, smaller than one patch of {side} px"
    return (
        f"no patch of {side} px has {options.min_tissue:.0%} tissue; "
        f"{grid.mask.mean():.1%} of the slide is tissue; see its picture, or lower --min-tissue"
    )
