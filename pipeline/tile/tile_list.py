"""``tile`` where the inputs are a list of tiles: each group of them is a row of the slides table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Cluster
from pipeline.tile.groups import group_tiles, owners_of, require_no_slide_options, table_of, write_group
from pipeline.tile.options import TileOptions
from pipeline.tile.prepare import prepare_store
from pipeline.tile.slide_rows import require_unchanged
from pipeline.tile.slides_csv import require_one_split
from pipeline.tile.summary import TileSummary
from pipeline.tiles.table import TileList, list_tiles
from stores.errors import OptionError
from stores.format import layout, manifest
from stores.format.layout import read_options
from stores.io import files
from stores.io.text import visible

_LISTED = "listed"


def tile_list(
    workers: Cluster, inputs: Sequence[Path], store: Path, options: TileOptions, report: Reporter
) -> TileSummary:
    """`tile_on` where the inputs are tiles: each group of them is a row of the slides table."""
    require_no_slide_options(options)
    listed = list_tiles(inputs, options.root, options.column)
    prepare_store(store, options, of_tiles=True)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    owners = owners_of(store, list(rows.values()))
    grouped = group_tiles(workers, listed, options, owners, _recorded(rows, owners), report)
    for note in grouped.notes:
        report.note(note)
    tables = [table_of(grouped, group, options) for _, group in sorted(grouped.groups.items())]
    require_one_split((rows | {table.row["slide_id"]: table.row for table in tables}).values())
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
        require_unchanged(old, table.row, ("patient_id", "split"))
    for table in tables:
        slide_id = table.row["slide_id"]
        if table.row["n_patches"]:
            old = rows.get(slide_id)
            if old is None or old["status"] != manifest.OK:
                write_group(store, grouped, table)
        rows[slide_id] = table.row
    manifest.write_slides(store, list(rows.values()))
    note_tiled(store, listed, grouped.refused)
    return TileSummary(store, manifest.read_slides(store), refused=grouped.refused, holds_out=options.val > 0)


def _recorded(rows: Mapping[str, Mapping[str, Any]], owners: Mapping[str, str]) -> dict[str, str]:
    """The split of each patient and of each tile in a store."""
    of_patients = {row["patient_id"]: row["split"] for row in rows.values()}
    return of_patients | {tile: rows[slide_id]["split"] for tile, slide_id in owners.items()}


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
