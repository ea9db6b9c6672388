"""What a run trains on: the store's views, where their pixels come from, held-out views, the targets' statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.loader import Batch, load_views
from pipeline.distill import loss_spec
from pipeline.distill.model import Teaching
from pipeline.distill.prototypes import files as prototype_files
from pipeline.distill.prototypes.files import Space
from pipeline.runtime.options import DistillOptions
from pipeline.runtime.progress import Reporter
from pipeline.slides import slide as slide_files
from pipeline.slides.pool import SlideSource, Source, StoreSource
from pipeline.views.draw import RENDERING, Policy
from stores import sampler
from stores.errors import OptionError, SlideError, StoreError, ViewMismatch
from stores.export import pseudonyms
from stores.format import features, manifest, pixels, recipe
from stores.format.recipe import Teacher
from stores.io import files
from stores.io.location import StoreLike

CHECKED_BEFORE = 64


@dataclass(frozen=True, slots=True)
class Data:
    """Everything of the store that a run needs."""

    store: StoreLike
    recipe: recipe.Recipe
    policy: Policy
    train: list[sampler.Run]
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
    licence = files.read_options(store, "extract-teacher").get("teacher_licence", "")
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


def find_sources(
    store: StoreLike, stored: recipe.Recipe, slide_ids: set[str], given: Sequence[Path]
) -> dict[str, Source]:
    """Where the patches of each slide come from: the store's pixels, otherwise the slide file.

    Raises
    ------
    OptionError
        When a slide is in neither.
    SlideError
        When a slide file is not the one that the teacher saw.
    """
    paths = slide_files.find_slides(given) if given else {}
    rows: dict[str, dict[str, Any]] = {row["slide_id"]: row for row in manifest.read_slides(store)}
    sources: dict[str, Source] = {}
    for slide_id in sorted(slide_ids):
        if pixels.has_pixels(store, slide_id):
            sources[slide_id] = StoreSource(slide_id, store)
            continue
        if slide_id in rows and pseudonyms.is_keyed(rows[slide_id]["fingerprint"]):
            raise OptionError(
                f"slide {slide_id}: under a pseudonym, so that no slide file can be matched to it, and without pixels; "
                "ask for an export with pixels"
            )
        if slide_id not in paths:
            where = f"not found in {', '.join(map(str, given))}" if given else "give the slides with --slides"
            raise OptionError(f"slide {slide_id}: the store keeps no pixels of it; {where}")
        row = rows[slide_id]
        info = slide_files.inspect(slide_id, paths[slide_id], row["mpp"], row["mpp_source"])
        if info.fingerprint != row["fingerprint"]:
            raise SlideError(f"{paths[slide_id]}: not the file that the teacher saw (fingerprint differs)")
        plan = slide_files.plan_read(info, stored.patch.mpp, stored.patch.size_px)
        sources[slide_id] = SlideSource(slide_id, info.path, plan)
    return sources


def statistics(
    store: StoreLike, units: Sequence[sampler.Run]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per-dimension mean and variance of the targets of `units`, (dim,) each, from the store's block statistics."""
    running = features.RunningStats()
    by_slide: dict[str, npt.NDArray[np.float64]] = {}
    for unit in units:
        slide_id, block = unit.commit.slide_id, unit.commit.block
        if slide_id not in by_slide:
            by_slide = {slide_id: features.read_stats(store, slide_id)}  # units of a slide follow each other
        for seed in unit.seeds:
            mean, variance = by_slide[slide_id][seed, block]
            running.add(len(unit.rows), mean, variance)
    if not np.isfinite(running.mean).all():
        raise StoreError(f"{store}: the statistics beside the features are incomplete; extract again")
    return running.mean, running.variance
