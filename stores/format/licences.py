"""What licences say of the use of a teacher and of what is made with it: facts with their source, no advice.

A licence counts as known only under its exact name. Everything else is unknown, also a known name with an addition.
Where several licences bind at once, their names are joined by `AND`, and the strictest of each fact counts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "unknown"
AND = " AND "
"""Joins licences that all bind, as in SPDX."""


@dataclass(frozen=True, slots=True)
class Licence:
    """One licence, as its text has it."""

    tag: str
    """As hubs write it, at most 100 characters."""
    spdx: str | None = None
    """Identifier in the SPDX list; None for a licence that is not known here."""
    commercial_use: str = UNKNOWN
    changed_material: str = UNKNOWN
    """Whether changed material may be passed on."""
    outputs: str = UNKNOWN
    """What it says of a model's outputs, such as features."""
    source: str = UNKNOWN
    """Where its text is."""


def _known(spdx: str, source: str, commercial_use: str = "yes", changed_material: str = "yes") -> Licence:
    return Licence(
        spdx.lower(), spdx, commercial_use, changed_material, "its text does not name them", source
    )


def _cc(kind: str, commercial_use: str = "yes", changed_material: str = "yes") -> Licence:
    source = f"https://creativecommons.org/licenses/{kind}/4.0/legalcode"
    return _known(f"CC-{kind.upper()}-4.0", source, commercial_use, changed_material)


_KAIKO = "https://github.com/kaiko-ai/towards_large_pathology_fms/blob/main"
_PHIKON = "https://huggingface.co/owkin/phikon-v2/blob/main"
_ALIKE = "yes, under the same licence"
LICENCES = {
    licence.tag: licence
    for licence in (
        _known("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
        _known("MIT", "https://opensource.org/license/mit"),
        _known("BSD-2-Clause", "https://opensource.org/license/bsd-2-clause"),
        _known("BSD-3-Clause", "https://opensource.org/license/bsd-3-clause"),
        _cc("by"),
        _cc("by-sa", changed_material=_ALIKE),
        _cc("by-nd", changed_material="no"),
        _cc("by-nc", "no"),
        _cc("by-nc-sa", "no", _ALIKE),
        _cc("by-nc-nd", "no", "no"),
        Licence("licenseref-kaiko-non-commercial", commercial_use="no", source=f"{_KAIKO}/LICENSE"),
        Licence("licenseref-owkin-non-commercial", commercial_use="no", source=f"{_PHIKON}/LICENSE.pdf"),
    )
}
"""Known licences by tag."""


def licence_of(text: str) -> Licence:
    """The licence that a text names; one whose facts are unknown unless the text is exactly the name.

    >>> licence_of("CC BY-NC-ND 4.0").commercial_use, licence_of("MIT, research only").commercial_use
    ('no', 'unknown')
    >>> licence_of("Apache-2.0 AND CC-BY-NC-ND-4.0").commercial_use
    'no'
    """
    if AND in text:
        return _all_of([licence_of(name) for name in text.split(AND)])
    tag = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or UNKNOWN
    return LICENCES.get(tag, Licence(tag[:100]))


def _all_of(licences: Sequence[Licence]) -> Licence:
    """What holds where all of several licences bind."""

    def strictest(values: Sequence[str]) -> str:
        ranked = ("no", UNKNOWN, _ALIKE, "yes")
        return next(value for value in ranked if value in values)

    outputs = {licence.outputs for licence in licences}
    sources = list(dict.fromkeys(licence.source for licence in licences))
    return Licence(
        "-and-".join(licence.tag for licence in licences)[:100],
        None,
        strictest([licence.commercial_use for licence in licences]),
        strictest([licence.changed_material for licence in licences]),
        outputs.pop() if len(outputs) == 1 else UNKNOWN,
        ", ".join(sources),
    )


def front_matter(text: str) -> dict[str, str]:
    """What the front matter of a card says of a licence, in the form that hubs read."""
    licence = licence_of(text)
    if licence.spdx is None and licence.tag != UNKNOWN:
        return {"license": "other", "license_name": licence.tag}
    return {"license": licence.tag}
