"""Stores that show the same views to several teachers: what they share, what each lacks, and whether it is proven."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import OptionError
from stores.format import layout, manifest, recipe, terms, tiles
from stores.format.committed import usable_slides
from stores.format.licences import AND, UNKNOWN
from stores.format.same_views import NONE, read_checksums, two_checksums, view_differences, view_name
from stores.io.location import StoreLike, is_same
from stores.io.text import counted, one_line

_NOBODYS = "none, its weights are random"


@dataclass(slots=True)
class Member:
    """One store of a family, and what it lacks of all that the others have."""

    path: str
    teacher: str
    dim: int
    recipe_digest: str
    licence: str
    seeds: int = 0
    slides: int = 0
    patches: int = 0
    views: int = 0
    """Committed views that could be read."""
    lacks_slides: list[str] = field(default_factory=list)
    """Ids of slides, as another store names them."""
    lacks_patches: int = 0
    lacks_views: int = 0


@dataclass(frozen=True, slots=True)
class _Opened:
    """A store with its tables."""

    files: StoreLike
    stored: recipe.CompleteRecipe
    rows: Sequence[Mapping[str, Any]]
    """Of its usable slides."""

    @classmethod
    def of(cls, store: StoreLike) -> "_Opened":
        stored = recipe.load_complete(store)
        recipe.require_possible(stored, store)
        return cls(store, stored, list(usable_slides(store, stored.patch).values()))

    def patches(self, row: Mapping[str, Any]) -> manifest.Patches:
        return manifest.read_patches(self.files, row["slide_id"], row["n_patches"])

    def pictures(self, row: Mapping[str, Any]) -> Iterable[str]:
        """What another store may have under other ids: the slide, or each tile of a group."""
        if self.stored.patch.grid == tiles.GRID:
            tile = self.patches(row).tile
            return [] if tile is None else dict.fromkeys(tile.tolist())
        return [row["fingerprint"]] if row["fingerprint"] else []


@dataclass(frozen=True, slots=True)
class _Part:
    """A slide of one of the stores."""

    store: int
    row: Mapping[str, Any]
    patches: manifest.Patches
    at: npt.NDArray[np.int64]
    """(n,) number of each patch among those of all stores."""


@dataclass(slots=True)
class Family:
    """What `family` found."""

    stores: list[Member]
    licence: str
    """The licences of all teachers, all of which bind."""
    terms: list[dict[str, Any]]
    differences: list[str] = field(default_factory=list)
    """Why they are no family; of views, the first of each slide that differs."""
    slides: int = 0
    """Slides that all of them have; patches, seeds and views likewise."""
    patches: int = 0
    seeds: int = 0
    views: int = 0
    compared: int = 0
    """Views whose checksum is in two stores or more."""
    other_splits: list[str] = field(default_factory=list)
    """Slides that are in one split here and in another there."""

    @property
    def is_family(self) -> bool:
        """Whether all views that two of them have are the same."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "family": self.is_family,
            "differences": self.differences,
            "shared": {n: getattr(self, n) for n in ("slides", "patches", "seeds", "views")},
            "compared": self.compared,
            "other_splits": self.other_splits,
            "stores": [asdict(member) for member in self.stores],
            "dims": sum(member.dim for member in self.stores),
            "licence": self.licence,
            "terms": self.terms,
        }

    def _of_unknown(self) -> str:
        """Which stores the licence of all says nothing of: another one may say more of a teacher of that name."""
        silent = [member.path for member in self.stores if member.licence == UNKNOWN]
        if not silent or UNKNOWN in self.licence.split(AND):
            return ""
        return f"; unknown what the terms of {_some(silent)} are"

    def lines(self) -> list[str]:
        """The same as text."""
        lines = []
        for member in self.stores:
            lines.append(
                f"{member.path}: {one_line(member.teacher)}, {member.dim}-d, licence {one_line(member.licence)}; "
                f"{counted(member.slides, 'slide')}, {counted(member.patches, 'patch', 'patches')}, "
                f"{counted(member.seeds, 'seed')}, {counted(member.views, 'view')}"
            )
            if member.lacks_slides or member.lacks_patches or member.lacks_views:
                named = f" ({_some(member.lacks_slides)})" if member.lacks_slides else ""
                lines.append(
                    f"  lacks {counted(len(member.lacks_slides), 'slide')}{named}, "
                    f"{counted(member.lacks_patches, 'patch', 'patches')}, {counted(member.lacks_views, 'view')}"
                )
        lines += [
            f"all have  {counted(self.slides, 'slide')}, {counted(self.patches, 'patch', 'patches')}, "
            f"{counted(self.seeds, 'seed')}, {counted(self.views, 'view')}",
            f"compared  the checksums of {counted(self.compared, 'view')}",
            f"licence   {one_line(self.licence)}{self._of_unknown()}",
        ]
        if self.other_splits:
            lines.append(f"splits    differ for {_some(self.other_splits)}")
        if self.is_family:
            return [*lines, "one family: all views that two of them have are the same"]
        shown = self.differences[:5]
        more = len(self.differences) - len(shown)
        return [*lines, *(f"not one family: {why}" for why in shown), *([f"and {more} more"] if more else [])]


