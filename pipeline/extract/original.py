"""The store whose slides, patches and splits another one takes over, and whose views it shows to another teacher.

It may come from another lab, so that everything in it is checked as in any foreign store.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.inference.task import Together
from pipeline.runtime.options import from_json, to_json, types_of
from pipeline.tile.options import TileOptions
from stores.combine.copy_slide import Choice, Shared, Source, copy_slide
from stores.errors import CorruptStore, OptionError, StoreError
from stores.format import layout, manifest, recipe
from stores.format.committed import patches_problems
from stores.format.same_views import NONE, Expected, read_checksums, require_equal, view_name
from stores.io import files
from stores.io.location import StoreLike, is_same

OF_THIS_MACHINE = ("slides_csv", "masks", "qc", "root")
"""Tile options that are paths of whoever tiled: they are not taken over."""


_DECIDED = manifest.RESERVED - {"file_name"}
"""Columns that are as they were when the slide was tiled; a user's own may change."""


@dataclass(frozen=True, slots=True)
class Original:
    """A store that is tiled; it may have no view yet."""

    files: StoreLike
    patch: recipe.Patch
    rows: Mapping[str, Mapping[str, Any]]
    """Its slides table, by slide id."""
    label: str
    """What messages call it."""

    def __str__(self) -> str:
        return str(self.files)

    def tile_options(self) -> TileOptions:
        """What it was tiled with, as far as it says so."""
        said = layout.read_options(self.files, "tile")
        known = types_of(TileOptions).keys() - set(OF_THIS_MACHINE)
        patch = self.patch
        try:
            options: TileOptions = from_json(TileOptions, {n: v for n, v in said.items() if n in known})
        except OptionError as error:
            raise CorruptStore(f"{self}/{layout.options_file('tile')}: {error}") from None
        return replace(
            options, mpp=patch.mpp, patch=patch.size_px, min_tissue=patch.min_tissue or TileOptions.min_tissue
        )

    def begin(self, store: Path) -> None:
        """Take over tiling and slides table, or compare them and the views with those of `store`.

        A slide that the store does not have, or could not use, is added. A kill leaves a folder that is no store yet,
        or the slides table of before: the same command continues.

        Raises
        ------
        StoreError
            When `store` has a slide that this one does not have, or has otherwise.
        ViewMismatch
            When a view of both differs.
        """
        if is_same(self.files, store):
            raise OptionError(f"{self.label}: is the store itself; give another --store")
        source = Source(self.files)
        begun = (store / layout.RECIPE).exists()
        old = {row["slide_id"]: row for row in manifest.read_slides(store)} if begun else {}
        if begun:
            tiling = recipe.load(store)
            recipe.require_same(tiling, replace(tiling, patch=self.patch), str(store))
        for slide_id, mine in old.items():
            if slide_id not in self.rows:
                raise StoreError(
                    f"slide {slide_id}: is in {store}, and not in {self.label}; use another --store"
                )
            if mine["status"] == manifest.OK:
                self._require_same_row(store, mine)
        self.compared(store)
        for slide_id, row in self.rows.items():
            if old.get(slide_id, {}).get("status") == manifest.OK:
                continue
            if row["status"] == manifest.OK:
                self._require_sound(self.files, row)
            copy_slide(slide_id, Choice(dict(row), source), None, store, Shared(str(store)))
            if row["status"] == manifest.OK:  # what a killed run left is kept by its size
                self._require_same_patches(store, slide_id)
        if list(old.values()) != list(self.rows.values()):
            manifest.write_slides(store, list(self.rows.values()))
        if not begun:
            said = layout.read_options(self.files, "tile")
            kept = {n: v for n, v in to_json(self.tile_options()).items() if n in said}
            files.write_json(store / layout.options_file("tile"), kept)
            recipe.save(store, recipe.Recipe(self.patch))

    def _require_same_row(self, store: Path, row: Mapping[str, Any]) -> None:
        """Compare the rows of a slide that both have; what ``tile`` may change later is taken over."""
        slide_id = row["slide_id"]
        theirs = self.rows[slide_id]
        has_views = next(manifest.commits(store, slide_id), None) is not None
        decided = _DECIDED if has_views else _DECIDED - {"patient_id", "split"}
        for name in sorted((row.keys() | theirs.keys()) & decided):
            if row.get(name) != theirs.get(name):
                raise StoreError(
                    f"slide {slide_id}: {name} is {row.get(name)!r:.80} in {store} and {theirs.get(name)!r:.80} "
                    f"in {self.label}; use another --store"
                )
        self._require_same_patches(store, slide_id)

    def _require_same_patches(self, store: Path, slide_id: str) -> None:
        mine, theirs = (manifest.read_patches(place, slide_id) for place in (store, self.files))
        for name in ("x_px0", "y_px0", "tissue", "tile"):
            # of slides both tiles are None, and equal
            if not np.array_equal(getattr(mine, name), getattr(theirs, name)):
                raise StoreError(
                    f"slide {slide_id}: its patches in {store} are not those in {self.label}; use another --store"
                )

    def _require_sound(self, store: StoreLike, row: Mapping[str, Any]) -> None:
        patches = manifest.read_patches(store, row["slide_id"], row["n_patches"])
        for problem in patches_problems(patches, row, self.patch):
            raise CorruptStore(f"{store}/{layout.patches_file(row['slide_id'])}: {problem}")

    def compared(self, store: Path) -> int:
        """How many committed views of `store` are equal to those here; ViewMismatch for the first that differs."""
        return sum(
            self._compared(store, row)
            for slide_id, row in self.rows.items()
            if next(manifest.commits(store, slide_id), None) is not None
        )

    def _compared(self, store: Path, row: Mapping[str, Any]) -> int:
        mine, theirs = (read_checksums(place, row, self.patch) for place in (store, self.files))
        shared = min(len(mine), len(theirs))
        mine, theirs = mine[:shared], theirs[:shared]
        both = (mine != NONE) & (theirs != NONE)
        for seed, at in np.argwhere(both & (mine != theirs))[:1]:
            x_px0, y_px0 = manifest.read_patches(store, row["slide_id"]).coords[at].tolist()
            view = view_name(row["slide_id"], int(at), x_px0, y_px0, int(seed))
            require_equal(int(theirs[seed, at]), int(mine[seed, at]), view, str(self))
        return int(both.sum())

    def checksums(self, slide_id: str, n_seeds: int) -> npt.NDArray[np.int64]:
        """``view_crc32`` of the committed views of a slide, int64 (n_seeds, n_patches); `NONE` where there is none."""
        return read_checksums(self.files, self.rows[slide_id], self.patch, n_seeds)

    def about(self) -> dict[str, Any]:
        """What a store records of the one whose views it has: a name and no path, because stores are passed on."""
        return {"name": self.name, "recipe": recipe.load(self.files).digest()}

    @property
    def name(self) -> str:
        """The last part of its path or URL."""
        return str(self.files).rstrip("/").rpartition("/")[2]


def expected(items: Iterator[Together], others: Sequence[tuple[int | None, Original]]) -> Iterator[Together]:
    """The items, each task with the checksums that other stores have of its views.

    They are read slide by slide, so that few are in memory.

    Parameters
    ----------
    others
        Stores, each with its number among those that are written, whose own tasks it says nothing of; None for one that
        is only read.
    """
    for slide_id, group in itertools.groupby(items, key=lambda item: item.first.source.slide_id):
        of_slide = list(group)
        n_seeds = max(task.seeds.stop for item in of_slide for _, task in item.tasks)
        known = [(number, other, other.checksums(slide_id, n_seeds)) for number, other in others]
        for item in of_slide:
            tasks = []
            for number, task in item.tasks:
                found = []
                for own, other, crc32 in known:
                    part = crc32[task.seeds.start : task.seeds.stop, task.rows.start : task.rows.stop]
                    if own != number and (part != NONE).any():
                        found.append(Expected(str(other), part.copy()))
                tasks.append((number, replace(task, expected=tuple(found))))
            yield replace(item, tasks=tuple(tasks))
