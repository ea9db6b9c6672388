"""The version of g2l, also in a checkout that is not installed."""

import functools
import importlib.metadata
import tomllib
from pathlib import Path

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@functools.cache
def g2l_version() -> str:
    """The installed version; without an installation that of the checkout; ``unknown`` when neither can be found."""
    try:
        return importlib.metadata.version("g2l")
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        return str(tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["version"])
    except (OSError, tomllib.TOMLDecodeError, KeyError):
        return "unknown"