def family(stores: Sequence[StoreLike]) -> Family:
    """Compare stores of several teachers, slide by slide.

    Slides are the same when their fingerprints are; so are tiles, in whatever group. Patches are the same when their
    positions are, too.

    Raises
    ------
    OptionError
        For fewer than two stores, or when one is given twice.
    StoreError
        When one is no store with teacher features.
    CorruptStore
        When one breaks a promise of the format.
    """
    if len(stores) < 2:
        raise OptionError("a family has two stores or more; give the paths of all of them")
    for a, b in itertools.combinations(stores, 2):
        if is_same(a, b):
            raise OptionError(f"{b}: given twice, also as {a}; give each store once")
    opened = [_Opened.of(store) for store in stores]
    of_each = [terms.of_store(each.files, each.stored.teacher.name) for each in opened]
    together = terms.union(*of_each)
    found = Family(
        [
            Member(
                path=str(each.files),
                teacher=each.stored.teacher.name,
                dim=each.stored.teacher.dim,
                recipe_digest=each.stored.digest(),
                licence=_licence(each, own),
            )
            for each, own in zip(opened, of_each, strict=True)
        ],
        terms.expression(together) if together else _shared(map(_licence, opened, of_each)),
        terms.to_json(together),
    )
    found.differences += _recipe_differences(opened)
    n_both = np.zeros((len(opened), len(opened)), np.int64)
    for group in _groups(opened):
        n_both += _add(found, opened, group)
    found.seeds = min(member.seeds for member in found.stores)
    for i, j in itertools.combinations(range(len(opened)), 2):
        if not n_both[i, j]:
            found.differences.append(f"{opened[i].files} and {opened[j].files} have no view in common")
    return found


def _licence(opened: _Opened, own: Sequence[terms.Terms]) -> str:
    """The licence of a store's teacher; weights that were drawn are nobody's, and have none."""
    drawn = layout.read_options(opened.files, "extract-teacher").get("random_weights")
    return _NOBODYS if not own and drawn is not None else terms.expression(own)


def _shared(licences: Iterable[str]) -> str:
    found = set(licences)
    return found.pop() if len(found) == 1 else UNKNOWN


def _recipe_differences(opened: Sequence[_Opened]) -> Iterator[str]:
    first, *others = opened
    for each in opened:
        if each.stored.declared is not None:
            yield f"{each.files}: its features were imported, and no view was rendered"
    for other in others:
        for name, a, b in view_differences(first.stored, other.stored):
            yield f"{name} is {b!r:.80} in {other.files} and {a!r:.80} in {first.files}"


