"""The pixels on which an export is compared with the original: stored views as the teacher saw them, or tiles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.split import open_split
from pipeline.export.graph import Views
from pipeline.tiles.image import TileReader
from pipeline.tiles.table import list_tiles
from stores.errors import OptionError, ReadError, StoreError
from stores.format.recipe import load_complete
from stores.io.location import StoreLike
from stores.io.ranges import spread
from stores.io.text import visible


def stored_views(store: StoreLike, slides: Sequence[Path], n_views: int, threads: int) -> Views:
    """At most `n_views` views of a store, uint8 (n, crop_px, crop_px, 3): held-out ones where there are any.

    They are spread over slides and seeds, and compared with the checksums of the views that the teacher saw.

    Raises
    ------
    StoreError
        When the store has no views.
    ViewMismatch
        When a rebuilt view is not the one that the teacher saw.
    OptionError
        When the pixels of a slide are neither in the store nor among `slides`.
    """
    recipe = load_complete(store)
    for split in ("val", "train"):
        found = open_split(store, recipe, split, None, slides, may_be_empty=True)
        seeds = sorted({seed for unit in found.units for seed in unit.seeds})[:n_views]
        if seeds:
            shares = [len(part) for part in np.array_split(np.arange(n_views), len(seeds))]
            parts = [
                found.sample(seed, share, threads).views for seed, share in zip(seeds, shares, strict=True)
            ]
            return np.concatenate(parts)
    raise StoreError(f"{store}: no committed views in the splits val and train; see `g2l store info {store}`")


def tiles_as_views(paths: Sequence[Path], side_px: int, n_views: int) -> Views:
    """At most `n_views` tiles, evenly spread over all that are listed; of each the centre, uint8 (n, side, side, 3).

    Raises
    ------
    OptionError
        When a path lists no tile, or one cannot be read or is smaller than the encoder takes.
    """
    listed = list_tiles(paths, None, ())
    reader = TileReader()
    views = []
    try:
        for number in spread(len(listed), n_views):
            folder, name = listed.folders[number], listed.names[number]
            try:
                tile = reader.read(folder, name)
            except ReadError as error:
                raise OptionError(f"--patches {visible(name)}: {error}") from None
            top, left = ((side - side_px) // 2 for side in tile.shape[:2])
            if min(top, left) < 0:
                height, width = tile.shape[:2]
                raise OptionError(
                    f"--patches {visible(name)}: {width}x{height} px; the encoder takes {side_px} px: choose tiles "
                    "that are as large or larger"
                )
            views.append(tile[top : top + side_px, left : left + side_px])
    finally:
        reader.close()
    return np.stack(views)
