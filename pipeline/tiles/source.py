"""The patches of a group of tiles, read from the user's files; each tile is compared with the one that was tiled."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.slides.sources import Reader
from pipeline.tiles.image import TileReader, padded
from stores.errors import ReadError
from stores.format import manifest, tiles
from stores.io.text import one_line


@dataclass(frozen=True, slots=True)
class GroupSource:
    """Patches from the tiles of a group. Small: the names of the tiles are read from the store, in the worker."""

    slide_id: str
    store: Path
    """The store, or the local copy of a remote one's manifest: processes cannot share a connection."""
    folders: tuple[Path, ...]
    """That names may be relative to, in this order; absolute."""
    size_px: int
    pad: str
    moved: Mapping[str, tuple[Path, str]] = field(default_factory=dict, compare=False)
    """Folder and name of tiles that have other names than in the store now, by fingerprint."""
    part: str = ""
    """Which patches this source is for, as in "block 3"; empty for all of the group."""

    @property
    def key(self) -> str:
        return f"{self.slide_id} {self.store} {self.part}"

    def for_part(self, part: str, tiles: Iterable[str]) -> Self:
        """The same for patches of `tiles` alone; 100,000 moved tiles are 8.7 MB when a source is pickled."""
        wanted = set(tiles)
        if len(self.moved) <= len(wanted):
            return self
        moved = {tile: place for tile, place in self.moved.items() if tile in wanted}
        return replace(self, moved=moved, part=part)

    def open(self) -> Reader:
        return _FromTiles(self)


class _FromTiles:
    """Keeps the last tile: several patches may come from one."""

    def __init__(self, source: GroupSource) -> None:
        table = manifest.read_further(source.store, source.slide_id, (manifest.TILE, manifest.TILE_FILE))
        self._source = source
        self._tiles, self._names = (
            table[name].combine_chunks() for name in (manifest.TILE, manifest.TILE_FILE)
        )
        self._reader = TileReader()
        self._tile = ""
        self._pixels: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def read(self, row: int, x_px0: int, y_px0: int) -> npt.NDArray[np.uint8]:
        tile, side = self._tiles[row].as_py(), self._source.size_px
        if tile != self._tile:
            pixels = self._load(self._names[row].as_py() or "", tile)
            self._pixels, self._tile = padded(pixels, side, self._source.pad), tile
        patch = self._pixels[y_px0 : y_px0 + side, x_px0 : x_px0 + side]
        if patch.shape != (side, side, 3):
            raise ReadError(f"{self._names[row]}: has no patch of {side} px at {x_px0},{y_px0}")
        return np.ascontiguousarray(patch)

    def _load(self, name: str, tile: str) -> npt.NDArray[np.uint8]:
        moved = self._source.moved.get(tile)
        places = [moved] if moved else []
        said = "not the name of a file below a folder"
        if tiles.is_tile_name(name):
            said = "no such file"
            places += [(folder, name) for folder in self._source.folders]
        for folder, named in places:
            try:
                pixels = self._reader.read(folder, named)
            except ReadError as error:
                said = said if str(error) == "no such file" else str(error)
                continue
            if tiles.fingerprint_of_tile(pixels) == tile:
                return pixels
            said = "has other pixels than the tile of this name that was tiled, or another decoder reads them"
        raise ReadError(f"{one_line(name)}: {said}")

    def close(self) -> None:
        self._reader.close()
