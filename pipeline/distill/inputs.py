"""What a run trains on: the views of the store, held-out views, the statistics of the targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.data.join import JoinedSplit, Member, open_joined
from pipeline.data.loader import SAMPLE_BLOCKS, Batch
from pipeline.data.pairs import find_pairs
from pipeline.data.split import Split, files_and_recipe, open_splits
from pipeline.distill import loss_spec
from pipeline.distill.model import Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes import files as prototype_files
from pipeline.distill.prototypes.files import Space
from pipeline.distill.weighted import WeightedStore, losses_of, prototypes_of
from pipeline.runtime.progress import Reporter
from stores.errors import StoreError
from stores.format.qc import parse_limits
from stores.format.recipe import Attention, CompleteRecipe, Tokens
from stores.format.splits import REMEDY
from stores.format.terms import Terms, of_store, union
from stores.io.location import StoreLike
from stores.io.text import counted
from stores.store import Store

Statistics = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Mean and variance of targets, (dim,) each."""


class Taught(Protocol):
    """What a student is built for."""

    @property
    def crop_px(self) -> int:
        """Side of the views."""

    @property
    def teachings(self) -> Sequence[Teaching]:
        """One for each teacher."""


@dataclass(frozen=True, slots=True)
class Data:
    """Everything of the stores that a run needs."""

    train: Split
    held_out: Batch | None
    """None when the stores have fewer than two held-out views."""
    fit: Batch | None
    """Views of the training split, from which a validation fits a linear map; None without `held_out`."""
    teachings: tuple[Teaching, ...]
    """One for each store."""
    teacher_terms: tuple[Terms, ...]
    """Those of all teachers."""
    recipes: tuple[CompleteRecipe, ...] = ()
    """One for each store."""

    @property
    def crop_px(self) -> int:
        """Side of the views."""
        return self.train.policy.crop_px

    @property
    def view_bytes(self) -> int:
        """Bytes that a view takes in memory, with what is beside it and what the stores keep of it."""
        pixels = (1 if self.train.pairs is None else 2) * 3 * self.crop_px**2
        return pixels + sum(_target_bytes(teaching) for teaching in self.teachings)

    @property
    def teaching(self) -> Teaching:
        """That of the first store."""
        return self.teachings[0]

    @property
    def stores(self) -> list[dict[str, Any]]:
        """What a run records of its stores, where it has several: a resumed run has the same."""
        if not isinstance(self.train, JoinedSplit):
            return []
        return [
            {"name": t.name, "recipe": recipe.digest(), "weight": t.weight}
            for t, recipe in zip(self.teachings, self.recipes, strict=True)
        ]


def open_data(
    store: Store | StoreLike | Sequence[WeightedStore],
    options: DistillOptions,
    threads: int,
    report: Reporter,
    blocks: int | None = SAMPLE_BLOCKS,
) -> Data:
    """Find the views of a store, or of several, and prove on a sample that they can be rebuilt. Needs no encoder.

    The cheap checks come first, so that an unsuitable store is refused before any pixel is read.

    Parameters
    ----------
    blocks
        That the views of a validation come from, see `pipeline.data.loader.load_views`.

    Raises
    ------
    StoreError
        When a store is incomplete for this run: no features, no training views, a needed seed missing.
    OptionError
        When the pixels of a slide are missing, the prototypes are not of this store, or options do not fit the stores.
    ViewMismatch
        When a rebuilt view is not the one that the teacher saw, or stores differ in a view.
    """
    given = store if isinstance(store, Sequence) else [WeightedStore(store)]
    asked = asked_of(given, options)
    opened = [(one.files, one.recipe) for one in asked]
    seeds = {"train": options.seeds, "val": 1}
    limits = parse_limits(options.qc_max, options.qc_min)
    train: Split
    val: Split
    if len(given) == 1:
        ((files, recipe),) = opened
        train, val = open_splits(files, recipe, seeds, options.slides, ("val",), report, limits)
        members: Sequence[Split] = [train]
    else:
        listed = [Member(one.files, one.recipe, one.tokens, one.attention) for one in asked]
        train, val = open_joined(listed, seeds, options.join, options.slides, ("val",), report, limits)
        members = train.members
        for number, one in enumerate(given):
            report.note(
                f"store {one.name}: a target for {train.views_of(number):,} of {train.n_views:,} views"
            )
    if any(loss_spec.PAIR in one.loss for one in asked):
        train, val = _with_pairs([files for files, _ in opened], train, val, options.loss, report)
    statistics = [
        _statistics(member, recipe, options) for member, (_, recipe) in zip(members, opened, strict=True)
    ]
    terms = union(*(of_store(files, recipe.teacher.name) for files, recipe in opened))
    if options.check_views != "none":
        train.check(threads)
    first = asked[0]
    held_out = None
    if val.n_views > 1:
        held_out = val.sample(0, options.val_views, threads, first.tokens, first.attention, blocks)
    if held_out is not None and held_out.present is not None and held_out.present.sum(axis=0).max() < 2:
        held_out = None
    fit = None
    if held_out is not None:
        fit = replace(train, pairs=None).sample(0, options.val_views, threads, blocks=blocks)
    else:
        report.note(f"no validation: the split val has fewer than two views; {REMEDY}")
    teachings = teachings_of(given, asked, statistics)
    return Data(train, held_out, fit, teachings, terms, tuple(one.recipe for one in asked))


