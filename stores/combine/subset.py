"""``store subset``: a store of some of the slides and seeds of another."""

import contextlib
import csv
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stores.combine.copy_slide import Shared, Source, copy_slide, from_one
from stores.combine.merge import begin, finish
from stores.errors import OptionError
from stores.format import manifest
from stores.io import files
from stores.io.location import StoreLike
from stores.io.staging import staged
from stores.verify.findings import Progress

_EXTRACTED = "options/extract-teacher.json"
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


@dataclass(frozen=True, slots=True)
class Selection:
    """What a subset keeps; conditions that are not None or empty all have to hold."""

    slides: tuple[str, ...] = ()
    """Ids; see `read_ids`."""
    splits: tuple[str, ...] = ()
    seeds: int | None = None
    """Seeds 0 to N-1."""
    where: str | None = None
    """An SQL expression over the columns of the slides table."""
    pixels: bool = True
    tokens: bool = True

    def choose(self, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Ids of the slides that are kept, sorted.

        Raises
        ------
        OptionError
            When an id or a split is unknown, the expression is not one, or nothing is left.
        """
        unknown = sorted(set(self.slides) - set(rows))
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
            raise OptionError(
                f"--slides {unknown[0]!r:.220}: no such slide in the store of {len(rows)}{more}"
            )
        wrong = sorted(set(self.splits) - set(manifest.SPLITS))
        if wrong:
            raise OptionError(f"--split {wrong[0]!r:.40}: allowed: {', '.join(manifest.SPLITS)}")
        keep = set(self.slides or rows)
        if self.splits:
            keep = {name for name in keep if rows[name]["split"] in self.splits}
        if self.where is not None:
            keep &= select(list(rows.values()), self.where)
        if not keep:
            raise OptionError(f"subset: no slide of {len(rows)} fits all of --slides, --split and --where")
        return sorted(keep)


def read_ids(given: Iterable[str]) -> tuple[str, ...]:
    """Slide ids from ``--slides``: the column ``slide_id`` of a CSV, the lines of another file, or an id as it is.

    Raises
    ------
    OptionError
        When a file names no slide, or cannot be read.
    """
    found: list[str] = []
    for text in given:
        if not Path(text).is_file():
            found.append(text)
            continue
        try:
            lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"--slides {text}: cannot be read ({files.first_line(error)})") from None
        named = [line.strip() for line in lines if line.strip()]
        header = next(csv.reader(named[:1]), [])
        if "slide_id" in header:
            named = [row["slide_id"] or "" for row in csv.DictReader(named)]
        if not named:
            raise OptionError(f"--slides {text}: names no slide")
        found += named
    return tuple(found)


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


def _options_of(selection: Selection) -> dict[str, Any]:
    """What extract-teacher would be asked for to make the subset; it insists on that when it goes on."""
    without = {"pixels": False} if not selection.pixels else {}
    return without | ({"tokens": None} if not selection.tokens else {})


def subset(
    store: StoreLike, out: Path, selection: Selection, start: Callable[[int], None], progress: Progress
) -> Shared:
    """A store of some of the slides and seeds of another. Start it again after an interruption: it goes on.

    Raises
    ------
    OptionError
        When the selection is not one, or selects nothing.
    """
    source = Source(store)
    keep = selection.choose(source.rows)
    n_seeds = selection.seeds
    if n_seeds is not None and n_seeds < 1:
        raise OptionError(f"--seeds {n_seeds}: allowed is 1 or more")
    chosen = asdict(selection) | {"slides": keep}
    request = {"command": "subset", "store": [str(source), source.identity()], **chosen}
    result = begin([source])
    start(len(keep))
    with staged(out, files.parse_json(files.json_text(request))) as stage:
        for slide_id in keep:
            choice = from_one(source, slide_id, n_seeds, selection.pixels, selection.tokens)
            copy_slide(slide_id, choice, n_seeds, stage, result)
            progress(1, slide_id)
        source.copy(
            [name for name in ("options/tile.json", _EXTRACTED) if name in source.listed], stage, result
        )
        stored = source.recipe if selection.tokens else replace(source.recipe, tokens=None)
        if stored.tokens != source.recipe.tokens:
            result.notes.append(f"without tokens it is another store: recipe {stored.digest()[:12]}")
        if _EXTRACTED in source.listed and _options_of(selection):
            extracted = files.read_options(stage, "extract-teacher")
            files.write_json(stage / _EXTRACTED, extracted | _options_of(selection))
        files.write_json(stage / "options" / "subset.json", {**chosen, "sources": result.sources})
        finish(stage, stored, [source.rows[name] for name in keep], result)
    return result
