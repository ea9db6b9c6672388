"""A folder of results is continued only with the options that it was begun with."""

from pathlib import Path
from typing import Any

from pipeline.runtime.options import to_json
from stores.errors import OptionError
from stores.io import files

BEGUN = "options.json"
"""``options``, and what else has to stay the same."""


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
    old = to_json(type(options)()) | files.read_json(out / BEGUN).get("options", {})
    for name, value in to_json(options).items():
        if name not in free and old[name] != value:
            flag = name.replace("_", "-")
            raise OptionError(
                f"--{flag} {value}: {out} was begun with {old[name]}; use that, or another --out"
            )
