"""The stores of a training: their names, weights, and what the loss compares with each."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.distill import loss_spec
from pipeline.distill.options import DistillOptions
from stores.errors import OptionError
from stores.io.location import is_same, names_of

_WEIGHT = re.compile(r"(.+):([^:/\\]+)", re.DOTALL)
MOST = 16
"""Stores of a training."""


@dataclass(frozen=True, slots=True)
class WeightedStore:
    """One of the stores that a student learns from."""

    store: Any
    """An open store, its files, or where it is."""
    weight: float = 1.0
    name: str = ""
    """How options and figures call it, where there are several; see `named`."""


def parse_weight(text: str) -> tuple[str, float]:
    """Path or URL of a store, and its weight: what ``--store`` says.

    >>> parse_weight("stores/uni2:0.5"), parse_weight("s3://lab-c/virchow2"), parse_weight("http://host:9000")
    (('stores/uni2', 0.5), ('s3://lab-c/virchow2', 1.0), ('http://host:9000', 1.0))

    Raises
    ------
    OptionError
        When the weight is not a number above 0.
    """
    found = _WEIGHT.fullmatch(text)
    if found is None or "/" not in found[1].partition("://")[2] + "/" * ("://" not in text):
        return text, 1.0  # what follows the host of a URL is its port
    path, number = found.groups()
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0  # a name with a colon
    if not 0 < weight < math.inf:
        raise OptionError(f"--store {text}: the weight is {number}; allowed is a number above 0")
    return path, weight


def named(stores: Sequence[tuple[Any, float]]) -> list[WeightedStore]:
    """The stores with their names: the last part of the path or URL of each, or their places 1, 2, ...

    Places are the names where two stores have the same last part, or one has letters that the name of a figure cannot
    have.

    Raises
    ------
    OptionError
        When there is one store with a weight, one is given twice, or there are too many.
    """
    texts = [str(store).rstrip("/\\") for store, _ in stores]
    if len(stores) == 1 and stores[0][1] != 1:
        raise OptionError(
            f"--store {texts[0]}:{stores[0][1]:g}: one store has no weight; give several, or no weight (a path that "
            "ends in a colon and a number takes :1 behind it)"
        )
    if len(stores) > MOST:
        raise OptionError(f"--store: {len(stores)} stores; allowed are at most {MOST}")
    for number, text in enumerate(texts):
        if any(is_same(text, other) for other in texts[:number]):
            raise OptionError(f"--store {text}: given twice; give each store once, with one weight")
    names = names_of(texts)
    return [WeightedStore(store, weight, name) for (store, weight), name in zip(stores, names, strict=True)]


def losses_of(stores: Sequence[WeightedStore], options: DistillOptions) -> list[dict[str, float]]:
    """Terms and weights for each store.

    Raises
    ------
    OptionError
        When ``--loss`` names a store that is not there or misses one, or options of several stores do not fit.
    """
    by_name = loss_spec.parse_several(options.loss)
    names = [store.name for store in stores]
    if len(stores) == 1:
        if "" not in by_name:
            raise OptionError(f"--loss {options.loss}: there is one store; give its terms without a name")
        for name in ("teacher_drop", "join", "student_tokens"):
            if getattr(options, name) != getattr(DistillOptions, name):
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag}: is for several stores; give --store more than once")
        return [by_name[""]]
    if "" in by_name:
        return _fit([by_name[""]] * len(stores), options)
    for name in by_name:
        if name not in names:
            raise OptionError(
                f"--loss {options.loss}: {name} is no store of this run; allowed: {', '.join(names)}"
            )
    for name in names:
        if name not in by_name:
            raise OptionError(
                f"--loss {options.loss}: no terms for the store {name}; give NAME=TERMS for each"
            )
    return _fit([by_name[name] for name in names], options)


def prototypes_of(
    stores: Sequence[WeightedStore], losses: Sequence[Mapping[str, float]], prototypes: Path | None
) -> list[Path | None]:
    """The folder of prototypes of each store; None where its loss needs none, or nothing is given.

    ``DIR`` is that of every store, ``NAME=DIR,NAME=DIR`` gives each its own. A folder may have "=" and "," in its
    name: only names of stores begin a part.

    >>> two = [WeightedStore("x/a", name="a"), WeightedStore("y/b", name="b")]
    >>> dino, mse = {"dino": 1.0}, {"mse": 1.0}
    >>> [str(one) for one in prototypes_of(two, [dino, dino], Path("a=k=8,p,b=q"))]
    ['k=8,p', 'q']
    >>> [str(one) for one in prototypes_of(two, [dino, mse], Path("p"))]
    ['p', 'None']

    Raises
    ------
    OptionError
        When a store is named that is not there, twice or in vain, or one is missing.
    """
    needs = [any(term in loss_spec.PROTOTYPE_TERMS for term in loss) for loss in losses]
    names, text = [store.name for store in stores], str(prototypes)
    if prototypes is None:
        return [None] * len(stores)
    first, equals, _ = text.partition("=")
    if len(stores) == 1 or not equals or prototypes.exists():
        return [prototypes if need else None for need in needs]
    said = f"--prototypes {text}"
    if first not in names:
        raise OptionError(f"{said}: {first} is no store of this run; allowed: {', '.join(names)}")
    parts = re.split(f",(?=(?:{'|'.join(map(re.escape, names))})=)", text)
    found: dict[str, Path] = {}
    for name, _, folder in (part.partition("=") for part in parts):
        if name in found:
            raise OptionError(f"{said}: {name} is given twice; give one folder for each store")
        found[name] = Path(folder)
    for name, need in zip(names, needs, strict=True):
        if need and name not in found:
            raise OptionError(f"{said}: no prototypes for the store {name}; give NAME=DIR for it")
        if name in found and not need:
            raise OptionError(f"{said}: the loss of {name} uses no prototypes; leave {name}= out")
    return [found.get(name) for name in names]


def _fit(losses: list[dict[str, float]], options: DistillOptions) -> list[dict[str, float]]:
    if options.teacher_drop:
        for loss in losses:
            if not set(loss) & set(loss_spec.FEATURE_TERMS):
                raise OptionError(
                    f"--teacher-drop {options.teacher_drop:g}: teachers are compared by their projected features, and "
                    f"{'+'.join(loss)} has none; add one of {', '.join(loss_spec.FEATURE_TERMS)}"
                )
    return losses
