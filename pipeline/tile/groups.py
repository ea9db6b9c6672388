"""``tile`` on tiles: images that were cut before become the patches of groups, which stand in the place of slides.

Every tile is decoded once and known by its content from then on: rows are in order of content, a tile that is listed
twice is kept once, and without a column ``group`` the content also decides between training and validation. So neither
the order of a list nor the names in it change a feature.
"""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Advance, Cluster
from pipeline.tile.options import TileOptions
from pipeline.tile.pairs import describe_pairs, require_whole_pairs
from pipeline.tile.picture import write_png
from pipeline.tile.splits import assign, split_of
from pipeline.tile.tissue import TissueRule
from pipeline.tiles.image import TileReader, corners
from pipeline.tiles.table import TileList
from stores.errors import OptionError, ReadError
from stores.format import layout, manifest, recipe, tiles
from stores.format.layout import is_slide_id
from stores.io.ranges import spread
from stores.io.text import counted, is_utf8, visible

_CHUNK = 256
_SHEET, _CELL_PX = 100, 96
_Place = tuple[str, int, int, int]
"""Of a patch: the fingerprint of its tile, y, x, and the number of the tile in the list."""


def tiles_recipe(options: TileOptions) -> recipe.Patch:
    """The part of the recipe that tiling decides, where the inputs are tiles."""
    rule = TissueRule(kind="none").to_json()
    if options.pad != "none":
        rule["pad"] = options.pad
    return recipe.Patch(options.mpp, options.patch, tiles.GRID, 0.0, rule)


