"""Stores that show the same views to several teachers: what they share, what each lacks, and whether it is proven."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import CorruptStore, OptionError
from stores.format import layout, manifest, recipe, terms
from stores.format.committed import patches_problems, usable_slides
from stores.format.view_checksums import NONE, read_checksums, view_name
from stores.io.location import StoreLike, is_same
from stores.io.text import counted, one_line


@dataclass(slots=True)
class Member:
    """One store of a family, and what it lacks of all that the others have."""

    path: str
    teacher: str
    dim: int
    recipe_digest: str
    licence: str
    seeds: int
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
    rows: Mapping[str, Mapping[str, Any]]
    """Usable slides, by fingerprint: another store may name them otherwise."""
    seeds: int

    @classmethod
    def of(cls, store: StoreLike) -> "_Opened":
        stored = recipe.load_complete(store)
        for problem in recipe.problems(stored):
            raise CorruptStore(f"{store}/{layout.RECIPE}: {problem}")
        rows = {row["fingerprint"]: row for row in usable_slides(store, stored.patch).values()}
        return cls(
            store, stored, rows, max((commit.seeds.stop for commit in manifest.commits(store)), default=0)
        )

    def patches(self, fingerprint: str) -> manifest.Patches:
        row = self.rows[fingerprint]
        found = manifest.read_patches(self.files, row["slide_id"], row["n_patches"])
        for problem in patches_problems(found, row, self.stored.patch):
            raise CorruptStore(f"{self.files}/{layout.patches_file(row['slide_id'])}: {problem}")
        return found


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
            f"licence   {one_line(self.licence)}",
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

    Slides are the same when their fingerprints are, patches when their positions (and tiles) are.

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
                licence=terms.expression(own),
                seeds=each.seeds,
            )
            for each, own in zip(opened, of_each, strict=True)
        ],
        terms.expression(together),
        terms.to_json(together),
        seeds=min(each.seeds for each in opened),
    )
    found.differences += _recipe_differences(opened)
    n_both = np.zeros((len(opened), len(opened)), np.int64)
    for fingerprint in dict.fromkeys(itertools.chain.from_iterable(each.rows for each in opened)):
        n_both += _add_slide(found, opened, fingerprint)
    for i, j in itertools.combinations(range(len(opened)), 2):
        if not n_both[i, j]:
            found.differences.append(f"{opened[i].files} and {opened[j].files} have no view in common")
    return found


def _recipe_differences(opened: Sequence[_Opened]) -> Iterator[str]:
    first, *others = opened
    for each in opened:
        if each.stored.declared is not None:
            yield f"{each.files}: its features were imported, and no view was rendered"
    for other in others:
        for name, a, b in recipe.value_differences(_decides(first.stored), _decides(other.stored)):
            yield f"{name} is {b!r:.80} in {other.files} and {a!r:.80} in {first.files}"


def _decides(stored: recipe.CompleteRecipe) -> dict[str, Any]:
    """What has to be equal for views to be the same; a policy's name is not part of it."""
    policy = {name: value for name, value in stored.policy.items() if name != "name"}
    return {"patch": {"mpp": stored.patch.mpp, "size_px": stored.patch.size_px}, "policy": policy}


def _add_slide(found: Family, opened: Sequence[_Opened], fingerprint: str) -> npt.NDArray[np.int64]:
    """Add a slide to the figures; returns how many of its views each pair of stores has, (stores, stores)."""
    having = [i for i, each in enumerate(opened) if fingerprint in each.rows]
    slide_id = opened[having[0]].rows[fingerprint]["slide_id"]
    places: dict[tuple[Any, ...], int] = {}
    at: dict[int, npt.NDArray[np.int64]] = {}
    for i in having:
        patches = opened[i].patches(fingerprint)
        keys = zip(
            (patches.key(row, fingerprint) for row in range(len(patches))),
            patches.x_px0.tolist(),
            patches.y_px0.tolist(),
            strict=True,
        )
        at[i] = np.array([places.setdefault(key, len(places)) for key in keys], np.int64)
    crc32 = np.full((len(opened), max(each.seeds for each in opened), len(places)), NONE, np.int64)
    has_patch = np.zeros((len(opened), len(places)), bool)
    for i in having:
        each = opened[i]
        crc32[i, : each.seeds, at[i]] = read_checksums(
            each.files, each.rows[fingerprint], each.seeds, each.stored.patch
        ).T
        has_patch[i, at[i]] = True
    has = crc32 != NONE
    for i, member in enumerate(found.stores):
        member.slides += i in having
        member.patches += int(has_patch[i].sum())
        member.views += int(has[i].sum())
        member.lacks_slides += [] if i in having else [slide_id]
        member.lacks_patches += int((~has_patch[i]).sum())
        member.lacks_views += int((has.any(0) & ~has[i]).sum())
    found.slides += len(having) == len(opened)
    found.patches += int(has_patch.all(0).sum())
    found.views += int(has.all(0).sum())
    found.compared += int((has.sum(0) > 1).sum())
    if len({opened[i].rows[fingerprint]["split"] for i in having}) > 1:
        found.other_splits.append(slide_id)
    found.differences += _first_difference(opened, fingerprint, crc32, at)
    flat = has.reshape(len(opened), -1).astype(np.int64)
    both: npt.NDArray[np.int64] = flat @ flat.T
    return both


def _first_difference(
    opened: Sequence[_Opened],
    fingerprint: str,
    crc32: npt.NDArray[np.int64],
    at: Mapping[int, npt.NDArray[np.int64]],
) -> list[str]:
    """A line for the first view of a slide that two stores have otherwise, or none."""
    for i, j in itertools.combinations(at, 2):
        differ = (crc32[i] != crc32[j]) & (crc32[i] != NONE) & (crc32[j] != NONE)
        for seed, place in np.argwhere(differ)[:1]:
            row = int(np.flatnonzero(at[i] == place)[0])
            name = opened[i].rows[fingerprint]["slide_id"]
            view = view_name(name, opened[i].patches(fingerprint), row, int(seed))
            return [
                f"{view}: {opened[i].files} has crc32 {crc32[i, seed, place]:08x}, "
                f"{opened[j].files} has {crc32[j, seed, place]:08x} "
                f"({int(differ.sum())} of this slide differ)"
            ]
    return []


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(one_line(name) for name in names[:3]) + more
