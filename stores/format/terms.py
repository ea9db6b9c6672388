"""Terms: what is known of the use of an encoder, as three facts, each with its source and the day it was read.

The facts are the licence that its owner names, the terms under which access is given, and what they say of a model's
outputs. A model that was trained on the outputs of others is bound by the terms of each, so terms come as a list with
an entry for each encoder. They change no feature and are therefore no part of the recipe: they stand in
``options/extract-teacher.json``, in the ``config.json`` of a student and in every card. Unknown stays unknown.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from stores.errors import StoreError
from stores.format.layout import options_file, read_options
from stores.format.licences import AND, UNKNOWN, licence_of
from stores.io.location import StoreLike
from stores.io.text import one_line

OPEN = "open"
GATED = "has to be requested from the owner"
_MAX_TERMS = 64
_MAX_TEXT = 500
_MAX_EXPRESSION = 10_000
_COMMAND = "extract-teacher"


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact; nothing is known of its source or date when they are empty."""

    says: str = UNKNOWN
    source: str = ""
    """An address, or where it was declared, in words."""
    date: str = ""
    """Day or month on which the source was read, ISO 8601."""


_NOT_KNOWN = Fact()


@dataclass(frozen=True, slots=True)
class Terms:
    """What is known of the use of one encoder."""

    encoder: str
    licence: Fact = _NOT_KNOWN
    access: Fact = _NOT_KNOWN
    """`OPEN`, `GATED`, or what has to be accepted."""
    outputs: Fact = _NOT_KNOWN
    """What they say of a model's outputs, such as features."""

    @property
    def licences(self) -> list[str]:
        """The licence, and the terms of access where they add to it, as one name each."""
        names = [licence_of(name).spdx or name for name in self.licence.says.split(AND)]
        if self.adds_access:
            names.append(f"LicenseRef-{re.sub('[^A-Za-z0-9.]+', '-', self.encoder).strip('-')}-access")
        return names

    @property
    def adds_access(self) -> bool:
        """Whether terms of access are known that bind beside the licence."""
        return self.access.says not in (UNKNOWN, OPEN, GATED)

    @property
    def names_outputs(self) -> bool:
        """Whether something is known of outputs beyond the text of the licence."""
        return self.outputs.says not in (UNKNOWN, *(licence_of(name).outputs for name in self.licences))

    def covers(self, other: "Terms") -> bool:
        """Whether these terms say all that `other` says, of the same encoder."""
        mine = (self.licence, self.access, self.outputs)
        others = (other.licence, other.access, other.outputs)
        return self.encoder == other.encoder and all(
            b.says in (UNKNOWN, a.says) for a, b in zip(mine, others, strict=True)
        )


def union(*of: Iterable[Terms]) -> tuple[Terms, ...]:
    """All terms together; those that another entry covers are left out.

    >>> mit = Terms("a", Fact("MIT"))
    >>> union([Terms("a")], [mit, Terms("b")], [mit]) == (mit, Terms("b"))
    True
    """
    found: list[Terms] = []
    for terms in (each for part in of for each in part):
        if not any(known.covers(terms) for known in found):
            found = [known for known in found if not terms.covers(known)]
            found.append(terms)
    return tuple(found)


def expression(terms: Iterable[Terms]) -> str:
    """The licences of several encoders in one line, all of which bind: an SPDX expression where all are known.

    >>> expression([Terms("a", Fact("mit")), Terms("b"), Terms("c", Fact("MIT"))])
    'MIT AND unknown'
    """
    names = dict.fromkeys(name for each in terms for name in each.licences)
    return AND.join(names) or UNKNOWN


def objections(terms: Iterable[Terms]) -> list[str]:
    """What terms hold against passing on something that was made of these encoders or of their outputs.

    That is a licence under which changed material may not be passed on, and whatever an owner says of outputs beyond
    the text of the licence, since no program understands it. What is unknown is no objection, and neither is "not
    commercially": that binds who uses it.

    >>> objections([Terms("a", Fact("MIT")), Terms("b"), Terms("c", Fact("CC-BY-NC-4.0"))])
    []
    >>> objections([Terms("d", Fact("CC-BY-NC-ND-4.0", "its page", "2026-11"))])
    ['d: CC-BY-NC-ND-4.0, under which changed material may not be passed on (its page, 2026-11)']
    """
    found = []
    for each in terms:
        if licence_of(each.licence.says).changed_material == "no":
            said = f"{each.licence.says}, under which changed material may not be passed on"
            found.append(f"{each.encoder}: {said}{_origin(each.licence)}")
        if each.names_outputs:
            found.append(f"{each.encoder}: of its outputs: {each.outputs.says}{_origin(each.outputs)}")
    return found


