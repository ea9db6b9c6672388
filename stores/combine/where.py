"""Which slides a subset keeps: conditions on columns of the slides table."""

import contextlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from stores.errors import OptionError
from stores.format import manifest
from stores.io import files

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")
_TEXT, _NAMED = re.compile(r"'(?:[^']|'')*'"), re.compile(r'"([^"]*)"')
_FUNCTIONS = {
    *(
        "abs",
        "avg",
        "coalesce",
        "count",
        "glob",
        "ifnull",
        "iif",
        "instr",
        "length",
        "like",
        "lower",
        "ltrim",
    ),
    *(
        "max",
        "min",
        "nullif",
        "replace",
        "round",
        "rtrim",
        "substr",
        "sum",
        "total",
        "trim",
        "typeof",
        "upper",
    ),
}
"""Functions of SQLite that give the same answer every time and cannot leave the table."""


def select(rows: Sequence[Mapping[str, Any]], where: str) -> set[str]:
    """Ids of the slides for which an SQL expression is true, as SQLite understands it.

    Own columns are text; one that holds nothing but numbers compares as numbers.

    >>> rows = [{"slide_id": "a", "age": "7"}, {"slide_id": "b", "age": "61"}]
    >>> select(rows, "age > 40 OR slide_id LIKE 'z%'")
    {'b'}

    Raises
    ------
    OptionError
        When it is no such expression, or wants anything else than to read the table.
    """
    names = sorted({name for row in rows for name in row})

    def refuse(why: object) -> OptionError:
        return OptionError(
            f"--where {where!r:.200}: {str(why)[:200]}; text stands in single quotes; columns: {', '.join(names)}"
        )

    for quoted in _NAMED.findall(_TEXT.sub("", where)):
        if quoted not in names:  # SQLite would take it for text
            raise refuse(f'no such column: "{quoted}"')
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        try:
            columns = ", ".join(f"{_quoted(name)} {_kind(name, rows)}" for name in names)
            database.execute(f"CREATE TABLE slides ({columns})")
            values = [[row.get(name) for name in names] for row in rows]
            database.executemany(f"INSERT INTO slides VALUES ({', '.join('?' * len(names))})", values)
            database.set_authorizer(_only_reads)
            # the line break ends a comment; an aggregate is no expression of one row and has no place in WHERE
            text = f"({where}\n)"
            found = database.execute(
                f"SELECT slide_id, {text} FROM slides WHERE {text} IS NOT NULL"
            ).fetchall()
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            raise refuse(files.first_line(error)) from None
    odd = [value for _, value in found if type(value) is not int or value not in (0, 1)]
    if odd:
        raise refuse(f"gives {odd[0]!r:.40}, expected a condition that is true or false")
    return {slide_id for slide_id, value in found if value}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _kind(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if name in manifest.SLIDES_SCHEMA.names:
        kind = str(manifest.SLIDES_SCHEMA.field(name).type)
        return {"string": "TEXT", "int32": "INTEGER"}.get(kind, "REAL")
    given = [str(row[name]) for row in rows if row.get(name) is not None]
    return "NUMERIC" if given and all(_NUMBER.fullmatch(value) for value in given) else "TEXT"


def _only_reads(action: int, first: str | None, second: str | None, *rest: str | None) -> int:
    """Let an expression read the one table and call harmless functions: no attaching, no pragma, no other table."""
    allowed = (
        action == sqlite3.SQLITE_SELECT
        or (action == sqlite3.SQLITE_READ and first == "slides")
        or (action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
