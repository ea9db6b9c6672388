"""Write the files of a store under pseudonyms, without anything that identifies their origin."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stores.errors import CorruptStore
from stores.format import manifest, recipe
from stores.format.metadata import GROUP, parse_metadata
from stores.io import files
from stores.io.location import StoreLike, read_file

_OPTIONS = {
    "tile": ("mpp", "patch", "min_tissue", "max_patches", "val"),
    "extract-teacher": ("seeds", "random_weights", "dtype", "pixels", "tokens", "teacher_licence"),
}
"""Options that an export keeps: their values hold no path, id or name of a machine."""
_PATH = re.compile(r"[/~.\\]|[A-Za-z]:[\\/]|.*\.py:")
_MAX_METADATA_BYTES = 1 << 20


def renamed(name: str, new_id: str) -> str:
    """The name of a file below ``features.zarr`` or ``pixels.zarr`` for another slide id."""
    root, _, *leaf = name.split("/")
    return "/".join((root, new_id, *leaf))


def copy_metadata(store: StoreLike, name: str, target: Path) -> None:
    """Copy the metadata of an array or group without its attributes, which may hold any text."""
    raw = read_file(store, name, _MAX_METADATA_BYTES)
    if raw is None:
        raise CorruptStore(f"{store}/{name}: listed, but not there")
    try:
        found = files.parse_json(raw.decode())
        group = found["node_type"] == "group"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptStore(f"{store}/{name}: unreadable metadata ({files.first_line(error)})") from None
    if not group:
        parse_metadata(raw, f"{store}/{name}")
    files.write_json(target, GROUP if group else {**found, "attributes": {}})


def write_manifest(store: StoreLike, slide_id: str, stage: Path, new_id: str) -> None:
    """Patches and commit records under another id; columns that are not of the format stay behind."""
    if not manifest.patches_path(stage, new_id).is_file():
        patches = manifest.read_patches(store, slide_id)
        manifest.write_patches(stage, new_id, patches.x_px0, patches.y_px0, patches.tissue)
    for commit in manifest.commits(store, slide_id):
        if manifest.commit_path(stage, new_id, commit.block, commit.seeds).is_file():
            continue
        views = commit.read(manifest.VIEWS_SCHEMA.names).select(manifest.VIEWS_SCHEMA.names)
        if set(views["slide_id"].unique().to_pylist()) - {slide_id}:
            raise CorruptStore(f"{commit.path}: lists views of another slide")
        at = views.schema.get_field_index("slide_id")
        views = views.set_column(at, manifest.VIEWS_SCHEMA.field("slide_id"), [[new_id] * views.num_rows])
        manifest.write_commit(stage, new_id, commit.block, commit.seeds, views)


def own_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of the slides table that are the user's own."""
    return sorted({name for row in rows for name in row} - set(manifest.SLIDES_SCHEMA.names))


def without_path(stored: recipe.Recipe) -> recipe.Recipe:
    """A teacher that was loaded from a file of its own code is named without the folders."""
    if stored.teacher is None or not _PATH.match(stored.teacher.name):
        return stored
    return replace(stored, teacher=replace(stored.teacher, name=re.split(r"[\\/]", stored.teacher.name)[-1]))


def public_options(command: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options of a command that an export keeps; None when it keeps none of them."""
    if command not in _OPTIONS:
        return None
    return {key: options[key] for key in _OPTIONS[command] if key in options}
