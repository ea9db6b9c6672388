"""The tables of ``evaluate all`` that a page shows: read, and checked, because they may come from elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stores.errors import OptionError
from stores.io import files


def read_table(path: Path) -> Mapping[str, Any]:
    """A ``table.json``, whose ``results`` have names and figures.

    Raises
    ------
    OptionError
        When it is no such file.
    """
    value = files.read_json(path)
    try:
        rows = [row for result in value["results"] for row in result["figures"]]
        whole = all({"figure", "k", "value"} <= set(row) for row in rows)
        differences = [row["difference"] for row in rows if "difference" in row]
        whole = whole and all({"to", "value"} <= set(difference) for difference in differences)
        whole = whole and all({"task", "name"} <= set(result) for result in value["results"])
    except (TypeError, KeyError):
        whole = False
    if not whole:
        raise OptionError(f"--tables {path}: not a table.json of `g2l evaluate all`")
    found: Mapping[str, Any] = value
    return found


def weights_of(table: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the weights of each encoder of a table, as far as it says."""
    known = table.get("weights")
    return {str(name): str(digest) for name, digest in known.items()} if isinstance(known, dict) else {}