def _groups(opened: Sequence[_Opened]) -> list[list[tuple[int, Mapping[str, Any]]]]:
    """(number of a store, row) of the slides that show one picture; groups of tiles are together that share a tile."""
    slides = [(number, row) for number, each in enumerate(opened) for row in each.rows]
    parent = list(range(len(slides)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, (number, row) in enumerate(slides):
        for picture in opened[number].pictures(row):
            parent[root(i)] = root(first.setdefault(picture, i))
    found: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for i, slide in enumerate(slides):
        found.setdefault(root(i), []).append(slide)
    return list(found.values())


def _add(
    found: Family, opened: Sequence[_Opened], group: Sequence[tuple[int, Mapping[str, Any]]]
) -> npt.NDArray[np.int64]:
    """Add slides of one picture to the figures; returns how many views each pair of stores has, (stores, stores)."""
    places: dict[tuple[str, int, int], int] = {}
    parts = []
    for number, row in group:
        patches = opened[number].patches(row)
        keys = [patches.key(i, row["fingerprint"] or "") for i in range(len(patches))]
        at = [
            places.setdefault(place, len(places))
            for place in zip(keys, patches.x_px0.tolist(), patches.y_px0.tolist(), strict=True)
        ]
        parts.append(_Part(number, row, patches, np.array(at, np.int64)))
    read = [
        read_checksums(opened[part.store].files, part.row, opened[part.store].stored.patch) for part in parts
    ]
    crc32 = np.full((len(opened), max(map(len, read)), len(places)), NONE, np.int64)
    has_patch = np.zeros((len(opened), len(places)), bool)
    # of a slide that a store has twice, the first counts
    for part, values in reversed([*zip(parts, read, strict=True)]):
        crc32[part.store, : len(values), part.at] = values.T
        has_patch[part.store, part.at] = True
    has = crc32 != NONE
    n_slides = np.bincount([number for number, _ in group], minlength=len(opened))
    names = [row["slide_id"] for number, row in group if number == group[0][0]]
    for i, member in enumerate(found.stores):
        member.slides += int(n_slides[i])
        member.patches += int(has_patch[i].sum())
        member.views += int(has[i].sum())
        member.seeds = max(member.seeds, int(has[i].any(1).nonzero()[0].max(initial=-1)) + 1)
        member.lacks_slides += [] if n_slides[i] else names
        member.lacks_patches += int((~has_patch[i]).sum())
        member.lacks_views += int((has.any(0) & ~has[i]).sum())
    found.slides += int(n_slides.min())
    found.patches += int(has_patch.all(0).sum())
    found.views += int(has.all(0).sum())
    found.compared += int((has.sum(0) > 1).sum())
    if len({row["split"] for _, row in group}) > 1:
        found.other_splits.append(names[0])
    found.differences += _first_difference(opened, parts, crc32)
    flat = has.reshape(len(opened), -1).astype(np.int64)
    both: npt.NDArray[np.int64] = flat @ flat.T
    return both


def _first_difference(
    opened: Sequence[_Opened], parts: Sequence[_Part], crc32: npt.NDArray[np.int64]
) -> list[str]:
    """A line for the first view that two stores have otherwise, or none."""
    for i, j in itertools.combinations(range(len(opened)), 2):
        differ = (crc32[i] != crc32[j]) & (crc32[i] != NONE) & (crc32[j] != NONE)
        for seed, place in np.argwhere(differ)[:1].tolist():
            part = next(part for part in parts if part.store == i and place in part.at)
            row = int(np.flatnonzero(part.at == place)[0])
            x_px0, y_px0 = part.patches.coords[row].tolist()
            view = view_name(part.row["slide_id"], row, x_px0, y_px0, seed)
            of_i, of_j = int(crc32[i, seed, place]), int(crc32[j, seed, place])
            said = two_checksums(view, opened[i].files, of_i, opened[j].files, of_j)
            return [f"{said} ({int(differ.sum())} of this slide differ)"]
    return []


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(one_line(name) for name in names[:3]) + more
