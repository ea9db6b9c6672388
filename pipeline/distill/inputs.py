"""What a run trains on: the store's views, where their pixels come from, held-out views, the targets' statistics."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.data.loader import Batch, load_views
from pipeline.data.sources import find_sources
from pipeline.data.statistics import statistics
from pipeline.distill import loss_spec
from pipeline.distill.model import Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes import files as prototype_files
from pipeline.distill.prototypes.files import Space
from pipeline.runtime.progress import Reporter
from pipeline.slides.sources import Source
from pipeline.views.draw import RENDERING
from pipeline.views.policy import Policy
from stores import sampler
from stores.errors import StoreError, ViewMismatch
from stores.format import recipe
from stores.format.layout import read_options
from stores.format.recipe import Teacher
from stores.io.location import StoreLike

CHECKED_BEFORE = 64


@dataclass(frozen=True, slots=True)
class Data:
    """Everything of the store that a run needs."""

    store: StoreLike
    recipe: recipe.Recipe
    policy: Policy
    train: list[sampler.Segment]
    held_out: Batch | None
    sources: Mapping[str, Source]
    teaching: Teaching
    teacher_licence: str

    @property
    def teacher(self) -> Teacher:
        assert self.recipe.teacher is not None  # open_data lets complete recipes pass only
        return self.recipe.teacher


def open_data(store: StoreLike, options: DistillOptions, threads: int, report: Reporter) -> Data:
    """Find the views of a store and prove on a sample that they can be rebuilt.

    Raises
    ------
    StoreError
        When the store is incomplete for this run: no features, no training views, a needed seed missing.
    ViewMismatch
        When a rebuilt view is not the one that the teacher saw.
    """
    stored = recipe.load(store)
    if stored.policy is None or stored.reader is None or stored.teacher is None:
        raise StoreError(f"{store}: has no teacher features yet; run `g2l extract-teacher` first")
    if stored.reader.rendering != RENDERING:
        raise ViewMismatch(
            f"{store}: views were rendered by {stored.reader.rendering}, this version renders {RENDERING}; "
            "use the version that made the store, or extract again"
        )
    policy = Policy.from_json(stored.policy)
    tokens, spaces = _wanted(store, stored, options)
    train = sampler.find_units(store, "train", options.seeds)
    if not train:
        raise StoreError(f"{store}: no committed views in the training split; see `g2l store info {store}`")
    val = sampler.find_units(store, "val", 1)
    sources = find_sources(store, stored, {unit.commit.slide_id for unit in [*train, *val]}, options.slides)
    if options.check_views != "none":
        for seed in train[0].seeds:
            load_views(
                store, train, sources, policy, seed, max(1, CHECKED_BEFORE // len(train[0].seeds)), threads
            )
    held_out = load_views(store, val, sources, policy, 0, options.val_views, threads, tokens) if val else None
    if held_out is None or len(held_out.views) < 2:
        held_out = None
        report.note(
            "no held-out views (the split val is empty), hence no validation; "
            "tile with a larger --val, or give the splits in --slides-csv"
        )
    mean, variance = statistics(store, train)
    licence = read_options(store, "extract-teacher").get("teacher_licence", "")
    teaching = Teaching(stored.teacher.dim, mean, variance, tokens, spaces)
    return Data(store, stored, policy, train, held_out, sources, teaching, str(licence))


def _wanted(
    store: StoreLike, stored: recipe.Recipe, options: DistillOptions
) -> tuple[recipe.Tokens | None, dict[str, Space]]:
    """The tokens and prototypes that the loss uses."""
    loss = loss_spec.parse(options.loss)
    of_tokens = next((term for term in loss if term in loss_spec.TOKEN_TERMS), None)
    if of_tokens is not None and stored.tokens is None:
        raise StoreError(
            f"--loss {options.loss}: {of_tokens} needs patch tokens, and {store} has none; run extract-teacher "
            "--tokens N into another store"
        )
    tokens = stored.tokens if of_tokens is not None else None
    wanted: dict[str, int] = {}
    if "dino" in loss and stored.teacher is not None:
        wanted["features"] = stored.teacher.dim
    if "ibot" in loss and tokens is not None:
        wanted["tokens"] = tokens.dim
    if not wanted:
        return tokens, {}
    assert options.prototypes is not None  # `validate` insists
    return tokens, prototype_files.load(options.prototypes, stored.digest(), wanted)
