"""Where the pixels of a store's slides come from: slide files, or tiles that stand in the place of slides."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.slides.find import find_slides
from pipeline.slides.sources import Source, open_slide_source
from pipeline.tiles.search import LOOKED_AT, File, find_moved, names_of, root_of
from pipeline.tiles.source import GroupSource
from stores.errors import OptionError, ReadError, SlideError
from stores.format import layout, manifest, recipe, tiles
from stores.io.location import StoreLike
from stores.io.progress import SILENT, Reporter
from stores.io.ranges import spread


class Place(Protocol):
    """Where the pixels of one slide are; small, as it travels to workers."""

    @property
    def name(self) -> str:
        """For messages: the name of the file."""

    def source(self, row: Mapping[str, Any], stored: recipe.Recipe) -> Source:
        """The source of the patches; SlideError when these are other pixels than those that were tiled."""


@dataclass(frozen=True, slots=True)
class SlidePlace:
    """A slide file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def source(self, row: Mapping[str, Any], stored: recipe.Recipe) -> Source:
        return open_slide_source(row, self.path, stored.patch, stored.declared)


@dataclass(frozen=True, slots=True)
class TilesPlace:
    """Folders below which the tiles of a group are, by the names that the store has for them; others by content."""

    store: StoreLike
    folders: tuple[Path, ...]
    moved: Mapping[str, File] = field(default_factory=dict, compare=False)
    """Where tiles are that have other names now, by fingerprint."""

    @property
    def name(self) -> str:
        return self.folders[0].name

    def source(self, row: Mapping[str, Any], stored: recipe.Recipe) -> Source:
        """Some of the tiles are looked at; all are, one by one, when they are read."""
        slide_id = str(row["slide_id"])
        pad = stored.patch.tissue.get("pad", "none")
        store = (self.store / layout.MANIFEST).parent
        found = GroupSource(slide_id, store, self.folders, stored.patch.size_px, str(pad), self.moved)
        patches = manifest.read_patches(self.store, slide_id, row["n_patches"])
        reader = found.open()
        try:
            for i in spread(len(patches), LOOKED_AT):
                reader.read(i, int(patches.x_px0[i]), int(patches.y_px0[i]))
        except ReadError as error:
            where = ", ".join(map(str, self.folders))
            raise SlideError(
                f"{slide_id}: {error}; looked in {where}: give the folder that the names of the tiles begin in"
            ) from None
        finally:
            reader.close()
        return found


def find_places(
    store: StoreLike,
    patch: recipe.Patch,
    rows: Iterable[Mapping[str, Any]],
    inputs: Sequence[Path],
    root: Path | None = None,
    report: Reporter = SILENT,
) -> dict[str, Place]:
    """Where the pixels of the slides of a store are among the inputs, by slide id.

    Parameters
    ----------
    rows
        Of the slides table.
    inputs
        Slides and their folders; for a store of tiles what it was tiled from, the folder that their names begin in, or
        whatever has them under other names: these are found by content (`find_moved`).
    root
        Folder that the paths of a CSV of tiles are relative to.
    """
    if patch.grid != tiles.GRID:
        return {name: SlidePlace(path) for name, path in find_slides(inputs, rows, report).items()}
    missing = next((path for path in inputs if not path.exists()), None)
    if missing is not None:
        raise OptionError(f"{missing}: no such file or folder")
    folders = [root] if root is not None else []
    folders += [path if path.is_dir() else path.parent for path in inputs]
    usable = [row for row in rows if row["status"] == manifest.OK]
    names = names_of(store, usable)
    every = [name for of_group in names.values() for name in of_group.values()]
    roots = [root_of(path, every) for path in inputs if path.suffix.lower() == ".csv"]
    folders += [folder for folder in roots if folder is not None]
    unique = tuple(dict.fromkeys(folder.absolute() for folder in folders))
    moved = find_moved(names, unique, inputs, report)
    return {row["slide_id"]: TilesPlace(store, unique, moved.get(row["slide_id"], {})) for row in usable}
