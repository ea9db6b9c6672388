"""Tiles of one place: which views of a training show the same tissue, scanned or stained again.

The order of views is that of the sampler, with pairs and without. Beside each view that has a pair comes a view of
another tile of its place, under the seed of the same number. Which one, where there are several, follows from epoch and
seed alone, so that batches are the same whatever the number of processes, workers and windows.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stores import sampler
from stores.errors import StoreError
from stores.format import features, layout, manifest
from stores.format.committed import usable_slides
from stores.format.tiles import PAIR, PATIENT
from stores.io.location import StoreLike

_Key = tuple[Path, str]
"""A slide of a store: the folder of the store's tables, and the slide's id."""
_Place = tuple[str, str, int, int]
"""Patient, pair, and where the patch is in its tile."""


class Beside(NamedTuple):
    """What comes beside the views of a window; (n,) each but for the first."""

    shares: list[sampler.Share]
    """The views of the other tiles. That of the view at a place stands at this place plus the views of the window."""
    has: npt.NDArray[np.bool_]
    """Whether a view has one."""
    place: npt.NDArray[np.int32]
    """Number of the place that a view shows; -1 where no other tile shows it."""


@dataclass(frozen=True, slots=True)
class _Slide:
    """The patches of a slide, and their committed views in a split."""

    place: npt.NDArray[np.int32]
    """(n,) number of the place of each patch; -1 for none."""
    has: npt.NDArray[np.bool_]
    """(n_seeds, n) whether the split has the view."""
    commits: dict[tuple[int, int], manifest.Commit]
    """By block and seed."""

    def commit(self, row: int, seed: int) -> manifest.Commit:
        """The record of a view."""
        return self.commits[row // features.block_rows(len(self.place)), seed]


class Pairs:
    """The places of a split that several of its tiles show.

    Parameters
    ----------
    slides
        In the order of their first units, which follows from their content.
    """

    def __init__(self, slides: dict[_Key, _Slide]) -> None:
        self._slides = slides
        self._members: dict[int, list[tuple[_Slide, int]]] = {}
        for slide in slides.values():
            for row in np.flatnonzero(slide.place >= 0).tolist():
                self._members.setdefault(int(slide.place[row]), []).append((slide, row))

    def __len__(self) -> int:
        """How many places there are."""
        return len(self._members)

    @property
    def n_patches(self) -> int:
        """How many patches show them."""
        return sum(len(members) for members in self._members.values())

    def beside(self, plan: sampler.Window) -> Beside:
        """What comes beside the views of a window, or of a part of it."""
        has, place = np.zeros(plan.n_views, bool), np.full(plan.n_views, -1, np.int32)
        shares: list[sampler.Share] = []
        for share in plan.shares:
            slide = self._slides.get(_key(share.segment.commit))
            if slide is None:
                continue
            place[share.places] = slide.place[share.rows]
            found: dict[Path, tuple[manifest.Commit, list[tuple[int, int, int]]]] = {}
            for row, seed, at in zip(
                share.rows.tolist(), share.seeds.tolist(), share.places.tolist(), strict=True
            ):
                other = self.other(share.segment.commit, row, seed, plan.epoch)
                if other is not None:
                    commit, its_row = other
                    listed = found.setdefault(commit.path, (commit, []))[1]
                    listed.append((its_row, seed, plan.n_views + at))
                    has[at] = True
            shares += [_share(*one) for one in found.values()]
        return Beside(shares, has, place)

    def other(
        self, commit: manifest.Commit, row: int, seed: int, epoch: int
    ) -> tuple[manifest.Commit, int] | None:
        """Record and row of the view beside one, of the same seed; None where there is none.

        Of several tiles of a place, each has another one beside it, and over epochs each of the others in turn.
        """
        mine = self._slides.get(_key(commit))
        number = -1 if mine is None else int(mine.place[row])
        if mine is None or number < 0:
            return None
        members = [
            one for one in self._members[number] if seed < len(one[0].has) and one[0].has[seed, one[1]]
        ]
        if len(members) < 2:
            return None
        at = next(i for i, (slide, its_row) in enumerate(members) if slide is mine and its_row == row)
        step = 1 + (epoch + seed) % (len(members) - 1)
        slide, its_row = members[(at + step) % len(members)]
        return slide.commit(its_row, seed), its_row

    def place(self, commit: manifest.Commit, row: int) -> int:
        """Number of the place that a patch shows; -1 where no other tile shows it."""
        slide = self._slides.get(_key(commit))
        return -1 if slide is None else int(slide.place[row])


def _key(commit: manifest.Commit) -> _Key:
    return commit.root, commit.slide_id


def _share(commit: manifest.Commit, listed: list[tuple[int, int, int]]) -> sampler.Share:
    rows, seeds, places = (np.array(part) for part in zip(*sorted(listed), strict=True))
    segment = sampler.Segment(commit, tuple(np.unique(seeds).tolist()), np.unique(rows).astype(np.int32))
    return sampler.Share(segment, rows.astype(np.int32), seeds, places)


def find_pairs(stores: Sequence[StoreLike], units: Sequence[sampler.Segment]) -> Pairs:
    """The places that several tiles of some units show. Tiles without a pair, or alone in theirs, are in none.

    Raises
    ------
    StoreError
        When a pair is in two splits.
    """
    own: dict[_Key, list[sampler.Segment]] = {}
    for unit in units:
        own.setdefault(_key(unit.commit), []).append(unit)
    places = _read(stores, own)
    views = {key: _views_of(own[key], len(found)) for key, found in places.items()}
    counts: Counter[_Place] = Counter()
    for key, found in places.items():
        there = np.asarray(views[key][0].any(axis=0))
        found[:] = [place if there[row] else None for row, place in enumerate(found)]
        counts.update(place for place in found if place is not None)
    numbers: dict[_Place, int] = {}
    slides: dict[_Key, _Slide] = {}
    for key in (key for key in own if key in places):
        number = np.full(len(places[key]), -1, np.int32)
        for row, place in enumerate(places[key]):
            if place is not None and counts[place] > 1:
                number[row] = numbers.setdefault(place, len(numbers))
        if (number >= 0).any():
            slides[key] = _Slide(number, *views[key])
    return Pairs(slides)


def _views_of(
    units: Sequence[sampler.Segment], n_patches: int
) -> tuple[npt.NDArray[np.bool_], dict[tuple[int, int], manifest.Commit]]:
    """Which views of a slide its units have, and the records that they are in."""
    has = np.zeros((1 + max(max(unit.seeds) for unit in units), n_patches), bool)
    commits: dict[tuple[int, int], manifest.Commit] = {}
    for unit in units:
        has[np.array(unit.seeds)[:, None], unit.rows[None]] = True
        commits |= {(unit.commit.block, seed): unit.commit for seed in unit.seeds}
    return has, commits


def _read(stores: Sequence[StoreLike], wanted: Container[_Key]) -> dict[_Key, list[_Place | None]]:
    """The place of each patch of the slides that have pairs, of those that are wanted."""
    found: dict[_Key, list[_Place | None]] = {}
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for store in stores:
        root = (store / layout.RECIPE).parent
        for slide_id, row in usable_slides(store, None).items():
            places = list(_places_of(store, row))
            for place in dict.fromkeys(place[:2] for place in places if place is not None):
                split, other = seen.setdefault(place, (row["split"], slide_id))
                if split != row["split"]:
                    raise StoreError(
                        f"{store}: pair {place[1]} is in split {split} (group {other}) and in split {row['split']} "
                        f"(group {slide_id}): a training would see what it is validated on; tile again with one "
                        "split for all tiles of a pair, or leave a group out with `g2l store subset`"
                    )
            if (root, slide_id) in wanted and any(place is not None for place in places):
                found[root, slide_id] = places
    return found


def _places_of(store: StoreLike, row: Mapping[str, Any]) -> Iterator[_Place | None]:
    """The place of each patch of a slide."""
    slide_id = row["slide_id"]
    patches = manifest.read_patches(store, slide_id, row["n_patches"])
    if PAIR not in patches.further:
        return
    names = [PAIR, *([PATIENT] if PATIENT in patches.further else [])]
    table = manifest.read_further(store, slide_id, names)
    pairs = table[PAIR].to_pylist()
    patients = table[PATIENT].to_pylist() if len(names) > 1 else [None] * len(pairs)
    for pair, patient, x, y in zip(pairs, patients, patches.x_px0, patches.y_px0, strict=True):
        yield (patient or "", pair, int(x), int(y)) if pair else None
