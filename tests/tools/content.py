"""What a store says, as one digest that does not depend on how its files are written.

Two stores have the same content when their recipe, slides, patches, views, features and pixels are equal by value,
whatever the codec, the Parquet writer, the number of commit records, or chunks that nothing lists.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from stores.format import features, manifest, pixels, recipe
from stores.io.location import StoreLike


def content_digest(store: StoreLike) -> str:
    """SHA-256 (hex) of the recipe's digest and of every slide's, in order of slide ids."""
    rows = manifest.read_slides(store)
    parts = [recipe.load(store).digest(), *(slide_digest(store, row) for row in rows)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def slide_digest(store: StoreLike, row: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what a store says of one slide.

    Covers the row without its empty columns, the patches, all committed views, their features and statistics, and the
    pixels of readable patches. Reads every committed byte of the slide.

    Parameters
    ----------
    row
        The slide's row of the slides table.

    Raises
    ------
    StoreError
        When something that is listed is missing or damaged.
    """
    digest = hashlib.sha256()
    slide_id = row["slide_id"]

    def add(what: str, data: bytes) -> None:
        digest.update(f"{what} {len(data)}\n".encode())
        digest.update(data)

    add("row", _json({name: value for name, value in row.items() if value is not None}))
    if row["status"] != manifest.OK:
        return digest.hexdigest()
    patches = manifest.read_patches(store, slide_id)
    for name in manifest.PATCHES_SCHEMA.names:
        add(name, getattr(patches, name).tobytes())
    commits = list(manifest.commits(store, slide_id))
    if not commits:
        return digest.hexdigest()
    views = pa.concat_tables([commit.read().select(manifest.VIEWS_SCHEMA.names) for commit in commits])
    views = views.sort_by([("seed", "ascending"), ("row", "ascending")])
    for name in manifest.VIEWS_SCHEMA.names:
        add(name, _column(views[name]))
    add("coords", features.read_coords(store, slide_id).tobytes())
    _add_features(store, slide_id, commits, views, add)
    if pixels.has_pixels(store, slide_id):
        _add_pixels(store, slide_id, views, add)
    return digest.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _column(column: pa.ChunkedArray) -> bytes:
    if pa.types.is_string(column.type):
        return _json(column.to_pylist())
    present = column.is_valid().to_numpy().tobytes() if column.null_count else b""
    zero = pa.scalar(False if pa.types.is_boolean(column.type) else 0, column.type)
    return present + column.fill_null(zero).to_numpy().tobytes()


def _add_features(
    store: StoreLike, slide_id: str, commits: list[manifest.Commit], views: pa.Table, add: Any
) -> None:
    opened = features.open_features(store, slide_id)
    stats = features.read_stats(store, slide_id)
    for seed, block in sorted({(seed, commit.block) for commit in commits for seed in commit.seeds}):
        rows = manifest.ok_rows(views, seed)
        span = features.block_range(opened.n_rows, block)
        inside = rows[(rows >= span.start) & (rows < span.stop)] - span.start
        add(f"features {seed} {block}", opened.read_block(seed, block)[inside].tobytes())
        add(f"stats {seed} {block}", stats[seed, block].tobytes())


def _add_pixels(store: StoreLike, slide_id: str, views: pa.Table, add: Any) -> None:
    opened = pixels.open_pixels(store, slide_id)
    readable = np.unique(
        [row for seed in set(views["seed"].to_pylist()) for row in manifest.ok_rows(views, seed)]
    )
    for index in np.unique(readable // opened.chunk_rows).astype(int).tolist():
        start = index * opened.chunk_rows
        inside = readable[(readable >= start) & (readable < start + opened.chunk_rows)] - start
        add(f"pixels {index}", opened.read_chunk(index)[inside.astype(int)].tobytes())