def not_commercial(terms: Iterable[Terms]) -> list[str]:
    """The encoders whose licence bars commercial use, each with its licence.

    >>> not_commercial([Terms("a", Fact("MIT")), Terms("c", Fact("CC-BY-NC-4.0"))])
    ['c (CC-BY-NC-4.0)']
    """
    return [
        f"{each.encoder} ({each.licence.says})"
        for each in terms
        if licence_of(each.licence.says).commercial_use == "no"
    ]


def _origin(fact: Fact) -> str:
    said = ", ".join(text for text in (fact.source, fact.date) if text)
    return f" ({said})" if said else ""


def to_json(terms: Iterable[Terms]) -> list[dict[str, Any]]:
    """Plain JSON types."""
    return [asdict(each) for each in terms]


def from_json(value: Any, source: str) -> tuple[Terms, ...]:
    """Terms that `to_json` wrote, from a file of unknown origin; texts come as one line.

    Raises
    ------
    StoreError
        When `value` does not have this form.
    """
    if not isinstance(value, list) or len(value) > _MAX_TERMS:
        raise StoreError(f"{source}: terms are a list of at most {_MAX_TERMS}, found {value!r:.80}")
    return tuple(_terms(item, source) for item in value)


def _terms(item: Any, source: str) -> Terms:
    parts = [f.name for f in fields(Terms)]
    if not isinstance(item, dict) or set(item) != set(parts) or not isinstance(item["encoder"], str):
        raise StoreError(f"{source}: terms have the fields {', '.join(parts)}, found {item!r:.80}")
    return Terms(_text(item["encoder"]), *(_fact(item[name], source) for name in parts[1:]))


def _fact(item: Any, source: str) -> Fact:
    names = [f.name for f in fields(Fact)]
    if isinstance(item, dict) and set(item) == set(names) and all(isinstance(x, str) for x in item.values()):
        return Fact(_text(item["says"]) or UNKNOWN, _text(item["source"]), _text(item["date"]))
    raise StoreError(f"{source}: a fact has the texts {', '.join(names)}, found {item!r:.80}")


def _text(value: str) -> str:
    return one_line(value, _MAX_TEXT)


def of_options(options: Mapping[str, Any], teacher: str, source: str) -> tuple[Terms, ...]:
    """The terms that the options of ``extract-teacher`` record.

    Older stores have a licence alone. Where it says something else than the terms, both count.

    Parameters
    ----------
    teacher
        The teacher's name in the recipe.
    """
    recorded = from_json(options["teacher_terms"], source) if "teacher_terms" in options else None
    licence = one_line(options.get("teacher_licence") or UNKNOWN, _MAX_EXPRESSION)
    if recorded is not None and licence in (expression(recorded), UNKNOWN):
        return recorded
    alone = Terms(_text(teacher), Fact(licence, "" if licence == UNKNOWN else "recorded with the store"))
    return union(recorded or (), [alone])


def of_store(store: StoreLike, teacher: str) -> tuple[Terms, ...]:
    """The terms that a store records of its teacher, and of what that was trained on.

    Raises
    ------
    StoreError
        When they do not have the form that ``extract-teacher`` gives them.
    """
    return of_options(read_options(store, _COMMAND), teacher, f"{store}/{options_file(_COMMAND)}")


def recorded(terms: Sequence[Terms]) -> dict[str, Any]:
    """What ``options/extract-teacher.json`` keeps."""
    return {"teacher_licence": expression(terms), "teacher_terms": to_json(terms)}


def without_folders(terms: Iterable[Terms]) -> tuple[Terms, ...]:
    """The same terms, with encoders that are named by a file of code named without its folder."""
    return tuple(replace(each, encoder=re.split(r"[\\/]", each.encoder)[-1]) for each in terms)
