"""``extract-teacher --like A``: a store that shows the views of another one, for another teacher.

Tiling, slides table, policy and seeds are A's. The checksum of each view is compared with A's as it is rendered. A may
come from another lab, so that everything in it is checked as in any foreign store.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.extract.options import ExtractOptions
from pipeline.inference.task import Task
from pipeline.runtime.options import from_json, to_json, types_of
from pipeline.runtime.progress import Reporter
from pipeline.tile.options import TileOptions
from pipeline.views.policy import Policy, load_policy, sized
from stores.combine.copy_slide import Choice, Shared, Source, copy_slide
from stores.errors import CorruptStore, OptionError, StoreError
from stores.export import pseudonyms
from stores.format import layout, manifest, recipe
from stores.format.committed import patches_problems, usable_slides
from stores.format.same_views import NONE, Expected, read_checksums, require_equal, view_name
from stores.io import files
from stores.io.location import StoreLike, is_same
from stores.io.text import one_line

_OF_THIS_MACHINE = ("slides_csv", "masks", "root")
"""Tile options that are paths of whoever tiled: they are not taken over."""
_FREE = ("root", "tiles")
"""Tile options that say where the inputs are, or of what kind."""


@dataclass(frozen=True, slots=True)
class Like:
    """The store whose views are made again."""

    files: StoreLike
    stored: recipe.CompleteRecipe
    rows: Mapping[str, Mapping[str, Any]]
    """Its slides table, by slide id."""
    seeds: int

    def __str__(self) -> str:
        return str(self.files)

    @classmethod
    def of(cls, store: StoreLike) -> "Like":
        """Open a store that has views.

        Raises
        ------
        StoreError
            When it has none, when they were imported, or when its tables contradict each other.
        OptionError
            When it is an export under pseudonyms: draws are keyed by fingerprints, which it does not have.
        """
        stored = recipe.load_complete(store)
        recipe.require_possible(stored, store)
        if stored.declared is not None:
            raise StoreError(
                f"--like {store}: its features were imported from {one_line(stored.declared.by)}, and no view was "
                "rendered; give a store that `g2l extract-teacher` made"
            )
        usable_slides(store, stored.patch)
        rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
        if any(pseudonyms.is_keyed(row["fingerprint"]) for row in rows.values()):
            raise OptionError(
                f"--like {store}: an export under pseudonyms, to which no slide can be matched; "
                "use the store that it was made from"
            )
        seeds = max((commit.seeds.stop for commit in manifest.commits(store)), default=0)
        if not seeds:
            raise StoreError(f"--like {store}: no view is committed yet; start again when it has some")
        return cls(store, stored, rows, seeds)

    @property
    def policy(self) -> Policy:
        """The policy of its views."""
        return Policy.from_json(self.stored.policy)

    def tile_options(self) -> TileOptions:
        """What it was tiled with, as far as it says so."""
        said = layout.read_options(self.files, "tile")
        known = types_of(TileOptions).keys() - set(_OF_THIS_MACHINE)
        patch = self.stored.patch
        try:
            options: TileOptions = from_json(TileOptions, {n: v for n, v in said.items() if n in known})
        except OptionError as error:
            raise CorruptStore(f"{self}/{layout.options_file('tile')}: {error}") from None
        return replace(
            options, mpp=patch.mpp, patch=patch.size_px, min_tissue=patch.min_tissue or TileOptions.min_tissue
        )

    def require_same(self, given: Mapping[str, Any]) -> None:
        """Raise OptionError for the first option that contradicts this store.

        Parameters
        ----------
        given
            The options that the user gave, by name.
        """
        asked = from_json(TileOptions, {n: v for n, v in given.items() if n in types_of(TileOptions)})
        tiled = self.tile_options()
        for field in fields(TileOptions):
            name = field.name
            if name not in given or name in _FREE:
                continue
            if name in _OF_THIS_MACHINE and given[name] is not None:
                raise self._refused(name, given[name], "its own")
            if getattr(asked, name) != getattr(tiled, name):
                raise self._refused(name, given[name], getattr(tiled, name))
        if given.get("seeds", self.seeds) != self.seeds:
            raise self._refused("seeds", given["seeds"], self.seeds)
        if "policy" in given:
            own = self.policy
            wanted = sized(load_policy(given["policy"]), own.patch_px, own.crop_px)
            for name, theirs, value in recipe.value_differences(own.to_json(), wanted.to_json()):
                if name != "name":
                    raise self._refused("policy", given["policy"], f"{name} {theirs!r} instead of {value!r}")

    def options(self, asked: ExtractOptions, given: Mapping[str, Any]) -> tuple[ExtractOptions, TileOptions]:
        """The options of a run that makes these views; OptionError for one of `given` that contradicts them."""
        self.require_same(given)
        root = None if given.get("root") is None else Path(given["root"])
        tiling = replace(self.tile_options(), root=root)
        return replace(asked, seeds=self.seeds, policy=self.policy.name), tiling

    def _refused(self, name: str, value: object, theirs: object) -> OptionError:
        flag = name.replace("_", "-")
        return OptionError(
            f"--{flag} {value}: tiling, policy and seeds are those of --like {self}, which has {theirs}; leave it out"
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
            raise OptionError(f"--like {self}: is the store itself; give another --store")
        source = Source(self.files)
        begun = (store / layout.RECIPE).exists()
        old = {row["slide_id"]: row for row in manifest.read_slides(store)} if begun else {}
        if begun:
            tiling = recipe.load(store)
            recipe.require_same(tiling, replace(tiling, patch=self.stored.patch), str(store))
        for slide_id, mine in old.items():
            if slide_id not in self.rows:
                raise StoreError(
                    f"slide {slide_id}: is in {store}, and not in --like {self}; use another --store"
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
            recipe.save(store, recipe.Recipe(self.stored.patch))

    def _require_same_row(self, store: Path, row: Mapping[str, Any]) -> None:
        theirs = self.rows[row["slide_id"]]
        for name in sorted(row.keys() | theirs.keys()):
            if row.get(name) != theirs.get(name):
                raise StoreError(
                    f"slide {row['slide_id']}: {name} is {row.get(name)!r:.80} in {store} and {theirs.get(name)!r:.80} "
                    f"in --like {self}; use another --store"
                )
        self._require_same_patches(store, row["slide_id"])

    def _require_same_patches(self, store: Path, slide_id: str) -> None:
        mine, theirs = (manifest.read_patches(place, slide_id) for place in (store, self.files))
        for name in ("x_px0", "y_px0", "tissue", "tile"):
            # of slides both tiles are None, and equal
            if not np.array_equal(getattr(mine, name), getattr(theirs, name)):
                raise StoreError(
                    f"slide {slide_id}: its patches in {store} are not those in --like {self}; use another --store"
                )

    def _require_sound(self, store: StoreLike, row: Mapping[str, Any]) -> None:
        patches = manifest.read_patches(store, row["slide_id"], row["n_patches"])
        for problem in patches_problems(patches, row, self.stored.patch):
            raise CorruptStore(f"{store}/{layout.patches_file(row['slide_id'])}: {problem}")

    def compared(self, store: Path) -> int:
        """How many committed views of `store` are equal to those here; ViewMismatch for the first that differs."""
        return sum(
            self._compared(store, row)
            for slide_id, row in self.rows.items()
            if next(manifest.commits(store, slide_id), None) is not None
        )

    def _compared(self, store: Path, row: Mapping[str, Any]) -> int:
        mine, theirs = (
            read_checksums(place, row, self.stored.patch, self.seeds) for place in (store, self.files)
        )
        both = (mine != NONE) & (theirs != NONE)
        for seed, at in np.argwhere(both & (mine != theirs))[:1]:
            x_px0, y_px0 = manifest.read_patches(store, row["slide_id"]).coords[at].tolist()
            view = view_name(row["slide_id"], int(at), x_px0, y_px0, int(seed))
            require_equal(int(theirs[seed, at]), int(mine[seed, at]), view, str(self))
        return int(both.sum())

    def expected(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """The tasks, each with the checksums that its views have here; slide by slide, so that few are in memory."""
        for slide_id, of_slide in itertools.groupby(tasks, key=lambda task: task.source.slide_id):
            found = read_checksums(self.files, self.rows[slide_id], self.stored.patch, self.seeds)
            for task in of_slide:
                part = found[task.seeds.start : task.seeds.stop, task.rows.start : task.rows.stop]
                yield replace(task, expected=Expected(str(self), part.copy()))

    def about(self) -> dict[str, Any]:
        """What a store records of the one that it is like: a name and no path, because stores are passed on."""
        name = str(self.files).rstrip("/").rpartition("/")[2]
        return {"like": {"name": name, "recipe": self.stored.digest()}}


def note_left_out(store: Path, report: Reporter) -> None:
    """Say so when a store was begun with --like, and is continued without."""
    said = layout.read_options(store, "extract-teacher").get("like")
    if isinstance(said, Mapping):
        name = one_line(said.get("name"))
        report.note(
            f"warning: begun with --like {name}, continued without: no view is compared with those of {name}"
        )


def not_among(
    inputs: Sequence[str], rows: Mapping[str, Mapping[str, Any]], report: Reporter
) -> dict[str, str]:
    """Slides of the other store that the inputs do not have, with the reason; says which inputs are left out.

    Parameters
    ----------
    inputs
        Ids of the slides that were found.
    """
    others = sorted(set(inputs) - rows.keys())
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        report.note(f"left out, because the store of --like does not have it: {', '.join(others[:3])}{more}")
    usable = [name for name, row in rows.items() if row["status"] == manifest.OK]
    return {name: "not found among the inputs" for name in usable if name not in inputs}
