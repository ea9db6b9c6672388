"""Write the files of a store under pseudonyms, without anything that identifies their origin.

What may be in them is in `allowed`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from stores.errors import CorruptStore
from stores.export.allowed import COLUMN_VALUES, UNKNOWN_VENDOR, VENDORS, array_metadata
from stores.export.pseudonyms import Pseudonyms
from stores.format import arrays, layout, manifest, oblong, recipe
from stores.format.layout import MAX_METADATA_BYTES
from stores.io import files
from stores.io.location import StoreLike, read_file

_PATH = re.compile(r"[/~.\\]|[A-Za-z]:[\\/]|.*\.py:")


def renamed(name: str, new_id: str) -> str:
    """The name of a file below ``features.zarr`` or ``pixels.zarr`` for another slide id."""
    root, _, *leaf = name.split("/")
    return "/".join((root, new_id, *leaf))


def copy_metadata(store: StoreLike, name: str, target: Path) -> None:
    """Copy the metadata of an array or group, as far as they are those of the format."""
    raw = read_file(store, name, MAX_METADATA_BYTES)
    if raw is None:
        raise CorruptStore(f"{store}/{name}: listed, but not there")
    files.write_json(target, array_metadata(raw, name, f"{store}/{name}"))


def chunks_within(store: StoreLike, names: Sequence[str]) -> set[str]:
    """The chunks among files of a slide that lie within the grid of their array: others mean nothing, and stay behind.

    Raises
    ------
    CorruptStore
        When the metadata of an array are not those of one.
    """
    known, specs = set(names), {}
    found = set()
    for name in names:
        array, index = layout.parse_chunk(name) or ("", ())
        if layout.metadata_file(array) not in known:
            continue
        if array not in specs:
            specs[array] = arrays.read_metadata(store, array)
        grid = [-(-n // c) for n, c in zip(specs[array].shape, specs[array].chunks, strict=True)]
        if len(index) == len(grid) and all(i < n for i, n in zip(index, grid, strict=True)):
            found.add(name)
    return found


def write_manifest(store: StoreLike, slide_id: str, stage: Path, new_id: str, names: Pseudonyms) -> None:
    """Patches and commit records under another id; columns that are not of the format stay behind.

    Tiles are under pseudonyms too: whoever has an image could calculate its fingerprint.
    """
    if not manifest.patches_path(stage, new_id).is_file():
        patches = manifest.read_patches(store, slide_id)
        further = None
        if patches.tile is not None:
            further = {manifest.TILE: [names.of("fingerprint", tile) for tile in patches.tile.tolist()]}
        manifest.write_patches(stage, new_id, patches.x_px0, patches.y_px0, patches.tissue, further)
    for commit in manifest.commits(store, slide_id):
        if manifest.commit_path(stage, new_id, commit.block, commit.seeds).is_file():
            continue
        views = commit.read(manifest.VIEWS_SCHEMA.names).select(manifest.VIEWS_SCHEMA.names)
        if set(views["slide_id"].unique().to_pylist()) - {slide_id}:
            raise CorruptStore(f"{commit.path}: lists views of another slide")
        at = views.schema.get_field_index("slide_id")
        ids = pa.array([new_id] * views.num_rows, pa.string())
        views = views.set_column(at, manifest.VIEWS_SCHEMA.field("slide_id"), ids)
        for column in ("split", "status"):
            _require_known(column, views[column].unique().to_pylist(), commit.path)
        manifest.write_commit(stage, new_id, commit.block, commit.seeds, views)


def _require_known(column: str, values: Sequence[str | None], where: object) -> None:
    unknown = [value for value in values if value and value not in COLUMN_VALUES[column]]
    if unknown:
        raise CorruptStore(f"{where}: {column} {unknown[0]!r:.80}, which no store has; nothing was exported")


def public_rows(rows: Sequence[Mapping[str, Any]], hidden: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the slides table without `hidden` columns, reasons, and vendors that are not known.

    Raises
    ------
    CorruptStore
        When a column has a text that no store has there, or what should be a number is none.
    """
    for column in ("mpp_source", "split", "status"):
        _require_known(column, [row[column] for row in rows], layout.SLIDES)
    found = []
    for row in rows:
        oblong.mpp_in_y(row)
        vendor = row["vendor"] if row["vendor"] in VENDORS or not row["vendor"] else UNKNOWN_VENDOR
        found.append({k: v for k, v in row.items() if k not in hidden} | {"reason": "", "vendor": vendor})
    return found


def own_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of the slides table that are the user's own, or that no reader needs."""
    return sorted({name for row in rows for name in row} - {*manifest.SLIDES_SCHEMA.names, *oblong.COLUMNS})


def without_path(stored: recipe.Recipe) -> recipe.Recipe:
    """A teacher that was loaded from a file of its own code is named without the folders."""
    if stored.teacher is None or not _PATH.match(stored.teacher.name):
        return stored
    return replace(stored, teacher=replace(stored.teacher, name=re.split(r"[\\/]", stored.teacher.name)[-1]))
