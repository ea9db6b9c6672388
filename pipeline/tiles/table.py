"""The tiles among the inputs: a CSV, a folder tree whose folders are classes, image files, or HDF5 files."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.tiles import hdf5
from pipeline.tiles.image import SUFFIXES
from stores.errors import OptionError
from stores.format import manifest
from stores.format.tiles import PAIR, is_tile_name
from stores.io.table import Table, check_names, read_table
from stores.io.text import is_utf8, visible

KNOWN = ("path", "group", "patient_id", "split", PAIR)
"""Columns with a meaning; all others are the user's own."""
_TAKEN = (manifest.RESERVED | {manifest.TILE, manifest.TILE_FILE}) - {"patient_id", "split"}


@dataclass(slots=True)
class TileList:
    """Tiles as the inputs list them."""

    folders: list[Path] = field(default_factory=list)
    """That names are relative to, one for each tile; absolute."""
    names: list[str] = field(default_factory=list)
    """With ``/``; ``file.h5#row`` for a row of an HDF5 file. Not always UTF-8: folders may hold any names."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """By name, a text for each tile, empty where an input has no such column; without ``path``."""

    def __len__(self) -> int:
        return len(self.names)

    def add(self, folder: Path, names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
        """Add the tiles of one input."""
        before = len(self)
        self.folders += [folder] * len(names)
        self.names += names
        for name in {*self.columns, *columns}:
            mine = self.columns.setdefault(name, [""] * before)
            mine += columns.get(name, [""] * len(names))

    def digest(self) -> str:
        """SHA-256 of names and columns, in whatever order they are listed."""
        names = sorted(self.columns)
        rows = sorted(zip(self.names, *(self.columns[name] for name in names), strict=True))
        return hashlib.sha256(json.dumps([names, rows]).encode()).hexdigest()

    def chunks(self, size: int) -> Iterator[range]:
        """Ranges of at most `size` tiles of one folder each."""
        start = 0
        for i in range(1, len(self) + 1):
            if i == len(self) or i - start == size or self.folders[i] != self.folders[start]:
                yield range(start, i)
                start = i


def are_tiles(inputs: Sequence[Path], asked: bool) -> bool:
    """Whether the inputs list tiles: a CSV or HDF5 file always does, a folder or an image where that is asked for.

    Raises
    ------
    OptionError
        When some do and some do not.
    """
    tables = [path for path in inputs if _is_list(path)]
    if tables and not asked and len(tables) < len(inputs):
        other = next(path for path in inputs if not _is_list(path))
        raise OptionError(
            f"{tables[0]}: lists tiles, but {other} does not; give tiles and slides to different stores, and a table "
            "of slides as --slides-csv"
        )
    return asked or bool(tables)


def _is_list(path: Path) -> bool:
    return path.suffix.lower() == ".csv" or hdf5.is_hdf5(path)


def list_tiles(inputs: Sequence[Path], root: Path | None, renamed: Sequence[str]) -> TileList:
    """The tiles of all inputs.

    Parameters
    ----------
    root
        Folder that the paths of a CSV are relative to; its own folder when None.
    renamed
        ``NAME=COLUMN``: the CSV's column COLUMN is used as NAME.

    Raises
    ------
    OptionError
        When an input cannot be read, lists no tile, or a name occurs twice.
    """
    found = TileList()
    for path in inputs:
        if path.suffix.lower() == ".csv":
            _add_table(found, path, root, renamed)
        elif hdf5.is_hdf5(path):
            if not is_utf8(path.name):  # no row of it could be recorded
                raise OptionError(f"{visible(path)}: its name is not UTF-8 text; rename the file")
            n, columns = hdf5.columns_of(path)
            found.add(path.absolute().parent, [f"{path.name}#{row}" for row in range(n)], columns)
        elif path.is_dir():
            _add_folder(found, path)
        elif path.is_file():
            found.add(path.absolute().parent, [path.name], {})
        else:
            raise OptionError(f"{path}: no such file or folder")
    if not len(found):
        raise OptionError(
            f"{', '.join(map(str, inputs))}: no tile found; looked for {' '.join(sorted(SUFFIXES))}"
        )
    seen: set[str] = set()
    for name in found.names:
        if name in seen:
            raise OptionError(f"{visible(name)}: listed twice; a tile is listed once, by a name of its own")
        seen.add(name)
    _check_columns(found)
    return found


def _add_folder(found: TileList, folder: Path) -> None:
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        at = Path(place).relative_to(folder)
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                names.append((at / name).as_posix())
    labels = [name.split("/")[0] if "/" in name else "" for name in names]
    found.add(folder.absolute(), names, {"label": labels} if any(labels) else {})


def _add_table(found: TileList, path: Path, root: Path | None, renamed: Sequence[str]) -> None:
    table = read_table(path, str(path), KNOWN)
    columns = _columns(table, renamed)
    if not table.rows:
        raise OptionError(f"{path}: lists no tile")
    texts = {new: [row[old] for row in table.rows] for old, new in columns.items()}
    base = (root or path.parent).absolute()
    names = [_name(table.at(row), text, base) for row, text in enumerate(texts.pop("path"))]
    found.add(base, names, texts)


def _columns(table: Table, renamed: Sequence[str]) -> dict[str, str]:
    """The name that each column of a table has here."""
    names = {name: name for name in table.names}
    for text in renamed:
        new, equals, old = text.partition("=")
        if not equals or new not in KNOWN:
            raise OptionError(f"--column {text}: expected NAME=COLUMN with a NAME of {', '.join(KNOWN)}")
        if old not in names:
            raise OptionError(
                f"--column {text}: no column {old!r} in {table.what}; it has {', '.join(names)}"
            )
        if new in names.values() and names[old] != new:
            raise OptionError(f"--column {text}: {table.what} has a column {new!r} too")
        names[old] = new
    if "path" not in names.values():
        raise OptionError(
            f"{table.what}: no column path; found {', '.join(table.names) or 'nothing'}: name it with --column "
            "path=NAME, or, if this is a table of slides, give it as --slides-csv"
        )
    check_names(table.what, list(names.values()), KNOWN, _TAKEN)
    return names


def _name(place: str, text: str, base: Path) -> str:
    """The name of a tile relative to `base`, from a cell of a CSV."""
    given = PurePosixPath(text.replace("\\", "/"))
    if given.is_absolute():
        try:
            given = given.relative_to(PurePosixPath(base.as_posix()))
        except ValueError:
            raise OptionError(
                f"{place}: {text} is not below {base}: give the folder that all tiles are in as --root"
            ) from None
    name = given.as_posix()
    if not text or not is_tile_name(name):
        raise OptionError(
            f"{place}: path {text!r:.120}: expected the path of a file below {base}; --root gives another"
        )
    return name


def _check_columns(found: TileList) -> None:
    for split in sorted(set(found.columns.get("split", ()))):
        if split and split not in manifest.SPLITS:
            raise OptionError(f"split {split!r:.40}: allowed: {', '.join(manifest.SPLITS)}")
