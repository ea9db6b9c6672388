"""Join the views of several stores: find the same views in each, and prove that they are the same.

The stores of a family have one policy, and teachers of their own. A view is known by (fingerprint, x_px0, y_px0, seed);
for patches of tiles the fingerprint is the tile's. Every view that two stores have must have one checksum in both.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.balance import group_units
from pipeline.data.joined import Joined, Match, grid, has_views, restricted, root_of
from pipeline.data.loader import SAMPLE_BLOCKS, Batch, LoaderOptions, ViewLoader, load_views
from pipeline.data.sources import find_sources
from pipeline.data.split import Split, find_views, list_slides, require_rendering
from pipeline.runtime.progress import Reporter
from pipeline.slides.sources import Source
from pipeline.views.policy import Policy
from stores import sampler
from stores.errors import RecipeMismatch, StoreError, ViewMismatch
from stores.export.pseudonyms import is_keyed
from stores.format import manifest, tiles
from stores.format.qc import Limit
from stores.format.recipe import Attention, CompleteRecipe, Tokens
from stores.format.same_views import two_checksums, view_differences, view_name
from stores.io.location import StoreLike
from stores.io.text import counted

JOINS = ("common", "any")
_NAMED = 5
"""Slides that a line names."""


@dataclass(frozen=True, slots=True)
class Member:
    """One of the stores."""

    files: StoreLike
    recipe: CompleteRecipe
    tokens: Tokens | None = None
    """The tokens that the loss on it uses."""
    attention: Attention | None = None
    """The attention that the loss on it uses."""


@dataclass(frozen=True, slots=True)
class JoinedSplit(Split):
    """The views of one split in several stores. `store` and `recipe` are those of the first."""

    joined: Joined
    members: tuple[Split, ...]
    """The views of each store by itself."""
    digest: str
    """Of the checksums of all views, in their order, and of which store has which."""

    def _sources(self) -> Iterable[Source]:
        return [source for of_store in self.joined.sources for source in of_store.values()]

    def loader(
        self,
        options: LoaderOptions,
        start: int = 0,
        tokens: Tokens | None = None,
        attention: Attention | None = None,
    ) -> ViewLoader:
        """The endless stream of batches; each store gives the tokens and attention that it was joined with."""
        groups = self.groups(options.balance)
        return ViewLoader(
            self.store,
            self.units,
            {},
            self.policy,
            options,
            start,
            groups=groups,
            joined=self.joined,
            pairs=self.pairs,
        )

    def groups(self, balance: str) -> list[list[sampler.Segment]]:
        """The units by slide or patient, also over stores; empty for ``none``."""
        found: dict[str, list[sampler.Segment]] = {}
        for number, member in enumerate(self.members):
            own = [unit for unit in self.units if self.joined.home(unit.commit) == number]
            rows = {row["slide_id"]: row for row in manifest.read_slides(member.store)} if own else {}
            for key, units in group_units(member.store, own, balance).items():
                name = _slide_of(rows[key], number) if balance == "slide" else key
                found.setdefault(name, []).extend(units)
        return list(found.values())

    def sample(
        self,
        seed: int,
        n_views: int,
        threads: int,
        tokens: Tokens | None = None,
        attention: Attention | None = None,
        blocks: int | None = SAMPLE_BLOCKS,
    ) -> Batch:
        """At most `n_views` views under one seed, evenly spread, see `load_views`; each compared with its checksum."""
        return load_views(
            self.store,
            self.units,
            {},
            self.policy,
            seed,
            n_views,
            threads,
            joined=self.joined,
            pairs=self.pairs,
            blocks=blocks,
        )

    def check(self, threads: int) -> None:
        """Rebuild a few views under every seed; ViewMismatch when one is not the view that the teachers saw."""
        seeds = sorted({seed for unit in self.units for seed in unit.seeds})
        self._check(seeds, threads)

    def views_of(self, number: int) -> int:
        """How many of the views the store has."""
        return sum(int(self.joined.has(unit, number).sum()) for unit in self.units)


def open_joined(
    members: Sequence[Member],
    n_seeds: Mapping[str, int | None],
    join: str,
    slides: Sequence[Path],
    may_be_empty: Sequence[str],
    report: Reporter,
    limits: Sequence[Limit] = (),
) -> list[JoinedSplit]:
    """The views of some splits that the stores have in common, or that any has.

    Pixels come from the first store that has the view.

    Parameters
    ----------
    n_seeds
        By split, in the order of the result; None takes every seed.
    join : str
        ``common`` or ``any``.
    may_be_empty
        Splits that are allowed to have no views.
    limits
        Of quality, see `find_views`; each store needs the columns.

    Raises
    ------
    RecipeMismatch
        When the policies, or the patches, are not the same.
    ViewMismatch
        When a view has different checksums in two stores.
    StoreError
        When they have no view in common, or a slide or patient is in two splits.
    """
    _require_family(members)
    tables = [manifest.read_slides(member.files) for member in members]
    _require_one_split(members, tables)
    pseudonyms = _under_pseudonyms(members, tables)
    if pseudonyms and join == "any":
        report.note(
            f"warning: {pseudonyms}; nothing notices a slide that another store has under its own name"
        )
    found = []
    in_split: dict[str, tuple[str, StoreLike]] = {}
    listings = [list_slides(member.files, member.recipe) for member in members]
    for split, seeds in n_seeds.items():
        empty = split in may_be_empty
        units = [
            find_views(m.files, m.recipe, split, seeds, empty, True, limits, report, listing)
            for m, listing in zip(members, listings, strict=True)
        ]
        sides = [_Side(m.files, rows, of) for m, rows, of in zip(members, tables, units, strict=True)]
        for side in sides:
            for picture in side.pictures:
                other, store = in_split.setdefault(picture, (split, side.store))
                if other != split:
                    raise _two_splits(f"the picture {picture:.60}", other, store, split, side.store)
        found.append((split, units, sides, _Join(sides)))
    result = []
    for split, units, sides, made in found:
        chosen = made.common() if join == "common" else made.any()
        if not chosen and split not in may_be_empty:
            raise StoreError(
                f"no view of the split {split!r} is in all of {', '.join(str(m.files) for m in members)}"
                f"{'; ' if pseudonyms else ''}{pseudonyms}; see `g2l store info --family`, or use --join any"
            )
        _require_seeds(chosen, n_seeds[split])
        if join == "common":
            for line in made.left_out(chosen):
                report.note(f"split {split}: {line}")
        sources = _sources_of(members, sides, chosen, slides, report)
        joined = Joined(
            tuple(m.files for m in members),
            tuple(m.recipe for m in members),
            tuple(m.tokens for m in members),
            tuple(m.attention for m in members),
            made.matches,
            sources,
            {side.root: number for number, side in enumerate(sides)},
        )
        policy = Policy.from_json(members[0].recipe.policy)
        alone = [Split(m.files, m.recipe, policy, of, {}) for m, of in zip(members, units, strict=True)]
        result.append(
            JoinedSplit(
                members[0].files,
                members[0].recipe,
                policy,
                chosen,
                sources[0],
                joined,
                tuple(alone),
                made.digest(joined, chosen),
            )
        )
        for side in sides:
            side.views.cache_clear()
    return result


def _require_family(members: Sequence[Member]) -> None:
    """Raise unless all stores show patches of one kind under one policy, rendered as here."""
    first = members[0]
    for member in members:
        require_rendering(member.files, member.recipe)
        for field, old, new in view_differences(first.recipe, member.recipe):
            raise RecipeMismatch(
                f"recipe.{field}: {first.files} has {old!r}, {member.files} has {new!r}; only stores of the same "
                "views can teach together: extract one again with the other's options"
            )


def _require_one_split(members: Sequence[Member], tables: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Raise StoreError when a slide or a patient is in one split of a store and in another one of another."""
    seen: dict[tuple[str, str], tuple[str, StoreLike]] = {}
    for member, rows in zip(members, tables, strict=True):
        for row in rows:
            for what, column in (("slide", "fingerprint"), ("patient", "patient_id")):
                if row["status"] != manifest.OK or not row[column]:
                    continue
                split, store = seen.setdefault((what, row[column]), (row["split"], member.files))
                if split != row["split"]:
                    name = row["slide_id"] if what == "slide" else row[column]
                    raise _two_splits(f"{what} {name}", split, store, row["split"], member.files)


