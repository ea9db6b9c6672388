"""What a run trains on: the views of the store, held-out views, the statistics of the targets."""

from dataclasses import dataclass

from pipeline.data.loader import Batch
from pipeline.data.split import Split, files_and_recipe, open_splits
from pipeline.distill import loss_spec
from pipeline.distill.model import Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes import files as prototype_files
from pipeline.distill.prototypes.files import Space
from pipeline.runtime.progress import Reporter
from stores.errors import StoreError
from stores.format.recipe import Attention, CompleteRecipe, Tokens
from stores.format.splits import REMEDY
from stores.format.terms import Terms, of_store
from stores.io.location import StoreLike
from stores.store import Store


@dataclass(frozen=True, slots=True)
class Data:
    """Everything of the store that a run needs."""

    train: Split
    held_out: Batch | None
    """None when the store has fewer than two held-out views."""
    fit: Batch | None
    """Views of the training split, from which a validation fits a linear map; None without `held_out`."""
    teaching: Teaching
    teacher_terms: tuple[Terms, ...]


def open_data(store: Store | StoreLike, options: DistillOptions, threads: int, report: Reporter) -> Data:
    """Find the views of a store and prove on a sample that they can be rebuilt. Needs no encoder.

    The cheap checks come first, so that an unsuitable store is refused before any pixel is read.

    Raises
    ------
    StoreError
        When the store is incomplete for this run: no features, no training views, a needed seed missing.
    OptionError
        When the pixels of a slide are missing, or the prototypes are not of this store.
    ViewMismatch
        When a rebuilt view is not the one that the teacher saw.
    """
    files, recipe = files_and_recipe(store)
    tokens, spaces = _wanted(files, recipe, options)
    attention = _wanted_attention(files, recipe, options)
    seeds = {"train": options.seeds, "val": 1}
    train, val = open_splits(files, recipe, seeds, options.slides, ("val",), report)
    mean, variance = train.statistics()
    terms = of_store(files, recipe.teacher.name)
    if options.check_views != "none":
        train.check(threads)
    held_out = val.sample(0, options.val_views, threads, tokens, attention) if val.n_views > 1 else None
    fit = None if held_out is None else train.sample(0, options.val_views, threads)
    if held_out is None:
        report.note(f"no validation: the split val has fewer than two views; {REMEDY}")
    teaching = Teaching(recipe.teacher.dim, mean, variance, tokens, spaces, attention)
    return Data(train, held_out, fit, teaching, terms)


def _wanted_attention(store: StoreLike, recipe: CompleteRecipe, options: DistillOptions) -> Attention | None:
    """The attention that the loss uses."""
    if "attention" not in loss_spec.parse(options.loss):
        return None
    if recipe.attention is None:
        raise StoreError(
            f"--loss {options.loss}: attention needs the teacher's attention, and {store} has none; run "
            "extract-teacher --attention into another store"
        )
    return recipe.attention


def _wanted(
    store: StoreLike, recipe: CompleteRecipe, options: DistillOptions
) -> tuple[Tokens | None, dict[str, Space]]:
    """The tokens and prototypes that the loss uses."""
    loss = loss_spec.parse(options.loss)
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
    if not wanted or options.prototypes is None:  # `DistillOptions.validate` requires them
        return tokens, {}
    return tokens, prototype_files.load(options.prototypes, recipe.digest(), wanted)
