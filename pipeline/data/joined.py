"""Views that several stores have: where each store keeps the targets of a view of another one.

A view is the same in two stores when they agree on (fingerprint, x_px0, y_px0, seed) and on its checksum. Slides and
rows may be in another order, under other ids, in blocks of another size. `pipeline.data.join` finds them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.data.committed import BlockCache, CommittedBlock, parts_of
from pipeline.slides.sources import Source
from pipeline.views.policy import Policy
from stores import sampler
from stores.format import features, layout, manifest, recipe
from stores.io.location import StoreLike


class Block(NamedTuple):
    """A block of a slide."""

    slide_id: str
    block: int


@dataclass(frozen=True, slots=True)
class Match:
    """The patches of a slide in another store."""

    slides: tuple[tuple[str, int], ...]
    """Slides of the other store that have some of them, and how many patches each has: several for a group of tiles."""
    slide: npt.NDArray[np.int32]
    """(n,) which of `slides` has the patch, -1 where none has."""
    rows: npt.NDArray[np.int32]
    """(n,) its row there."""
    has: npt.NDArray[np.bool_]
    """(n_seeds, n) whether the other store has the view."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Several stores of the same views, of one split."""

    stores: tuple[StoreLike, ...]
    recipes: tuple[recipe.CompleteRecipe, ...]
    tokens: tuple[recipe.Tokens | None, ...]
    """The tokens that the loss on each store uses."""
    attention: tuple[recipe.Attention | None, ...]
    """The attention that it uses."""
    matches: Mapping[tuple[int, str, int], Match]
    """By number of a store, one of its slides, and number of another store."""
    sources: tuple[Mapping[str, Source], ...]
    """Where the pixels of the slides come from that each store gives, by slide id."""
    homes: Mapping[Path, int]
    """Number of a store by the folder of its tables."""

    def home(self, commit: manifest.Commit) -> int:
        """Number of the store that a commit record is in."""
        return self.homes[commit.root]

    def source(self, commit: manifest.Commit) -> Source:
        """Where the pixels of a record's slide come from."""
        return self.sources[self.home(commit)][commit.slide_id]

    def has(self, segment: sampler.Segment, number: int) -> npt.NDArray[np.bool_]:
        """Which views of a segment a store has, (seeds, rows)."""
        return has_views(self.matches, self.home(segment.commit), segment, number)


def has_views(
    matches: Mapping[tuple[int, str, int], Match], home: int, segment: sampler.Segment, number: int
) -> npt.NDArray[np.bool_]:
    """Which views of a segment of the store `home` the store `number` has, (seeds, rows)."""
    match = matches.get((home, segment.commit.slide_id, number))
    if match is not None:
        return match.has[grid(segment)]
    return np.full((len(segment.seeds), len(segment.rows)), home == number)


def grid(segment: sampler.Segment) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The index of a segment's views in an array (seeds, rows of its slide)."""
    seeds, rows = np.asarray(segment.seeds, np.int64), segment.rows.astype(np.int64)
    return seeds[:, None], rows[None]


def root_of(store: StoreLike) -> Path:
    """The folder of a store's tables: that of their local copies where the store is remote."""
    return (store / layout.RECIPE).parent


class JoinedCache:
    """As `BlockCache`, of several stores: the views of each block, and what every store keeps of them."""

    def __init__(self, joined: Joined, policy: Policy | None = None) -> None:
        self._joined = joined
        self._caches = [
            BlockCache(store, tokens, policy, attention)
            for store, tokens, attention in zip(joined.stores, joined.tokens, joined.attention, strict=True)
        ]

    def commit(self, commit: manifest.Commit) -> CommittedBlock:
        """What is needed to rebuild the views of a block."""
        return self._caches[self._joined.home(commit)].commit(commit)

    def stored(
        self, commit: manifest.Commit, rows: npt.NDArray[np.int32], seed: int
    ) -> list[npt.NDArray[Any]]:
        """What each store in turn keeps of some rows; last, which store has which, (rows, K)."""
        found: list[npt.NDArray[Any]] = []
        has = np.zeros((len(rows), len(self._caches)), bool)
        for number in range(len(self._caches)):
            found += self._of_store(number, commit, rows, seed, has[:, number])
        return [*found, has]

    def _of_store(
        self,
        number: int,
        commit: manifest.Commit,
        rows: npt.NDArray[np.int32],
        seed: int,
        has: npt.NDArray[np.bool_],
    ) -> list[npt.NDArray[Any]]:
        """What a store keeps of some rows of a record, 0 where it has nothing; sets `has`."""
        home, cache = self._joined.home(commit), self._caches[number]
        if number == home:
            has[:] = True
            return cache.stored(commit, rows, seed)
        found = self._nothing(number, len(rows))
        match = self._joined.matches.get((home, commit.slide_id, number))
        if match is None:
            return found
        has[:] = match.has[seed, rows]
        at = np.flatnonzero(has)
        slides, theirs = match.slide[rows[at]], match.rows[rows[at]]
        for slide in np.unique(slides).tolist():
            slide_id, n_rows = match.slides[slide]
            blocks = theirs // features.block_rows(n_rows)
            for block in np.unique(blocks[slides == slide]).tolist():
                chosen = (slides == slide) & (blocks == block)
                values = cache.stored(Block(slide_id, block), theirs[chosen], seed)
                for array, part in zip(found, values, strict=True):
                    array[at[chosen]] = part
        return found

    def _nothing(self, number: int, n: int) -> list[npt.NDArray[Any]]:
        tokens, looked = self._joined.tokens[number], self._joined.attention[number]
        count, width = (0, 0) if tokens is None else (tokens.count, tokens.dim)
        return [
            np.zeros((n, self._joined.recipes[number].teacher.dim), np.float16),
            np.zeros((n, count, width), np.float16),
            np.zeros((n, count), np.int32),
            np.zeros((n, 0 if looked is None else looked.grid**2), np.float16),
        ]

    def parts(self, plan: sampler.Window) -> Iterator[tuple[npt.NDArray[np.int64], list[npt.NDArray[Any]]]]:
        """Places in a window, and what `stored` gives of the views at these places."""
        return parts_of(self, plan)


def restricted(segment: sampler.Segment, mask: npt.NDArray[np.bool_]) -> Sequence[sampler.Segment]:
    """The views of a segment that `mask`, (seeds, rows), keeps: a segment for each set of seeds that rows share."""
    if mask.all():
        return [segment]
    patterns, which = np.unique(mask, axis=1, return_inverse=True)
    return [
        sampler.Segment(
            segment.commit,
            tuple(seed for seed, kept in zip(segment.seeds, pattern, strict=True) if kept),
            segment.rows[which.reshape(-1) == number],
        )
        for number, pattern in enumerate(patterns.T)
        if pattern.any()
    ]