def _two_splits(what: str, a: str, store_a: StoreLike, b: str, store_b: StoreLike) -> StoreError:
    return StoreError(
        f"{what} is in the split {a} in {store_a}, and in {b} in {store_b}: a training would see what it is validated "
        "on; tile one store again with the other's splits, or leave it out with `g2l store subset`"
    )


def _under_pseudonyms(members: Sequence[Member], tables: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Which stores have pseudonyms where others have none, and what that means; empty where it is all or none."""
    keyed = [any(is_keyed(row["fingerprint"]) for row in rows) for rows in tables]
    if all(keyed) or not any(keyed):
        return ""
    named = ", ".join(str(member.files) for member, of in zip(members, keyed, strict=True) if of)
    return f"{named}: slides under pseudonyms, which match only those of an export with the same key"


def _slide_of(row: Mapping[str, Any], number: int) -> str:
    """What a slide of store `number` is called in all stores; tiles of groups of one name are one slide."""
    if row["vendor"] == tiles.VENDOR:
        return f"tiles {row['slide_id']}"
    return row["fingerprint"] or f"store {number} {row['slide_id']}"


def _require_seeds(units: Sequence[sampler.Segment], n_seeds: int | None) -> None:
    there = {seed for unit in units for seed in unit.seeds}
    missing = sorted(set(range(n_seeds or 0)) - there) if there else []
    if missing:
        raise StoreError(
            f"no view of seed {missing[0]} is left when the stores are joined; use --seeds {missing[0]}, or run "
            f"extract-teacher --seeds {n_seeds} into each"
            if missing[0]
            else "no view of seed 0 is left when the stores are joined"
        )


def _sources_of(
    members: Sequence[Member],
    sides: Sequence["_Side"],
    units: Sequence[sampler.Segment],
    slides: Sequence[Path],
    report: Reporter,
) -> tuple[Mapping[str, Source], ...]:
    """Where the pixels of the slides come from that each store gives."""
    found = []
    for member, side in zip(members, sides, strict=True):
        ids = {unit.commit.slide_id for unit in units if unit.commit.root == side.root}
        found.append(find_sources(member.files, member.recipe, ids, slides, report) if ids else {})
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Views:
    """Checksums of the views of a slide, (n_seeds, n) each."""

    crc: npt.NDArray[np.uint32]
    ok: npt.NDArray[np.bool_]


class _Side:
    """The views of a split in one store, by slide."""

    def __init__(
        self, store: StoreLike, rows: Sequence[Mapping[str, Any]], units: Sequence[sampler.Segment]
    ) -> None:
        self.store, self.root, self.units = store, root_of(store), units
        self.units_of: dict[str, list[sampler.Segment]] = {}
        for unit in units:
            self.units_of.setdefault(unit.commit.slide_id, []).append(unit)
        fingerprints = {row["slide_id"]: row["fingerprint"] for row in rows}
        self.places: dict[str, npt.NDArray[np.int64]] = {}
        """x and y of each patch of a slide, as one number."""
        self.pictures: dict[str, tuple[str, npt.NDArray[np.int64]]] = {}
        """The slide and the rows of it that are of a picture: a slide, or a tile. The first, if it is there twice."""
        self.pictures_of: dict[str, list[tuple[str, npt.NDArray[np.int64]]]] = {}
        for slide_id in self.units_of:
            patches = manifest.read_patches(store, slide_id)
            self.places[slide_id] = (patches.x_px0.astype(np.int64) << 32) + patches.y_px0
            self.pictures_of[slide_id] = _pictures(patches, fingerprints[slide_id] or "")
            for picture, at in self.pictures_of[slide_id]:
                self.pictures.setdefault(picture, (slide_id, at))
        # 5 bytes a view until the stores are joined: each store is compared with each other one, and reading the
        # records again took most of the time of opening three stores
        self.views = functools.cache(self._views)

    def _views(self, slide_id: str) -> _Views:
        units = self.units_of[slide_id]
        shape = max(max(unit.seeds) for unit in units) + 1, len(self.places[slide_id])
        found = _Views(np.zeros(shape, np.uint32), np.zeros(shape, bool))
        for unit in units:
            table = unit.commit.read(["row", "seed", "view_crc32"])
            seeds, rows = table["seed"].to_numpy(), table["row"].to_numpy()
            kept = seeds < shape[0]
            found.crc[seeds[kept], rows[kept]] = table["view_crc32"].fill_null(0).to_numpy()[kept]
            found.ok[grid(unit)] = True
        return found


def _pictures(patches: manifest.Patches, fingerprint: str) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """The pictures of a slide with their rows; a slide without a fingerprint is none that another store knows."""
    rows = np.arange(len(patches))
    if patches.tile is None:
        return [(fingerprint, rows)] if fingerprint else []
    starts = np.flatnonzero(np.r_[True, patches.tile[1:] != patches.tile[:-1]])  # rows are in order of tiles
    parts = np.split(rows, starts[1:])
    return [(str(patches.tile[part[0]]), part) for part in parts if len(part)]


class _Join:
    """The views of a split in several stores, compared slide by slide."""

    def __init__(self, sides: Sequence[_Side]) -> None:
        self.sides = sides
        self.matches: dict[tuple[int, str, int], Match] = {}
        for home, side in enumerate(sides):
            for slide_id in side.units_of:
                for number in range(len(sides)):
                    match = self._match(home, slide_id, number) if number != home else None
                    if match is not None:
                        self.matches[home, slide_id, number] = match

    def _match(self, home: int, slide_id: str, number: int) -> Match | None:
        side, other = self.sides[home], self.sides[number]
        n = len(side.places[slide_id])
        slide, rows = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
        names: dict[str, int] = {}
        for picture, mine in side.pictures_of[slide_id]:
            if picture not in other.pictures:
                continue
            name, theirs = other.pictures[picture]
            wanted, there = side.places[slide_id][mine], other.places[name][theirs]
            order = np.argsort(there, kind="stable")
            at = np.minimum(np.searchsorted(there, wanted, sorter=order), len(there) - 1)
            hit = there[order[at]] == wanted
            rows[mine[hit]] = theirs[order[at[hit]]]
            slide[mine[hit]] = names.setdefault(name, len(names))
        if not names:
            return None
        views = side.views(slide_id)
        has = np.zeros(views.ok.shape, bool)
        for name, which in names.items():
            found = other.views(name)
            seeds = min(len(views.ok), len(found.ok))
            mine = np.flatnonzero(slide == which)
            both = views.ok[:seeds, mine] & found.ok[:seeds, rows[mine]]
            has[:seeds, mine] = both
            differs = both & (views.crc[:seeds, mine] != found.crc[:seeds, rows[mine]])
            if differs.any():
                seed, at = np.argwhere(differs)[0].tolist()
                row = int(mine[at])
                x, y = divmod(int(side.places[slide_id][row]), 1 << 32)
                view = view_name(slide_id, row, x, y, seed)
                ours, others = int(views.crc[seed, row]), int(found.crc[seed, rows[row]])
                raise ViewMismatch(
                    f"{two_checksums(view, side.store, ours, other.store, others)}: their teachers did not see the "
                    "same pixels; extract one of them again"
                )
        slides = tuple((name, len(other.places[name])) for name in names)
        return Match(slides, slide, rows, has)

    def _has(self, home: int, unit: sampler.Segment, number: int) -> npt.NDArray[np.bool_]:
        return has_views(self.matches, home, unit, number)

    def common(self) -> list[sampler.Segment]:
        """Views of the first store that all others have."""
        chosen: list[sampler.Segment] = []
        for unit in self.sides[0].units:
            masks = [self._has(0, unit, number) for number in range(len(self.sides))]
            chosen += restricted(unit, np.logical_and.reduce(masks))
        return chosen

    def any(self) -> list[sampler.Segment]:
        """Views that any store has: those of the first, then those of each that no store before it has."""
        chosen: list[sampler.Segment] = []
        for home, side in enumerate(self.sides):
            for unit in side.units:
                earlier = np.zeros((len(unit.seeds), len(unit.rows)), bool)
                for number in range(home):
                    earlier |= self._has(home, unit, number)
                chosen += restricted(unit, ~earlier)
        return chosen

    def left_out(self, chosen: Sequence[sampler.Segment]) -> list[str]:
        """A line for each store that has views which are not in all others."""
        kept = sum(unit.n_views for unit in chosen)
        lines = []
        for home, side in enumerate(self.sides):
            missing: dict[str, int] = {}
            for unit in side.units:
                masks = [self._has(home, unit, number) for number in range(len(self.sides))]
                left = unit.n_views - int(np.logical_and.reduce(masks).sum())
                if left:
                    missing[unit.commit.slide_id] = missing.get(unit.commit.slide_id, 0) + left
            if missing:
                total = sum(unit.n_views for unit in side.units)
                named = [f"{slide_id} ({n:,})" for slide_id, n in itertools.islice(missing.items(), _NAMED)]
                more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
                lines.append(
                    f"{sum(missing.values()):,} of {counted(total, 'view')} of {side.store} are left out, since not "
                    f"all stores have them: slides {', '.join(named)}{more}; --join any keeps them"
                )
        return [f"{counted(kept, 'view')} in all stores", *lines] if lines else []

    def digest(self, joined: Joined, chosen: Sequence[sampler.Segment]) -> str:
        """Of the checksums of the chosen views in their order, and of which store has which."""
        found = hashlib.blake2b(digest_size=16, person=b"g2l-joined")
        for unit in chosen:
            home = joined.home(unit.commit)
            at = grid(unit)
            found.update(repr((home, unit.seeds)).encode())
            found.update(self.sides[home].views(unit.commit.slide_id).crc[at].astype("<u4").tobytes())
            for number in range(len(self.sides)):
                found.update(np.packbits(joined.has(unit, number)).tobytes())
        return found.hexdigest()
