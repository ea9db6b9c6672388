"""What a student would learn from, for a plan: the recipes of stores, or teachers that are only named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.distill import loss_spec
from pipeline.distill.inputs import asked_of, teachings_of
from pipeline.distill.model import Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.weighted import WeightedStore, losses_of
from pipeline.encoders.attention import ATTENTION_RULE, require_attention
from pipeline.encoders.encoder import Encoder, token_grid
from pipeline.encoders.load import without_memory
from pipeline.encoders.presets import PRESETS
from pipeline.runtime.options import require
from pipeline.views.draw import TOKEN_RULE
from pipeline.views.policy import Policy
from stores.errors import OptionError
from stores.format.recipe import Attention, Tokens
from stores.io.location import names_of
from stores.io.text import counted


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a student learns from."""

    teachings: Sequence[Teaching]
    crop_px: int = 0
    """Side of the views; 0 where it is not known: the student's own then, or the usual one with ``--student-px``."""

    def __str__(self) -> str:
        dims = [teaching.dim for teaching in self.teachings]
        words = f"{dims[0]} numbers of the teacher"
        if len(dims) > 1:
            words = f"{' + '.join(map(str, dims))} numbers of {len(dims)} teachers"
        tokens = [teaching.tokens.count for teaching in self.teachings if teaching.tokens is not None]
        return words + (f", {counted(max(tokens), 'patch token')}" if tokens else "")


@dataclass(frozen=True, slots=True)
class Named:
    """A teacher that is only named."""

    teacher: str
    dim: int | None = None
    """Length of its features; None where its name tells."""
    tokens: int | None = None
    """Patch tokens of a view that are kept."""
    attention: bool = False


def of_stores(stores: Sequence[WeightedStore], options: DistillOptions) -> Lessons:
    """The teachers of stores; reads recipes and prototypes alone. Errors as in `pipeline.distill.inputs.open_data`."""
    asked = asked_of(stores, options)
    return Lessons(teachings_of(stores, asked), Policy.from_json(asked[0].recipe.policy).crop_px)


def of_teachers(teachers: Sequence[Named], options: DistillOptions) -> Lessons:
    """Teachers by name.

    Raises
    ------
    OptionError
        When a length or a grid is not known without loading the teacher, or the loss needs what is not given, or does
        not use what is given.
    """
    if options.prototypes is not None:
        raise OptionError(f"--prototypes {options.prototypes}: are those of a store; give it with --store")
    names = names_of([one.teacher for one in teachers])
    losses = losses_of([WeightedStore(None, 1.0, name) for name in names], options)
    return Lessons(
        [
            _teaching(one, name, loss, options, len(teachers) > 1)
            for one, name, loss in zip(teachers, names, losses, strict=True)
        ]
    )


def _teaching(
    named: Named, name: str, loss: Mapping[str, float], options: DistillOptions, several: bool
) -> Teaching:
    dim = named.dim
    if dim is None and named.teacher not in PRESETS:
        raise OptionError(f"--teacher {named.teacher}: its feature length is not known; give --dim")
    dim = dim or PRESETS[named.teacher].dim
    of_tokens = next((term for term in loss if term in loss_spec.TOKEN_TERMS), None)
    tokens = attention = None
    if named.tokens is not None:
        if of_tokens is None:
            raise OptionError(
                f"--tokens {named.tokens}: --loss {options.loss} uses none; add token-cosine to it"
            )
        grid, width = token_grid(_layers(named.teacher, "--tokens"))
        require(
            named.tokens <= grid**2, "tokens", named.tokens, f"1 to {grid**2}, the patches of {named.teacher}"
        )
        tokens = Tokens(named.tokens, grid, width, TOKEN_RULE)
    elif of_tokens is not None:
        raise OptionError(
            f"--loss {options.loss}: {of_tokens} needs patch tokens; give --tokens N, or the --store"
        )
    if named.attention:
        if "attention" not in loss:
            raise OptionError(f"--attention: --loss {options.loss} does not use it; add attention to it")
        teacher = _layers(named.teacher, "--attention")
        require_attention(teacher)
        attention = Attention(token_grid(teacher)[0], ATTENTION_RULE)
    elif "attention" in loss:
        raise OptionError(
            f"--loss {options.loss}: attention needs that of the teacher; give --attention, or the --store"
        )
    return Teaching(
        dim,
        np.zeros(dim),
        np.ones(dim),
        tokens,
        attention=attention,
        name=name,
        loss=loss if several else None,
    )


def _layers(teacher: str, flag: str) -> Encoder:
    encoder = without_memory(teacher)
    if encoder is None:
        raise OptionError(
            f"{flag}: the patches of {teacher} are not known without loading it; give a name of `g2l models` or of "
            "timm as --teacher, or the --store"
        )
    return encoder