def require_no_slide_options(options: TileOptions) -> None:
    """Raise OptionError that names an option which only slides have."""
    given = {
        "--slide-mpp": bool(options.slide_mpp),
        "--square-pixels": options.square_pixels,
        "--masks": options.masks is not None,
        "--qc": options.qc is not None,
        "--slides-csv": options.slides_csv is not None,
        "--min-tissue": options.min_tissue != TileOptions.min_tissue,
    }
    for flag, is_given in given.items():
        if is_given:
            raise OptionError(
                f"{flag}: is for slides, and the inputs are tiles: they have the resolution --mpp, no tissue rule, and "
                "what is known of each stands in the columns of their table"
            )


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tiles of one folder, to be decoded."""

    folder: Path
    names: tuple[str, ...]

    def __str__(self) -> str:
        return self.names[0]


def look(size_px: int, pad: str, piece: Piece, advance: Advance) -> list[tuple[str, int, int]]:
    """(fingerprint, height, width) of each tile of a piece; (reason, 0, 0) where it cannot be used."""
    reader, found = TileReader(), []
    for name in piece.names:
        try:
            if not is_utf8(name):  # the patches table is Parquet, whose text is UTF-8
                raise ReadError("its name is not UTF-8 text; rename it")
            pixels = reader.read(piece.folder, name)
            corners(pixels.shape[0], pixels.shape[1], size_px, pad)
            found.append((tiles.fingerprint_of_tile(pixels), pixels.shape[0], pixels.shape[1]))
        except ReadError as error:
            found.append((visible(error), 0, 0))
    reader.close()
    advance(len(piece.names))
    return found


@dataclass(slots=True)
class Group:
    """A group of tiles, as it will stand in the store."""

    slide_id: str
    split: str
    patient_id: str
    members: dict[str, int] = field(default_factory=dict)
    """Number in the list of each tile, by fingerprint."""
    refused: list[str] = field(default_factory=list)
    """A line for each tile that cannot be used."""


@dataclass(slots=True)
class Grouped:
    """The groups of a list of tiles."""

    listed: TileList
    sizes: list[tuple[str, int, int]]
    """As `look` found them."""
    groups: dict[str, Group]
    notes: list[str]

    @property
    def refused(self) -> list[str]:
        """A line for each tile that cannot be used."""
        return [text for _, group in sorted(self.groups.items()) for text in group.refused]


def group_tiles(
    workers: Cluster,
    listed: TileList,
    options: TileOptions,
    owners: Mapping[str, str],
    recorded: Mapping[str, str],
    report: Reporter,
) -> Grouped:
    """Decode every tile and lay out the groups.

    Parameters
    ----------
    owners
        The group of each tile that the store has already.
    recorded
        The split of each tile and of each patient that the store has already.

    Raises
    ------
    OptionError
        When a group or a patient is in two splits, or a group has two patients.
    """
    chunks = {
        Piece(listed.folders[r.start], tuple(listed.names[r.start : r.stop])): r
        for r in listed.chunks(_CHUNK)
    }
    seen: list[tuple[str, int, int]] = [("", 0, 0)] * len(listed)
    report.start("tile", len(listed))
    for done in workers.run(functools.partial(look, options.patch, options.pad), list(chunks), report):
        r = chunks[done.item]
        seen[r.start : r.stop] = done.result or [(visible(done.error), 0, 0)] * len(r)
    groups: dict[str, Group] = {}
    ids: dict[str, str] = {}
    homes: list[Group] = []
    splits = _splits_of(listed, seen, recorded, options.val)
    for i, (fingerprint, height, _) in enumerate(seen):
        text, patient_id, split = _group_of(listed, i, splits[i])
        slide_id = ids.setdefault(text, _id_of(text))
        group = groups.setdefault(slide_id, Group(slide_id, split, patient_id))
        homes.append(group)
        for name, value in (("split", split), ("patient_id", patient_id)):
            if getattr(group, name) != value:
                raise OptionError(
                    f"group {text}: {name} {getattr(group, name)!r} and, of {listed.names[i]}, {value!r}; a group has "
                    "one"
                )
        if not height:
            group.refused.append(f"{visible(listed.names[i])}: {fingerprint}")
    _require_one_split_each(listed, homes)
    require_whole_pairs(listed, [home.split for home in homes])
    notes = _give_out(listed, seen, homes, owners)
    members = [(fingerprint, i) for group in groups.values() for fingerprint, i in group.members.items()]
    return Grouped(listed, seen, groups, [*notes, *describe_pairs(listed, [i for _, i in members])])


def _splits_of(
    listed: TileList, seen: Sequence[tuple[str, int, int]], recorded: Mapping[str, str], val: float
) -> list[str]:
    """The split of each tile: as the list says it, or as the store has it, or that of its patient, group, pair or
    content."""
    none = [""] * len(listed)
    group, patient_id, said, pair = (
        listed.columns.get(name, none) for name in ("group", "patient_id", "split", tiles.PAIR)
    )
    content = [fingerprint if height else "" for fingerprint, height, _ in seen]
    pairs = [f"pair {name}" if name else "" for name in pair]
    owners = [patient_id[i] or group[i] or pairs[i] or content[i] for i in range(len(listed))]
    known: dict[str, str] = {}
    for i, owner in enumerate(owners):
        split = said[i] or recorded.get(owner) or ("" if group[i] else recorded.get(content[i], ""))
        if owner and split:
            known[owner] = split
    usable = {owner for owner, tile in zip(owners, content, strict=True) if tile}
    others = [split for owner, split in known.items() if owner in usable]
    decided = assign(usable - known.keys(), others, val)
    known = {owner: split_of(owner, val) for owner in owners} | decided | known
    return [split or known[owner] for split, owner in zip(said, owners, strict=True)]


def _group_of(listed: TileList, i: int, split: str) -> tuple[str, str, str]:
    """Group, patient and split of a tile."""
    columns = listed.columns
    group, patient_id = (columns[name][i] if name in columns else "" for name in ("group", "patient_id"))
    if group:
        return group, patient_id or group, split
    return f"tiles-{split}", f"tiles-{split}", split


def _id_of(text: str) -> str:
    """A slide id for the name of a group; another name never gives the same."""
    if is_slide_id(text):
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", text).strip("._-")[:150]
    return f"{plain or 'group'}-{digest}"


def _require_one_split_each(listed: TileList, homes: Sequence[Group]) -> None:
    """Raise OptionError when a patient is in two splits."""
    patients = listed.columns.get("patient_id")
    if patients is None:
        return
    first: dict[str, tuple[str, str]] = {}
    for patient_id, name, home in zip(patients, listed.names, homes, strict=True):
        if patient_id:
            before, other = first.setdefault(patient_id, (home.split, name))
            if before != home.split:
                raise OptionError(
                    f"patient {patient_id}: {other} is in split {before}, {name} in {home.split}: a training "
                    "would see what it is validated on; give all tiles of a patient one split, or none"
                )


def _give_out(
    listed: TileList, seen: Sequence[tuple[str, int, int]], homes: Sequence[Group], owners: Mapping[str, str]
) -> list[str]:
    """Put every tile into one group: that of the store, otherwise the first by id of those that list it.

    Returns what there is to say of tiles that are listed twice.
    """
    usable = [(i, fingerprint) for i, (fingerprint, height, _) in enumerate(seen) if height]
    first: dict[str, str] = {}
    for i, fingerprint in usable:
        slide_id = homes[i].slide_id
        first[fingerprint] = min(slide_id, first.get(fingerprint, slide_id))
    doubled = elsewhere = 0
    for i, fingerprint in usable:
        if homes[i].slide_id != owners.get(fingerprint, first[fingerprint]):
            elsewhere += 1
            continue
        members = homes[i].members
        before = members.setdefault(fingerprint, i)
        if before != i:
            doubled += 1
            members[fingerprint] = min(before, i, key=lambda at: listed.names[at])
    notes = []
    if doubled:
        said = counted(doubled, "tile has", "tiles have")
        notes.append(f"{said} the content of another tile of the same group, and one of them is kept")
    if elsewhere:
        said = counted(elsewhere, "tile has", "tiles have")
        notes.append(f"{said} the content of a tile in another group, which keeps it")
    return notes


@dataclass(frozen=True, slots=True)
class GroupTable:
    """The patches of a group, ready to be written."""

    row: dict[str, Any]
    patches: manifest.Patches
    further: dict[str, list[str | None]]


def _sample_of(places: Sequence[_Place], keep: int) -> list[_Place]:
    """`keep` of the places in their order: each tile gives one before any gives two, whichever its content decides.

    A larger number keeps what a smaller one kept. Tiles of one patch are taken in order of content.
    """
    hashed = sorted(
        places, key=lambda at: hashlib.blake2b(f"{at[0]} {at[2]} {at[1]}".encode(), digest_size=8).digest()
    )
    given: Counter[str] = Counter()
    ranked: list[tuple[int, _Place]] = []
    for place in hashed:
        ranked.append((given[place[0]], place))
        given[place[0]] += 1
    return sorted(place for _, place in sorted(ranked)[:keep])


def table_of(grouped: Grouped, group: Group, options: TileOptions) -> GroupTable:
    """Rows of patches in order of tile, y and x, and the row of the slides table."""
    listed, side = grouped.listed, options.patch
    own = [name for name in sorted(listed.columns) if name not in ("split", "group")]
    places: list[_Place] = []
    for fingerprint, i in sorted(group.members.items()):
        _, height, width = grouped.sizes[i]
        places += [(fingerprint, y, x, i) for x, y in corners(height, width, side, options.pad)]
    if options.max_patches is not None:
        places = _sample_of(places, options.max_patches)
    numbers = [i for *_, i in places]
    tile = [fingerprint for fingerprint, *_ in places]
    x, y = (np.array([place[at] for place in places], np.int32) for at in (2, 1))
    patches = manifest.Patches(x, y, np.ones(len(places), np.float32), np.array(tile, object))
    further: dict[str, list[str | None]] = {
        manifest.TILE: list(tile),
        manifest.TILE_FILE: [listed.names[i] for i in numbers],
    }
    further |= {name: [listed.columns[name][i] or None for i in numbers] for name in own}
    row: dict[str, Any] = {
        "slide_id": group.slide_id,
        "file_name": "",
        "fingerprint": tiles.fingerprint_of_group(tile),
        "vendor": tiles.VENDOR,
        "mpp": options.mpp,
        "mpp_source": "option",
        "patch_px0": side,
        "patch_mpp": options.mpp,
        "patient_id": group.patient_id,
        "split": group.split,
        "status": manifest.OK if places else "failed",
        "reason": _reason(group),
        "n_patches": len(places),
    }
    for name in own:
        values = set(further[name])
        if len(values) == 1 and name != "patient_id" and None not in values:
            row[name] = values.pop()
    return GroupTable(row, patches, further)


def _reason(group: Group) -> str:
    if not group.refused:
        return "" if group.members else "all of its tiles are in other groups"
    total = len(group.members) + len(group.refused)
    return f"{len(group.refused)} of {total} tiles could not be used, such as {group.refused[0]}"


def owners_of(store: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The group of each tile in a store."""
    owners: dict[str, str] = {}
    for row in rows:
        if row["status"] == manifest.OK:
            tile = manifest.read_patches(store, row["slide_id"]).tile
            owners |= dict.fromkeys([] if tile is None else tile.tolist(), row["slide_id"])
    return owners


