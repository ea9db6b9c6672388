"""Stage zero, ``tile``: tissue, patch grid, splits; writes the manifest's slides and patches and a picture a slide.

Patches lie on a grid of whole patches from the level-0 origin; those with enough tissue are kept, in Morton
order, so that consecutive rows are neighbours on the slide. Running it again adds new slides and tries failed ones
again; slides that are done stay as they are.
"""

import csv
import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.runtime.options import IN_PROCESS, ClusterOptions, TileOptions, to_json
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Advance, Cluster, open_cluster
from pipeline.slides import slide as slide_files
from pipeline.tile import tissue
from pipeline.tile.picture import draw_slide
from stores.errors import OptionError, RecipeMismatch, SlideError, TissueError
from stores.export import pseudonyms
from stores.format import layout, manifest, recipe
from stores.io import files

THUMBNAIL_MPP = 8.0
GRID = "non-overlapping"
_TCGA_PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")


@dataclass(frozen=True, slots=True)
class TileSummary:
    """What a run of ``tile`` left in the store."""

    slides: list[dict[str, Any]]
    """All rows of the slides table."""

    @property
    def unusable(self) -> list[dict[str, Any]]:
        """Rows without patches; each has a reason."""
        return [row for row in self.slides if row["status"] != manifest.OK]

    @property
    def n_patches(self) -> int:
        return sum(row["n_patches"] for row in self.slides)


def read_slides_csv(path: Path | None) -> dict[str, dict[str, str]]:
    """Rows of ``--slides-csv`` by slide id; empty cells are left out.

    Raises
    ------
    OptionError
        When the file is absent, has no column slide_id, or a value in it is not allowed.
    """
    if path is None:
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionError(f"--slides-csv {path}: cannot be read ({files.first_line(error)})") from None
    if "slide_id" not in names:
        raise OptionError(f"--slides-csv {path}: no column slide_id; found {', '.join(names) or 'nothing'}")
    reserved = sorted(
        set(names) & set(manifest.SLIDES_SCHEMA.names) - {"slide_id", "mpp", "patient_id", "split"}
    )
    if reserved:
        raise OptionError(f"--slides-csv {path}: column {reserved[0]!r} is measured by g2l; rename it")
    result: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        slide_id = row["slide_id"]
        if slide_id in result:
            raise OptionError(f"--slides-csv {path} line {number}: slide_id {slide_id!r} stands there twice")
        result[slide_id] = {key: value for key, value in row.items() if key and value not in (None, "")}
        split = result[slide_id].get("split", "train")
        if split not in manifest.SPLITS:
            allowed = ", ".join(manifest.SPLITS)
            raise OptionError(f"--slides-csv {path} line {number}: split {split!r}; allowed: {allowed}")
    return result


def mpp_overrides(
    given: Sequence[str], table: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[float, str]]:
    """Level-0 mpp by slide id with its source; the option ``ID=MPP`` wins over the CSV."""
    pairs = [(slide_id, row["mpp"], "csv") for slide_id, row in table.items() if "mpp" in row]
    for text in given:
        slide_id, equals, value = text.rpartition("=")
        if not equals:
            raise OptionError(f"--slide-mpp {text}: expected ID=MPP, for example {text}=0.25")
        pairs.append((slide_id, value, "option"))
    result = {}
    for slide_id, value, source in pairs:
        try:
            result[slide_id] = (float(value), source)
        except ValueError:
            raise OptionError(f"mpp of {slide_id}: {value!r} is not a number") from None
    return result


def split_of(patient_id: str, val: float) -> str:
    """The split of a patient: a hash of the id against the share, so that adding slides moves nobody.

    >>> split_of("patient-1", 0.0), split_of("patient-1", 0.999999)
    ('train', 'val')
    """
    digest = hashlib.blake2b(patient_id.encode(), digest_size=8, person=b"g2l-split").digest()
    return "val" if int.from_bytes(digest, "big") < val * 2**64 else "train"


