"""The committed views of one split of a store: which there are, where their pixels come from, and batches of them.

Training, `pipeline.data.dataset.ViewDataset` and whatever else reads views as the teacher saw them begin here.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data import statistics
from pipeline.data.balance import group_units
from pipeline.data.loader import SAMPLE_BLOCKS, Batch, LoaderOptions, ViewLoader, load_views, slide_numbers
from pipeline.data.pairs import Pairs
from pipeline.data.quality import within_limits
from pipeline.data.sources import find_sources
from pipeline.slides.sources import Source, StoreSource
from pipeline.views.draw import RENDERING
from pipeline.views.policy import Policy
from stores import sampler
from stores.errors import OptionError, StoreError, ViewMismatch
from stores.format.features import require_slide
from stores.format.manifest import read_patches
from stores.format.qc import Limit
from stores.format.recipe import Attention, CompleteRecipe, Tokens, load_complete, require_possible
from stores.io.location import StoreLike
from stores.io.progress import SILENT, Reporter
from stores.store import Store

CHECKED_BEFORE = 64


@dataclass(frozen=True, slots=True)
class Split:
    """The committed views of one split under a few seeds. Made by `open_split`."""

    store: StoreLike
    recipe: CompleteRecipe
    policy: Policy
    units: list[sampler.Segment]
    """In the order of `stores.sampler.find_units`."""
    sources: Mapping[str, Source]
    """Where the pixels of each slide come from, by slide id."""
    pairs: Pairs | None = field(default=None, kw_only=True)
    """Places that several tiles show; a view of another tile then comes beside each. None leaves that out."""

    @property
    def n_views(self) -> int:
        """Views of one epoch."""
        return sum(unit.n_views for unit in self.units)

    @property
    def n_slides(self) -> int:
        """Slides that have views of it."""
        return len(slide_numbers(self.units))

    def readers_are_processes(self, readers: str, beside_gpu: bool) -> bool:
        """Whether processes read the pixels; `readers` is ``threads``, ``processes`` or ``auto``.

        Raises
        ------
        OptionError
            When processes are asked for and the pixels come over a network connection, which they cannot share.
        """
        remote = {
            str(source.store)
            for source in self._sources()
            if isinstance(source, StoreSource) and not isinstance(source.store, Path)
        }
        if readers == "processes" and remote:
            raise OptionError(
                f"readers processes: the pixels of {min(remote)} come over a network connection, which processes "
                "cannot share; use threads, or copy the store"
            )
        return readers == "processes" or (readers == "auto" and beside_gpu and not remote)

    def _sources(self) -> Iterable[Source]:
        return self.sources.values()

    def loader(
        self,
        options: LoaderOptions,
        start: int = 0,
        tokens: Tokens | None = None,
        attention: Attention | None = None,
    ) -> ViewLoader:
        """The endless stream of batches, from position `start` on; a context manager."""
        groups = self.groups(options.balance)
        return ViewLoader(
            self.store,
            self.units,
            self.sources,
            self.policy,
            options,
            start,
            tokens,
            groups,
            attention,
            pairs=self.pairs,
        )

    def groups(self, balance: str) -> list[list[sampler.Segment]]:
        """The units by slide or patient, see `pipeline.data.balance`; empty for ``none``."""
        return list(group_units(self.store, self.units, balance).values())

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
            self.sources,
            self.policy,
            seed,
            n_views,
            threads,
            tokens,
            attention,
            pairs=self.pairs,
            blocks=blocks,
        )

    def check(self, threads: int) -> None:
        """Rebuild a few views under every seed; ViewMismatch when one is not the view that the teacher saw."""
        self._check(self.units[0].seeds if self.units else (), threads)

    def _check(self, seeds: Sequence[int], threads: int) -> None:
        for seed in seeds:
            self.sample(seed, max(1, CHECKED_BEFORE // len(seeds)), threads)

    def statistics(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and variance of the targets, (dim,) each."""
        return statistics.statistics(self.store, self.units)


def files_and_recipe(store: Store | StoreLike) -> tuple[StoreLike, CompleteRecipe]:
    """The files of a store, and its recipe; StoreError when it has no teacher features yet."""
    if isinstance(store, Store):
        return store.files, store.complete
    return store, load_complete(store)


def require_rendering(store: StoreLike, recipe: CompleteRecipe) -> None:
    """Raise ViewMismatch when another version rendered the views of a store."""
    if recipe.reader.rendering != RENDERING:
        raise ViewMismatch(
            f"{store}: views were rendered by {recipe.reader.rendering}, this version renders {RENDERING}; "
            "use the version that made the store, or extract again"
        )


