"""Which slides a subset keeps: ``COLUMN=VALUE`` over the slides table."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stores.errors import OptionError


def select(rows: Sequence[Mapping[str, Any]], conditions: Iterable[str]) -> set[str]:
    """Ids of the slides that fit conditions of the form ``COLUMN=VALUE``.

    Conditions on different columns must all hold. Several values of one column are alternatives. Text is compared as
    it is written, a column of numbers by value. ``COLUMN=`` means an empty value.

    >>> rows = [{"slide_id": "a", "site": "x", "mpp": 0.5}, {"slide_id": "b", "site": "y", "mpp": 0.25}]
    >>> sorted(select(rows, ["site=x", "site=y"])), select(rows, ["site=x", "site=y", "mpp=0.50"])
    (['a', 'b'], {'a'})

    Raises
    ------
    OptionError
        When a condition has another form, or names a column or value that no slide has.
    """
    names = sorted({name for row in rows for name in row})
    found: dict[str, set[str]] = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        matching = {row["slide_id"] for row in rows if _equals(row.get(column), value)}
        if not (equals and column in names and matching):
            why = "no slide has this value" if column in names else f"no column {column!r:.100}"
            raise OptionError(
                f"--where {condition!r:.200}: {why if equals else 'there is no = in it'}; give COLUMN=VALUE, without "
                f"spaces or quotes around them; repeat --where for more conditions; columns: {', '.join(names)}"
            )
        found.setdefault(column, set()).update(matching)
    return set.intersection({row["slide_id"] for row in rows}, *found.values())


def _equals(cell: object, value: str) -> bool:
    if isinstance(cell, int | float):
        with contextlib.suppress(ValueError):
            return cell == float(value)
        return False
    return ("" if cell is None else cell) == value