def patient_of(slide_id: str) -> str:
    """The patient a slide is of, when no CSV says it: the TCGA barcode's patient, otherwise the slide itself."""
    match = _TCGA_PATIENT.match(slide_id)
    return match.group() if match else slide_id


def morton_order(col: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The order in which grid cells follow a Morton (Z) curve."""
    code = np.zeros(len(col), np.int64)
    for bit in range(21):
        code |= ((col >> bit) & 1) << (2 * bit) | ((row >> bit) & 1) << (2 * bit + 1)
    return np.argsort(code, kind="stable")


def sample_of(
    fingerprint: str, x_px0: npt.NDArray[np.int32], y_px0: npt.NDArray[np.int32], keep: int
) -> npt.NDArray[np.bool_]:
    """Which `keep` patches stay: those with the smallest hash of slide and position, whatever the others are."""
    keys = [
        hashlib.blake2b(f"{fingerprint} {x} {y}".encode(), digest_size=8).digest()
        for x, y in zip(x_px0.tolist(), y_px0.tolist(), strict=True)
    ]
    chosen = np.zeros(len(keys), bool)
    chosen[sorted(range(len(keys)), key=keys.__getitem__)[:keep]] = True
    return chosen


@dataclass(frozen=True, slots=True)
class Grid:
    """The patches of a slide, and what they were chosen by."""

    patches: manifest.Patches
    thumbnail: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]


def find_patches(
    info: slide_files.SlideInfo,
    plan: slide_files.ReadPlan,
    rule: tissue.TissueRule,
    options: TileOptions,
) -> Grid:
    """Tissue mask of a slide and the patches with enough of it, in row order."""
    thumbnail = slide_files.read_thumbnail(info, THUMBNAIL_MPP)
    size_px0 = (info.width_px0, info.height_px0)
    if options.masks is None:
        mask = tissue.tissue_mask(
            thumbnail, rule, thumbnail_mpp=info.width_px0 * info.mpp / thumbnail.shape[1]
        )
    else:
        found = tissue.load_user_mask(options.masks, info.slide_id, size_px0, thumbnail.shape[:2])
        if found is None:
            raise TissueError(
                f"{info.slide_id}: no mask {info.slide_id}.png, .tif or .geojson in {options.masks}"
            )
        mask = found
    side = plan.patch_px0
    row, col = np.divmod(
        np.arange((size_px0[1] // side) * (size_px0[0] // side)), max(size_px0[0] // side, 1)
    )
    x_px0, y_px0 = (col * side).astype(np.int32), (row * side).astype(np.int32)
    share = tissue.patch_tissue_fraction(mask, x_px0, y_px0, side, size_px0)
    keep = share >= options.min_tissue
    if options.max_patches is not None and keep.sum() > options.max_patches:
        keep[keep] = sample_of(info.fingerprint, x_px0[keep], y_px0[keep], options.max_patches)
    order = np.flatnonzero(keep)[morton_order(col[keep], row[keep])]
    return Grid(manifest.Patches(x_px0[order], y_px0[order], share[order]), thumbnail, mask)


def patch_recipe(options: TileOptions) -> tuple[recipe.Patch, tissue.TissueRule]:
    """The recipe's part that tiling decides, and the tissue rule in it."""
    rule = tissue.USER_MASK if options.masks is not None else tissue.CLASSICAL
    part = recipe.Patch(options.mpp, options.patch, GRID, options.min_tissue, rule.to_json())
    return part, rule


def require_extendable(store: Path) -> None:
    """Refuse an export that slides or features cannot be added to.

    Raises
    ------
    RecipeMismatch
        When it keeps its features in int8.
    OptionError
        When it is under pseudonyms: the slides' own names would come back into it.
    """
    if not (store / recipe.FILE_NAME).exists():
        return
    kind = (recipe.load(store).compact or {}).get("kind")
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
    if (store / recipe.FILE_NAME).exists():
        stored = recipe.load(store)
        recipe.require_same(stored, dataclasses.replace(stored, patch=part), str(store))
        old = files.read_options(store, "tile")
        for name in ("max_patches", "val"):
            if name in old and old[name] != getattr(options, name):
                flag = name.replace("_", "-")
                raise OptionError(
                    f"--{flag} {getattr(options, name)}: {store} was tiled with {old[name]}; "
                    "use that, or another --store"
                )
    else:
        files.write_json(store / "options" / "tile.json", to_json(options))
        recipe.save(store, recipe.Recipe(part))
    return rule


def tile(
    inputs: Sequence[Path],
    store: Path,
    options: TileOptions,
    report: Reporter,
    where: ClusterOptions = IN_PROCESS,
) -> TileSummary:
    """Tile every slide that is not tiled yet. A slide that cannot be used becomes a row with a reason."""
    job = f"tile {store.absolute()}"
    with files.only_writer(store), open_cluster(where, job, report) as workers:
        return tile_on(workers, inputs, store, options, report)


def tile_on(
    workers: Cluster, inputs: Sequence[Path], store: Path, options: TileOptions, report: Reporter
) -> TileSummary:
    """`tile` on a cluster that is open: a slide is a piece of work, and the slides table is written here alone."""
    options.validate()
    layout.require_unsealed(store)
    require_extendable(store)
    table = read_slides_csv(options.slides_csv)
    overrides = mpp_overrides(options.slide_mpp, table)
    paths = slide_files.find_slides(inputs)
    for name in sorted((set(table) | set(overrides)) - set(paths)):
        report.note(f"{name}: named in an option or CSV, but there is no such slide among the inputs")
    prepare_store(store, options)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    slides = [_slide_work(name, path, table, overrides, rows, options) for name, path in paths.items()]
    report.start("tile", len(paths))
    masks = None if options.masks is None else options.masks.absolute()
    work = functools.partial(tile_slide, store.absolute(), dataclasses.replace(options, masks=masks))
    for done in workers.run(work, slides, report):
        unusable = {**done.item.row, "status": "failed", "reason": done.error}
        rows[done.item.slide_id] = unusable if done.result is None else done.result
        manifest.write_slides(store, list(rows.values()))
    return TileSummary(manifest.read_slides(store))


@dataclass(frozen=True, slots=True)
class SlideWork:
    """A slide to tile."""

    slide_id: str
    path: Path
    row: Mapping[str, Any]
    """Of the slides table, as far as it is known before the slide is opened."""
    mpp: tuple[float, str] | None
    """What overrides the slide's own, and where it comes from."""
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


def tile_slide(store: Path, options: TileOptions, slide: SlideWork, advance: Advance) -> dict[str, Any]:
    """Tile one slide, write its picture and patches, and return its row of the slides table."""
    row = _tile_slide(store, slide, options)
    advance(1)
    return row


def _tile_slide(store: Path, slide: SlideWork, options: TileOptions) -> dict[str, Any]:
    slide_id, old, row = slide.slide_id, slide.old, dict(slide.row)
    try:
        info = slide_files.inspect(slide_id, slide.path, *(slide.mpp or (None, "")))
        plan = slide_files.plan_read(info, options.mpp, options.patch)
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
            return {**old, **row, "status": manifest.OK, "reason": "", "n_patches": old["n_patches"]}
        _, rule = patch_recipe(options)
        grid = find_patches(info, plan, rule, options)
    except SlideError as error:
        return row | {"status": "failed", "reason": str(error)}
    draw_slide(store / "pictures" / f"{slide_id}.png", info, plan, grid.thumbnail, grid.mask, grid.patches)
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


def _why_none(
    info: slide_files.SlideInfo, plan: slide_files.ReadPlan, grid: Grid, options: TileOptions
) -> str:
    if min(info.width_px0, info.height_px0) < plan.patch_px0:
        return f"{info.width_px0}x{info.height_px0} px, smaller than one patch of {plan.patch_px0} px"
    return (
        f"no patch of {plan.patch_px0} px has {options.min_tissue:.0%} tissue; "
        f"{grid.mask.mean():.1%} of the slide is tissue; see its picture, or lower --min-tissue"
    )
