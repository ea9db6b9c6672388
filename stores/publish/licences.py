"""What a teacher's licence asks of those who use its features, as far as its text tells; not legal advice."""

import re

_ASK = (
    "Owners differ in whether they count features and students as changed material, and some (as for UNI2-h) bar "
    "commercial use of models trained on the teacher's outputs outright: ask the owner before you publish features or "
    "a student. Such teachers are mostly gated, and a copy of their features does not grant what the gate asks for: "
    "accept the terms at the source yourself."
)
_NO_SALE = (
    "Expect that neither these features nor any student trained on them may be used commercially: not in a product, "
    "not in a paid service, whoever trained the student. Academic, non-commercial research is what such terms are for."
)
_NO_CHANGE = "Changed material may not be passed on."
_FREE = (
    "It permits any use, also commercial, of these features and of students trained on them; keep its notice and name "
    "its owner."
)
_UNKNOWN = (
    "**The licence is unknown.** Nobody may assume a permission: find out the terms of the teacher and clear them "
    "before you publish these features, or a student trained on them."
)
# What a licence asks of features and students. The first pattern that matches all of `licence_key` counts: a permissive
# licence has to be named exactly, while one hint of a restriction is enough.
_CONSEQUENCES = (
    (r"apache-2\.0|mit|bsd-[23]-clause|cc-by-4\.0", _FREE),
    (
        r"(.*-)?(nc|non-?commercial)-(.*-)?(nd|no-?deriv\w*)(-.*)?",
        f"**Warning: non-commercial, no derivatives.** {_NO_SALE} {_NO_CHANGE} {_ASK}",
    ),
    (r"(.*-)?(nc|non-?commercial)(-.*)?", f"**Warning: non-commercial.** {_NO_SALE} {_ASK}"),
    (r"(.*-)?(nd|no-?deriv\w*)(-.*)?", f"**Warning: no derivatives.** {_NO_CHANGE} {_ASK}"),
    (r"|unknown|none", _UNKNOWN),
    (r".*", "Its terms are not known to this card: read them before you use or share features or students."),
)
SPDX = {name.lower(): name for name in ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause")} | {
    f"cc-by-{kind}4.0": f"CC-BY-{kind.upper()}4.0" for kind in ("", "sa-", "nc-", "nd-", "nc-sa-", "nc-nd-")
}
"""Licences that hubs know by this key, with their name in the SPDX list."""


def licence_key(licence: str) -> str:
    """A licence as hubs write it.

    >>> licence_key("CC BY-NC-ND 4.0")
    'cc-by-nc-nd-4.0'
    """
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")


def consequences(licence: str) -> str:
    """What a licence asks of those who use the features, in a few careful sentences."""
    key = licence_key(licence)
    return next(meaning for pattern, meaning in _CONSEQUENCES if re.fullmatch(pattern, key))