def list_slides(store: StoreLike, recipe: CompleteRecipe) -> sampler.Listing:
    """What `find_views` reads whatever the split, of a store whose recipe is possible; errors as there."""
    require_possible(recipe, store)
    return sampler.list_slides(store, recipe.patch)


def find_views(
    store: StoreLike,
    recipe: CompleteRecipe,
    split: str,
    n_seeds: int | None,
    may_be_empty: bool = False,
    uneven: bool = False,
    limits: Sequence[Limit] = (),
    report: Reporter = SILENT,
    listing: sampler.Listing | None = None,
) -> list[sampler.Segment]:
    """The committed views of a split, as `stores.sampler.find_units`, with arrays that belong to them.

    Parameters
    ----------
    limits
        Views of patches beyond one of them, or that one cannot judge, are left out.
    listing
        What `list_slides` gave, where it was read already.

    Raises
    ------
    StoreError
        When there are none, unless `may_be_empty`.
    CorruptStore
        When the tables of the store contradict each other, or the arrays of a slide.
    OptionError
        When the store lacks the column of a limit, or the limits leave no view.
    """
    listing = listing or list_slides(store, recipe)
    units = sampler.find_units(store, split, n_seeds, recipe.patch, uneven, listing)
    if not units and not may_be_empty:
        raise StoreError(f"{store}: no committed views in the split {split!r}; see `g2l store info {store}`")
    n_seeds_of: dict[str, int] = {}
    for unit in units:
        # `stores.format.committed.Promises` checks the slide when it is used
        if unit.commit.claim is not None:
            continue
        slide_id = unit.commit.slide_id
        n_seeds_of[slide_id] = max(n_seeds_of.get(slide_id, 0), unit.commit.seeds.stop)
    for slide_id, seeds in n_seeds_of.items():
        require_slide(store, slide_id, read_patches(store, slide_id).coords, seeds, recipe.teacher.dim)
    return within_limits(store, units, limits, split, report)


def open_split(
    store: StoreLike,
    recipe: CompleteRecipe,
    split: str,
    n_seeds: int | None,
    slides: Sequence[Path] = (),
    may_be_empty: bool = False,
    report: Reporter = SILENT,
    limits: Sequence[Limit] = (),
) -> Split:
    """Find the views of a split and their pixels. Reads neither pixels nor features.

    Parameters
    ----------
    store, recipe
        See `files_and_recipe`.
    n_seeds : int, optional
        Seeds 0 to ``n_seeds - 1``; None takes every seed of the store.
    slides
        Slide files or folders, for slides whose pixels the store does not keep.
    may_be_empty : bool
        Whether a split without committed views is allowed.
    limits
        See `find_views`.

    Raises
    ------
    StoreError
        When the split has no committed views, or lacks one of the seeds.
    ViewMismatch
        When another version rendered the views.
    OptionError
        When the pixels of a slide are neither in the store nor among `slides`.
    CorruptStore
        When the store contradicts itself.
    """
    empty = (split,) if may_be_empty else ()
    (found,) = open_splits(store, recipe, {split: n_seeds}, slides, empty, report, limits)
    return found


def open_splits(
    store: StoreLike,
    recipe: CompleteRecipe,
    n_seeds: Mapping[str, int | None],
    slides: Sequence[Path] = (),
    may_be_empty: Collection[str] = (),
    report: Reporter = SILENT,
    limits: Sequence[Limit] = (),
) -> list[Split]:
    """`open_split` for several splits, whose pixels are looked for once.

    Parameters
    ----------
    n_seeds
        By split, in the order of the result.
    may_be_empty
        Splits that are allowed to have no committed views.
    """
    require_rendering(store, recipe)
    policy = Policy.from_json(recipe.policy)
    listing = list_slides(store, recipe)
    units = {
        split: find_views(
            store, recipe, split, seeds, split in may_be_empty, limits=limits, report=report, listing=listing
        )
        for split, seeds in n_seeds.items()
    }
    slide_ids = {split: {unit.commit.slide_id for unit in found} for split, found in units.items()}
    every = set().union(*slide_ids.values())
    sources = find_sources(store, recipe, every, slides, report) if every else {}
    return [
        Split(
            store,
            recipe,
            policy,
            found,
            {i: source for i, source in sources.items() if i in slide_ids[split]},
        )
        for split, found in units.items()
    ]
