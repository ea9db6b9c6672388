"""What was measured before a teacher's arithmetic was chosen; it stands beside the options of ``extract-teacher``.

It decides no feature, the arithmetic alone does: two stores of one teacher in float16 have one recipe, on whatever
device each of them measured.
"""

import math
from collections.abc import Mapping
from typing import Any

from stores.format.layout import read_options
from stores.format.recipe import DTYPES
from stores.io.location import StoreLike

_KEY = "teacher_arithmetic"


def recorded(chosen: str, views: int, errors: Mapping[str, float | None]) -> dict[str, Any]:
    """What ``options/extract-teacher.json`` keeps.

    Parameters
    ----------
    views : int
        How many were compared.
    errors
        Relative error of the features to those in float32, by arithmetic; None where a number overflowed.
    """
    return {_KEY: {"chosen": chosen, "views": views, "relative_error_to_float32": dict(errors)}}


def said_of(store: StoreLike, dtype: str) -> str:
    """What a store says of the choice of its arithmetic, in a few words; empty when it says nothing that can be."""
    found = read_options(store, "extract-teacher").get(_KEY)
    if not isinstance(found, dict) or found.get("chosen") != dtype:
        return ""
    views, errors = found.get("views"), found.get("relative_error_to_float32")
    if type(views) is not int or views < 1 or not isinstance(errors, dict):
        return ""
    words = []
    for name in DTYPES:
        error = errors.get(name, "")
        if error is None:
            words.append(f"{name} overflows")
        elif isinstance(error, float) and math.isfinite(error):
            words.append(f"{name} {error:.1e}")
    return f"relative error to float32 on {views} views: {', '.join(words)}" if words else ""