def write_group(store: Path, grouped: Grouped, table: GroupTable) -> None:
    """Write the patches of a group, and a picture of some of its tiles."""
    patches, slide_id = table.patches, table.row["slide_id"]
    draw_group(store / layout.picture_file(slide_id), grouped, table)
    manifest.write_patches(store, slide_id, patches.x_px0, patches.y_px0, patches.tissue, table.further)


def draw_group(path: Path, grouped: Grouped, table: GroupTable) -> None:
    """Write a PNG with at most 100 tiles of a group, evenly spread over its rows."""
    listed, reader = grouped.listed, TileReader()
    folders = dict(zip(listed.names, listed.folders, strict=True))
    names = list(dict.fromkeys(table.further[manifest.TILE_FILE]))
    chosen = [names[i] for i in spread(len(names), _SHEET)]
    across = min(10, len(chosen))
    cell = _CELL_PX + 4
    sheet = np.full((-(-len(chosen) // across) * cell + 32, max(across * cell, 420), 3), 255, np.uint8)
    for number, name in enumerate(chosen):
        try:
            pixels = reader.read(folders[str(name)], str(name))
        except ReadError:
            continue
        scale = _CELL_PX / max(pixels.shape[:2])
        size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        small = cv2.resize(pixels, size, interpolation=how)
        y, x = number // across * cell + 32, number % across * cell
        sheet[y : y + small.shape[0], x : x + small.shape[1]] = small
    reader.close()
    row = table.row
    text = f"{row['slide_id']}: {len(names)} tiles, {row['n_patches']} patches of {row['patch_px0']} px, {row['split']}"
    cv2.putText(sheet, text, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (20, 20, 20), 1, cv2.LINE_AA)
    write_png(path, sheet)
