"""The slides or tiles of a run of ``extract-teacher``: tiled where they are new, and found among the inputs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import Cluster
from pipeline.tile.options import TileOptions
from pipeline.tile.prepare import prepare_store
from pipeline.tile.summary import TileSummary
from pipeline.tile.tile import tile_on
from pipeline.tile.tile_list import note_tiled, refused_before
from pipeline.tiles.places import Place, SlidePlace, find_places
from pipeline.tiles.search import root_of
from pipeline.tiles.table import are_tiles, list_tiles
from stores.format import layout, manifest, recipe, tiles
from stores.io.text import counted


def first_tiled(stores: Sequence[Path]) -> Path:
    """The store that is tiled further for all: the first that is tiled, or the first of all."""
    return next((store for store in stores if (store / layout.RECIPE).exists()), stores[0])


def holds_tiles(store: Path) -> bool:
    return (store / layout.RECIPE).exists() and recipe.load(store).patch.grid == tiles.GRID


def tile_and_find(
    workers: Cluster,
    inputs: Sequence[Path],
    store: Path,
    options: TileOptions,
    of_tiles: bool,
    report: Reporter,
) -> tuple[dict[str, Place], list[str]]:
    """Tile what the store does not know yet; where each slide is, and a line for each tile that cannot be used."""
    if not of_tiles:
        found = tile_on(workers, inputs, store, options, report, look_again=False)
        _warn_of_splits(found, report)
        return {slide_id: SlidePlace(path) for slide_id, path in found.paths.items()}, []
    refused = _tile_new_tiles(workers, inputs, store, options, report)
    patch, rows = recipe.load(store).patch, manifest.read_slides(store)
    return find_places(store.absolute(), patch, rows, inputs, options.root, report), refused


def _tile_new_tiles(
    workers: Cluster, inputs: Sequence[Path], store: Path, options: TileOptions, report: Reporter
) -> list[str]:
    """Tile the inputs when they list a name that the store does not have; folders may only be where its tiles are.

    Returns a line for each tile that could not be used.
    """
    refused: list[str] = []
    if are_tiles(inputs, options.tiles):
        known = set(_tile_names(store, manifest.read_slides(store)))
        tables = [path for path in inputs if path.suffix.lower() == ".csv"]
        if options.root is None and known and tables:  # of absolute paths: as they were tiled
            options = dataclasses.replace(options, root=root_of(tables[0], known))
        listed = list_tiles(inputs, options.root, options.column)
        left_out = len(set(listed.names) - known)
        if left_out:
            before = refused_before(store, listed)
            if before is None:
                tiled = tile_on(workers, inputs, store, options, report)
                _warn_of_splits(tiled, report)
                return tiled.refused
            refused = before
            report.note(
                f"{counted(left_out, 'tile of the list is', 'tiles of the list are')} not in the store, as `g2l tile` "
                "said: unusable, or with the content of others"
            )
        elif known:  # a command that was killed may have left that out
            note_tiled(store, listed, [])
    prepare_store(store, options, of_tiles=True)
    return refused


def _warn_of_splits(tiled: TileSummary, report: Reporter) -> None:
    for text in tiled.warnings:
        report.note(f"warning: {text}")


def _tile_names(store: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["status"] == manifest.OK:
            yield from manifest.read_further(store, row["slide_id"], (manifest.TILE_FILE,))[0].to_pylist()
