"""What licences say of the use of a teacher and of what is made with it: facts with their source, no advice.

A licence counts as known only under its exact name. Everything else is unknown, also a known name with an addition.
"""

import re
from dataclasses import dataclass

UNKNOWN = "unknown"


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
    )
}
"""Known licences by tag."""
ACCESS = (
    "unknown: a store does not record them. A gated repository may add terms to its licence; that of UNI2-h prohibits "
    "commercial use of models trained on its outputs (https://huggingface.co/MahmoodLab/UNI2-h)"
)
"""What is known of the terms under which the teacher's weights were given."""


def licence_of(text: str) -> Licence:
    """The licence that a text names; one whose facts are unknown unless the text is exactly the name.

    >>> licence_of("CC BY-NC-ND 4.0").commercial_use, licence_of("MIT, research only").commercial_use
    ('no', 'unknown')
    """
    tag = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or UNKNOWN
    return LICENCES.get(tag, Licence(tag[:100]))
