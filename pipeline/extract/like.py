"""``extract-teacher --like A``: a store that shows the views of another one, for another teacher.

Tiling, slides table, policy and seeds are A's. The checksum of each view is compared with A's as it is rendered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.extract.options import ExtractOptions
from pipeline.extract.original import OF_THIS_MACHINE, Original
from pipeline.runtime.options import from_json, types_of
from pipeline.runtime.progress import Reporter
from pipeline.tile.options import TileOptions
from pipeline.views.policy import Policy, load_policy, sized
from stores.errors import OptionError, StoreError
from stores.export import pseudonyms
from stores.format import layout, manifest, recipe
from stores.format.committed import usable_slides
from stores.io.location import StoreLike
from stores.io.text import one_line

_FREE = ("root", "tiles")
"""Tile options that say where the inputs are, or of what kind."""


@dataclass(frozen=True, slots=True)
class Like:
    """The store whose views are made again."""

    original: Original
    stored: recipe.CompleteRecipe
    seeds: int

    def __str__(self) -> str:
        return str(self.original)

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
        return cls(Original(store, stored.patch, rows, f"--like {store}"), stored, seeds)

    @property
    def policy(self) -> Policy:
        """The policy of its views."""
        return Policy.from_json(self.stored.policy)

    def require_same(self, given: Mapping[str, Any]) -> None:
        """Raise OptionError for the first option that contradicts this store.

        Parameters
        ----------
        given
            The options that the user gave, by name.
        """
        asked = from_json(TileOptions, {n: v for n, v in given.items() if n in types_of(TileOptions)})
        tiled = self.original.tile_options()
        for field in fields(TileOptions):
            name = field.name
            if name not in given or name in _FREE:
                continue
            if name in OF_THIS_MACHINE and given[name] is not None:
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

    def tile_options(self, given: Mapping[str, Any]) -> TileOptions:
        """The tile options of a run that makes these views; OptionError for one of `given` that contradicts them."""
        self.require_same(given)
        root = None if given.get("root") is None else Path(given["root"])
        return replace(self.original.tile_options(), root=root)

    def options(self, asked: ExtractOptions) -> ExtractOptions:
        """The options of a teacher that is shown these views."""
        return replace(asked, seeds=self.seeds, policy=self.policy.name)

    def _refused(self, name: str, value: object, theirs: object) -> OptionError:
        flag = name.replace("_", "-")
        return OptionError(
            f"--{flag} {value}: tiling, policy and seeds are those of --like {self}, which has {theirs}; leave it out"
        )


def note_left_out(store: Path, others: Sequence[str], report: Reporter) -> None:
    """Say so when a store was begun with --like, and is continued without, and not beside that store either.

    Parameters
    ----------
    others
        Names of the stores that are written with it.
    """
    said = layout.read_options(store, "extract-teacher").get("like")
    if isinstance(said, Mapping) and said.get("name") not in others:
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
