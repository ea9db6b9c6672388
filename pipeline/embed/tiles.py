"""Tiles: images that were cut before, listed in a CSV with labels; how one becomes a view.

A tile of another size than the encoder takes has its shorter side resized to it (Pillow, bilinear over the whole
support, in integers) and its centre cropped: what eva does with the tiles of its data sets (``ResizeAndCrop``, which is
torchvision's ``Resize`` and ``CenterCrop``). The longer side becomes ``int(size * longer / shorter)``, cut off, and the
crop begins at ``round(margin / 2)``, where Python rounds halves to even.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from pipeline.tiles.image import MAX_TILE_PX, read_image
from stores.errors import OptionError, ReadError
from stores.format import manifest
from stores.io.foreign import is_regular
from stores.io.table import check_names, read_table

KNOWN = ("path", "label", "site", "group", "split")
"""Columns with a meaning; all others are kept under their own names."""
RESAMPLING = "pillow-bilinear-2"
BEFORE = "pillow-bilinear"
"""The rule of older versions: the longer side was rounded, and the crop began at ``margin // 2``. Embeddings that were
begun with it are finished with it."""
_OF_TILES = frozenset(("slide_id", "patient_id", "split", "x_px0", "y_px0", "mpp", "file_name", "vendor"))
"""Columns of the slides table that a CSV of tiles may have: they say where a tile comes from, and g2l writes none."""


@dataclass(frozen=True, slots=True)
class TileTable:
    """The rows of a CSV of tiles."""

    files: tuple[Path, ...]
    """Absolute."""
    columns: Mapping[str, tuple[str, ...]]
    """By name, renamed as asked; ``path`` is among them, as the CSV has it."""
    digest: str
    """SHA-256 of the columns."""

    def __len__(self) -> int:
        return len(self.files)


def read_tiles(path: Path, renamed: Sequence[str], root: Path | None) -> TileTable:
    """Read a CSV of tiles.

    Parameters
    ----------
    renamed
        ``NAME=COLUMN``: the CSV's column COLUMN is used as NAME.
    root
        What relative paths start from; the CSV's folder when None.

    Raises
    ------
    OptionError
        When the file cannot be read, a column is missing, or a tile is listed twice.
    """
    table = read_table(path, str(path), KNOWN)
    names, rows = table.names, table.rows
    new_names = _new_names(path, names, renamed)
    if "path" not in new_names.values():
        raise OptionError(
            f"{path}: no column path; found {', '.join(names) or 'nothing'}: name it with --column path=NAME"
        )
    if not rows:
        raise OptionError(f"{path}: lists no tile")
    columns = {new: tuple(row[old] for row in rows) for old, new in new_names.items()}
    seen: dict[str, int] = {}
    for number, name in zip(table.lines, columns["path"], strict=True):
        if not name:
            raise OptionError(f"{path} line {number}: no path")
        if seen.setdefault(name, number) != number:
            raise OptionError(f"{path} line {number}: {name} is also in line {seen[name]}")
    base = (root or path.parent).absolute()
    files = tuple(base / name for name in columns["path"])
    if not any(is_regular(file) for file in files[:100]):
        raise OptionError(
            f"{path}: {files[0]} does not exist, nor those after it: give the folder they are in as --root"
        )
    digest = hashlib.sha256(json.dumps(sorted(columns.items())).encode()).hexdigest()
    return TileTable(files, columns, digest)


def _new_names(path: Path, names: Sequence[str], renamed: Sequence[str]) -> dict[str, str]:
    """The new name of every column of the CSV."""
    result = {name: name for name in names}
    for text in renamed:
        new, equals, old = text.partition("=")
        if not equals or new not in KNOWN:
            raise OptionError(f"--column {text}: expected NAME=COLUMN with a NAME of {', '.join(KNOWN)}")
        old = next((name for name in names if name.casefold() == old.casefold()), old)
        if old not in result:
            raise OptionError(f"--column {text}: {path} has no column {old!r}; it has {', '.join(names)}")
        if new in result and new != old:
            result[new] = f"{new}_in_csv"
        result[old] = new
    doubled = sorted(name for name in result.values() if list(result.values()).count(name) > 1)
    if doubled:
        raise OptionError(f"{path}: two columns are called {doubled[0]!r}")
    check_names(str(path), result.values(), KNOWN, manifest.RESERVED - _OF_TILES)
    return result


@dataclass(frozen=True, slots=True)
class TilesSource:
    """A run of tiles as patches of the encoder's size; a source for a `PatchPool`."""

    slide_id: str
    first: int
    """Row of the first tile."""
    files: tuple[Path, ...]
    names: tuple[str, ...]
    """As the CSV has them, for messages."""
    size_px: int
    fit: str
    resampling: str = RESAMPLING

    @property
    def key(self) -> str:
        return f"{self.slide_id}:{self.first}"

    def open(self) -> "_FromTiles":
        return _FromTiles(self)


@dataclass(frozen=True, slots=True)
class _FromTiles:
    source: TilesSource

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        index = row - self.source.first
        try:
            return read_tile(
                self.source.files[index], self.source.size_px, self.source.fit, self.source.resampling
            )
        except ReadError as error:
            raise ReadError(f"{self.source.names[index]}: {error}") from None

    def close(self) -> None: ...


def read_tile(path: Path, size_px: int, fit: str, resampling: str = RESAMPLING) -> npt.NDArray[np.uint8]:
    """A tile as a view, uint8 (size_px, size_px, 3).

    Parameters
    ----------
    fit : str
        ``resize``: the shorter side first becomes `size_px`; ``crop``: only the centre is taken.
    resampling : str
        `RESAMPLING`, or `BEFORE`.

    Raises
    ------
    ReadError
        When `read_image` refuses it, or it is absurdly large when resized, or too small to crop.
    """
    opaque = PIL.Image.fromarray(read_image(path))
    width, height = opaque.size
    if fit == "resize" and min(width, height) != size_px:
        width, height = (_resized(side, min(opaque.size), size_px, resampling) for side in opaque.size)
        if width * height > MAX_TILE_PX:
            raise ReadError(f"{width}x{height} px when resized, at most {MAX_TILE_PX} pixels are made")
        opaque = opaque.resize((width, height), PIL.Image.Resampling.BILINEAR)
    if min(width, height) < size_px:
        raise ReadError(f"{width}x{height} px, smaller than the {size_px} px that are to be cropped")
    left, top = (_offset(side - size_px, resampling) for side in (width, height))
    return np.asarray(opaque.crop((left, top, left + size_px, top + size_px)), np.uint8)


def _resized(side: int, shorter: int, size_px: int, resampling: str) -> int:
    """A side when the shorter one becomes `size_px`.

    >>> _resized(2048, 1536, 224, RESAMPLING), _resized(2048, 1536, 224, BEFORE)
    (298, 299)
    """
    if resampling == BEFORE:
        return max(size_px, round(side * (size_px / shorter)))
    return int(size_px * side / shorter)


def _offset(margin: int, resampling: str) -> int:
    """Where the crop begins.

    >>> [(_offset(margin, RESAMPLING), _offset(margin, BEFORE)) for margin in (74, 75, 77)]
    [(37, 37), (38, 37), (38, 38)]
    """
    return margin // 2 if resampling == BEFORE else round(margin / 2)
