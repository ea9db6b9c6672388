"""A folder of results is continued only with the options that it was begun with."""

from pathlib import Path
from typing import Any

from pipeline.runtime.options import to_json, word_of_today
from stores.errors import OptionError, StoreError
from stores.io import files
from stores.io.text import one_line

BEGUN = "options.json"
"""``options``, and what else has to stay the same."""


def read_begun(out: Path) -> dict[str, Any]:
    """What a folder of results was begun with; ``options`` in it, where there are any, are an object.

    Raises
    ------
    StoreError
        When it is not readable.
    """
    begun = files.read_object(out / BEGUN, inside=out)
    if not isinstance(begun.get("options", {}), dict):
        raise StoreError(f"{out / BEGUN}: options: expected an object, found {begun['options']!r:.80}")
    return begun


def require_same_options(out: Path, options: Any, free: frozenset[str]) -> None:
    """Raise OptionError that names the first option which differs from the one in `out`, with both values.

    An option that did not exist when `out` was begun counts as its default.

    Parameters
    ----------
    options
        A dataclass of options, such as `pipeline.distill.options.DistillOptions`.
    free
        Names of options that do not change the result.
    """
    old = to_json(type(options)()) | read_begun(out).get("options", {})
    for name, value in to_json(options).items():
        if name not in free and word_of_today(type(options), name, old[name]) != value:
            raise begun_otherwise(out, name, value, old[name], "--out")


def begun_otherwise(folder: Path, name: str, value: Any, before: Any, place: str) -> OptionError:
    """The error that `folder`, which the option `place` names, was begun with another `value` of an option."""
    flag, given, begun = name.replace("_", "-"), _words(value), _words(before)
    absent = f"--{flag}: not given, and {folder}"
    if isinstance(value, bool):  # a switch, which is given or not
        said = f"--{flag}: {folder}" if value else absent
        how = "without it; leave it out" if value else "with it; give it"
    else:
        said = f"--{flag} {given}: {folder}" if given else absent
        how = f"with {begun}; use that" if begun else "without it; leave it out"
    return OptionError(f"{said} was begun {how}, or another {place}")


def _words(value: Any) -> str:
    """An option's value in JSON as a user gives it; empty for one that is not given."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else one_line(value)