def _target_bytes(teaching: Teaching) -> int:
    tokens, looked = teaching.tokens, teaching.attention
    of_tokens = 0 if tokens is None else tokens.count * (2 * tokens.dim + 4)
    return 2 * teaching.dim + of_tokens + (0 if looked is None else 2 * looked.grid**2)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the loss takes of a store."""

    files: StoreLike
    recipe: CompleteRecipe
    loss: Mapping[str, float]
    tokens: Tokens | None
    spaces: Mapping[str, Space]
    attention: Attention | None


def asked_of(given: Sequence[WeightedStore], options: DistillOptions) -> list[Asked]:
    """What the loss takes of each store; reads recipes and prototypes alone. Errors as in `open_data`."""
    losses = losses_of(given, options)
    opened = [files_and_recipe(one.store) for one in given]
    prototypes = prototypes_of(given, losses, options.prototypes)
    return [
        Asked(
            files,
            recipe,
            loss,
            *_wanted(files, recipe, options, loss, folder),
            _wanted_attention(files, recipe, options, loss),
        )
        for (files, recipe), loss, folder in zip(opened, losses, prototypes, strict=True)
    ]


def teachings_of(
    given: Sequence[WeightedStore], asked: Sequence[Asked], statistics: Sequence[Statistics] | None = None
) -> tuple[Teaching, ...]:
    """Facts about each teacher.

    Parameters
    ----------
    statistics
        Mean and variance of the targets of each; without them the teachers are for a plan alone.
    """
    known = statistics or [
        (np.zeros(one.recipe.teacher.dim), np.ones(one.recipe.teacher.dim)) for one in asked
    ]
    return tuple(
        Teaching(
            of.recipe.teacher.dim,
            mean,
            variance,
            of.tokens,
            of.spaces,
            of.attention,
            one.name,
            one.weight,
            of.loss if len(given) > 1 else None,
        )
        for one, of, (mean, variance) in zip(given, asked, known, strict=True)
    )


def _statistics(
    member: Split, recipe: CompleteRecipe, options: DistillOptions
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and variance of the targets, (dim,) each.

    They are 0 and 1 where ``--teacher-norm`` asks for none: each block has a file of its own with them.
    """
    if options.teacher_norm == "batch":
        return np.zeros(recipe.teacher.dim), np.ones(recipe.teacher.dim)
    return member.statistics()


def _with_pairs(
    stores: Sequence[StoreLike], train: Split, val: Split, loss: str, report: Reporter
) -> tuple[Split, Split]:
    """The splits with the places that several tiles show; StoreError when the training views have none."""
    found = [find_pairs(stores, split.units) for split in (train, val)]
    if not len(found[0]):
        raise StoreError(
            f"--loss {loss}: pair needs tiles of one place, and no two training tiles of "
            f"{', '.join(map(str, stores))} are a pair; give the list of tiles a column pair with one value for all "
            "tiles of a place, and tile it into another store"
        )
    pairs, held_out = found
    total = sum(len(unit.rows) for unit in train.units if 0 in unit.seeds)
    report.note(
        f"pairs: {pairs.n_patches:,} of {total:,} training patches show {counted(len(pairs), 'place')} that others "
        f"show too; held out {held_out.n_patches:,}"
    )
    return replace(train, pairs=pairs), replace(val, pairs=held_out)


def _wanted_attention(
    store: StoreLike, recipe: CompleteRecipe, options: DistillOptions, loss: Mapping[str, float]
) -> Attention | None:
    """The attention that the loss uses."""
    if "attention" not in loss:
        return None
    if recipe.attention is None:
        raise StoreError(
            f"--loss {options.loss}: attention needs the teacher's attention, and {store} has none; run "
            "extract-teacher --attention into another store"
        )
    return recipe.attention


def _wanted(
    store: StoreLike,
    recipe: CompleteRecipe,
    options: DistillOptions,
    loss: Mapping[str, float],
    prototypes: Path | None,
) -> tuple[Tokens | None, dict[str, Space]]:
    """The tokens and prototypes that the loss uses."""
    of_tokens = next((term for term in loss if term in loss_spec.TOKEN_TERMS), None)
    if of_tokens is not None and recipe.tokens is None:
        raise StoreError(
            f"--loss {options.loss}: {of_tokens} needs patch tokens, and {store} has none; run extract-teacher "
            "--tokens N into another store"
        )
    tokens = recipe.tokens if of_tokens is not None else None
    wanted: dict[str, int] = {}
    if "dino" in loss:
        wanted["features"] = recipe.teacher.dim
    if "ibot" in loss and tokens is not None:
        wanted["tokens"] = tokens.dim
    if not wanted or prototypes is None:  # `DistillOptions.validate` requires them
        return tokens, {}
    return tokens, prototype_files.load(prototypes, recipe.digest(), wanted)
