"""Where the tiles of a store are now: by the names that the store has, else by content among what the inputs list."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tiles.hdf5 import Stacked, file_and_row, is_hdf5
from pipeline.tiles.image import SUFFIXES, TileReader
from stores.errors import ReadError, StoreError
from stores.format import manifest
from stores.format.tiles import fingerprint_of_tile, is_tile_name
from stores.io.foreign import is_regular
from stores.io.location import StoreLike
from stores.io.progress import Reporter
from stores.io.ranges import spread
from stores.io.table import read_table
from stores.io.text import counted

File = tuple[Path, str]
"""A tile: a folder, and its name below it."""
LOOKED_AT = 8
"""Of many tiles, so many are compared before a run believes the rest."""


def names_of(store: StoreLike, rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """By slide id: the name of each tile, by fingerprint. What cannot be read is named by whoever needs it."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        try:
            table = manifest.read_further(store, row["slide_id"], (manifest.TILE, manifest.TILE_FILE))
        except StoreError:
            continue
        tiles, names = (table[name].to_pylist() for name in (manifest.TILE, manifest.TILE_FILE))
        found[row["slide_id"]] = {t: n or "" for t, n in zip(tiles, names, strict=True)}
    return found


def root_of(table: Path, names: Iterable[str]) -> Path | None:
    """The folder that `names` begin in, when a table has absolute paths and these end in such names; None otherwise."""
    known = set(names)
    for cells in _cells(table).values():
        for cell in cells:
            path = Path(cell)
            for parent in path.parents if path.is_absolute() else ():
                if path.relative_to(parent).as_posix() in known:
                    return parent
    return None


def find_moved(
    names: Mapping[str, Mapping[str, str]], folders: Sequence[Path], inputs: Sequence[Path], report: Reporter
) -> dict[str, dict[str, File]]:
    """Tiles that are not where their names say, found by content among the inputs, by slide id and fingerprint.

    One pass decodes the files of the inputs that no name of the store leads to, or all of them, when most of the tiles
    that are looked at have other pixels than their names say.

    Parameters
    ----------
    names
        As `names_of` gives them.
    folders
        That names are relative to.
    """
    listing = _Listing(folders)
    lost: dict[str, list[str]] = {}
    there: dict[File, str] = {}
    for slide_id, of_group in names.items():
        for tile, name in of_group.items():
            at = listing.find(name)
            if at is None:
                lost.setdefault(tile, []).append(slide_id)
            else:
                there[at] = tile
    reader = TileReader()
    if _are_others(reader, there):
        there = {}
        lost = {}
        for slide_id, of_group in names.items():
            for tile in of_group:
                lost.setdefault(tile, []).append(slide_id)
    taken = {folder / name for folder, name in there}
    files = [file for file in dict.fromkeys(_files(inputs)) if file[0] / file[1] not in taken] if lost else []
    found: dict[str, dict[str, File]] = {}
    if files:
        said = counted(len(lost), "tile is not where its name says", "tiles are not where their names say")
        report.note(f"{said}: looking at {counted(len(files), 'file')} by content")
        report.start("find tiles", len(files))
    for folder, name in files:
        try:
            tile = fingerprint_of_tile(reader.read(folder, name))
        except ReadError:  # no tile of the store
            tile = ""
        for slide_id in lost.pop(tile, ()):
            found.setdefault(slide_id, {})[tile] = folder, name
        report.advance(1, name)
        if not lost:
            break
    reader.close()
    return found


def _are_others(reader: TileReader, there: Mapping[File, str]) -> bool:
    """Whether most of a few files have other pixels than the tiles of their names."""
    files = list(there)
    chosen = spread(len(files), LOOKED_AT)
    others = 0
    for i in chosen:
        try:
            others += fingerprint_of_tile(reader.read(*files[i])) != there[files[i]]
        except ReadError:
            others += 1
    return 2 * others > len(chosen)


class _Listing:
    """Which names are below some folders; each folder is listed once."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._listed: dict[Path, frozenset[str]] = {}

    def find(self, name: str) -> File | None:
        if not is_tile_name(name):
            return None
        parent, _, last = file_and_row(name)[0].rpartition("/")
        return next(
            ((folder, name) for folder in self._folders if last in self._names(folder / parent)), None
        )

    def _names(self, folder: Path) -> frozenset[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._listed[folder] = frozenset()
        return self._listed[folder]


def _files(inputs: Iterable[Path]) -> Iterator[File]:
    """All tiles that inputs list, whatever they are called."""
    for path in inputs:
        if path.is_dir():
            for place, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    if not name.startswith("."):
                        yield from _of_file(Path(place).absolute() / name)
        elif path.suffix.lower() == ".csv":
            for cells in _cells(path).values():
                if cells and is_regular(path.parent / file_and_row(cells[0])[0]):
                    for cell in cells:
                        if Path(cell).is_absolute() or is_tile_name(cell):
                            yield from _of_file(path.absolute().parent / cell)
        else:
            yield from _of_file(path.absolute())


def _of_file(path: Path) -> Iterator[File]:
    if is_hdf5(path):
        try:
            opened = Stacked(path)
        except ReadError:
            return
        rows = len(opened)
        opened.close()
        yield from ((path.parent, f"{path.name}#{row}") for row in range(rows))
    elif path.suffix.lower() in SUFFIXES or file_and_row(path.name)[1] is not None:
        yield path.parent, path.name


def _cells(table: Path) -> dict[str, list[str]]:
    """The columns of a CSV that may hold paths: ``path``, or all where it has none of this name."""
    read = read_table(table, str(table), ("path",))
    names = ["path"] if "path" in read.names else read.names
    return {name: [row[name].replace("\\", "/") for row in read.rows] for name in names}
