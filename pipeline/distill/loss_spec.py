"""The values of ``--loss``: a weighted sum of named terms. Imports nothing heavy: options are checked with it.

``log-sum``, ``log-sum-corr``, ``mse``, ``l1``, ``smooth-l1``, ``cosine``, ``relational``, ``infonce``
                   projected features against the teacher's
``dino``           the student's assignments to prototypes against the teacher's, of the features
``ibot``           the same of the patch tokens
``token-cosine``   projected patch tokens against the teacher's
``attention``      the student's attention to the patches against the teacher's
``koleo``          spreads the student's features of a batch
``pair``           draws the student's features of tiles of one place together
"""

import math

from stores.errors import OptionError

FEATURE_TERMS = ("log-sum", "log-sum-corr", "mse", "l1", "smooth-l1", "cosine", "relational", "infonce")
TOKEN_TERMS = ("ibot", "token-cosine")
PROTOTYPE_TERMS = ("dino", "ibot")
PAIR = "pair"
TERMS = (*FEATURE_TERMS, "dino", *TOKEN_TERMS, "attention", "koleo", PAIR)
_ALONE = {"koleo", PAIR}
"""Terms that do not use the teacher."""


def parse(text: str) -> dict[str, float]:
    """Terms and their weights, in the order given.

    >>> parse("log-sum:1,ibot:0.5"), parse("dino+ibot")
    ({'log-sum': 1.0, 'ibot': 0.5}, {'dino': 1.0, 'ibot': 1.0})

    Raises
    ------
    OptionError
        When a term is unknown or given twice, a weight is not a positive number, or no term uses the teacher.
    """
    found: dict[str, float] = {}
    for part in text.replace("+", ",").split(","):
        name, colon, number = part.strip().partition(":")
        if name not in TERMS:
            raise OptionError(f"--loss {text}: {name!r} is not one of {', '.join(TERMS)}")
        if name in found:
            raise OptionError(f"--loss {text}: {name} is given twice; give it once, with one weight")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise OptionError(
                f"--loss {text}: the weight of {name} is {number!r}; allowed is a number above 0"
            )
        found[name] = weight
    if set(found) <= _ALONE:
        alone = next(iter(found))
        raise OptionError(
            f"--loss {text}: {alone} does not use the teacher; add a term that does, such as log-sum,{alone}:0.1"
        )
    return found


def prefixes(text: str | None) -> tuple[int, ...]:
    """The lengths of ``--nested``, ascending; none for None.

    >>> prefixes("256,64"), prefixes(None)
    ((64, 256), ())

    Raises
    ------
    OptionError
        When one is not a whole number above 1, or given twice.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    lengths = [int(part) if part.isascii() and part.isdigit() and len(part) < 6 else 0 for part in parts]
    if min(lengths) < 2 or len(set(lengths)) < len(lengths):
        raise OptionError(f"--nested {text}: allowed are different numbers of 2 or more, such as 64,128,256")
    return tuple(sorted(lengths))


def parse_several(text: str) -> dict[str, dict[str, float]]:
    """Terms and their weights by the name of a store; under the empty name where they are those of every store.

    A part with ``=`` begins the terms of a store, and the parts after it belong to the same store.

    >>> parse_several("uni2=log-sum,koleo:0.1,virchow2=cosine")
    {'uni2': {'log-sum': 1.0, 'koleo': 0.1}, 'virchow2': {'cosine': 1.0}}
    >>> parse_several("log-sum")
    {'': {'log-sum': 1.0}}

    Raises
    ------
    OptionError
        As `parse`; also when a store is named twice, or the first part names none and a later one does.
    """
    if "=" not in text:
        return {"": parse(text)}
    parts: dict[str, list[str]] = {}
    name = ""
    for part in text.split(","):
        if "=" in part:
            name, _, part = (word.strip() for word in part.partition("="))
            if name in parts:
                raise OptionError(f"--loss {text}: {name} is given twice; give all its terms at one place")
        if not name:
            raise OptionError(f"--loss {text}: the first terms name no store; write NAME=TERMS,NAME=TERMS")
        parts.setdefault(name, []).append(part)
    return {name: parse(",".join(terms)) for name, terms in parts.items()}
