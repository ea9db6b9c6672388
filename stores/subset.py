"""``store subset``: a store of some of the slides and seeds of another."""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from stores import arrays, features, files, manifest, pixels
from stores.copying import staged
from stores.errors import OptionError
from stores.findings import Progress
from stores.location import StoreLike
from stores.share import Shared, Source, finish, options_files

_SEED_AXIS = ("features", "stats", "scales")
_SQL_READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a subset keeps; conditions that are not None or empty all have to hold."""

    slides: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    seeds: int | None = None
    """Seeds 0 to N-1."""
    where: str | None = None
    """An SQL expression over the columns of the slides table."""
    pixels: bool = True

    def choose(self, rows: dict[str, dict[str, Any]]) -> list[str]:
        """Ids of the slides that are kept, sorted.

        Raises
        ------
        OptionError
            When an id or a split is unknown, the expression is not one, or nothing is left.
        """
        unknown = sorted(set(self.slides) - set(rows))
        if unknown:
            raise OptionError(f"--slides {unknown[0]}: no such slide in the store ({len(rows)} slides)")
        for split in self.splits:
            if split not in manifest.SPLITS:
                raise OptionError(f"--split {split}: allowed: {', '.join(manifest.SPLITS)}")
        keep = set(self.slides or rows)
        if self.splits:
            keep = {name for name in keep if rows[name]["split"] in self.splits}
        if self.where is not None:
            keep &= select(list(rows.values()), self.where)
        if not keep:
            raise OptionError("subset: no slide fits all of --slides, --split and --where")
        return sorted(keep)


def select(rows: Sequence[dict[str, Any]], where: str) -> set[str]:
    """Ids of the slides for which an SQL expression is true, as SQLite understands it.

    >>> rows = [{"slide_id": "a", "n": 3}, {"slide_id": "b", "n": 5}]
    >>> select(rows, "n > 4 OR slide_id LIKE 'z%'")
    {'b'}
    """
    names = sorted({name for row in rows for name in row})
    # NUMERIC: a user's own columns are text, and '2' should be equal to 2 and to '2'
    columns = ", ".join('"' + name.replace('"', '""') + '" NUMERIC' for name in names)
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.execute(f"CREATE TABLE slides ({columns})")
        values = [[row.get(name) for name in names] for row in rows]
        database.executemany(f"INSERT INTO slides VALUES ({', '.join('?' for _ in names)})", values)
        database.set_authorizer(_only_reads)
        try:
            found = database.execute(f"SELECT rowid FROM slides WHERE ({where}\n)").fetchall()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise OptionError(
                f"--where {where!r:.200}: {files.first_line(error)}; columns are {', '.join(names)}"
            ) from None
    return {rows[number - 1]["slide_id"] for (number,) in found}


def _only_reads(action: int, first: str | None, *rest: str | None) -> int:
    """Let an expression read the one table and call functions; no attaching, no pragmas, no other table."""
    allowed = action in _SQL_READS and (action != sqlite3.SQLITE_READ or first == "slides")
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def subset(
    store: StoreLike, out: Path, selection: Selection, start: Callable[[int], None], progress: Progress
) -> Shared:
    """A store of some of the slides and seeds of another.

    Raises
    ------
    OptionError
        When the selection is not one, or selects nothing.
    """
    if selection.seeds is not None and selection.seeds < 1:
        raise OptionError(f"--seeds {selection.seeds}: allowed is 1 or more")
    source = Source(store)
    keep = selection.choose(source.rows)
    result = Shared(left_out=[f"{store}/{name}" for name in source.unknown])
    start(len(keep))
    request: dict[str, Any] = {"command": "subset", "store": str(store), "recipe": source.recipe.digest()}
    request |= {"slides": keep, "seeds": selection.seeds, "pixels": selection.pixels}
    with staged(out, request) as stage:
        for slide_id in keep:
            names = source.files.get(slide_id, [])
            if not selection.pixels:
                names = [name for name in names if not name.startswith(f"{pixels.ROOT}/")]
            if selection.seeds is None:
                source.copy(names, stage, result)
            else:
                _copy_seeds(source, slide_id, names, selection.seeds, stage, result)
            progress(1, slide_id)
        groups = [f"{features.ROOT}/zarr.json", *([f"{pixels.ROOT}/zarr.json"] if selection.pixels else [])]
        source.copy([name for name in groups if name in source.listed], stage, result)
        source.copy(options_files(source), stage, result)
        finish(stage, source.recipe, [source.rows[name] for name in keep], result)
    return result


def _copy_seeds(
    source: Source, slide_id: str, names: Iterable[str], n_seeds: int, stage: Path, result: Shared
) -> None:
    """Copy a slide with fewer seeds: the first axis of its arrays is cut, so are commit records that go beyond."""
    cut = tuple(f"{features.array_name(slide_id, leaf)}/" for leaf in _SEED_AXIS)
    plain: list[str] = []
    for name in names:
        if name.startswith("manifest/views/"):
            continue
        if not name.startswith(cut):
            plain.append(name)
        elif not name.endswith("zarr.json"):
            if int(name.split("/c/")[1].split("/")[0]) < n_seeds:
                plain.append(name)
        else:
            arrays.read_metadata(
                source.store, name.removesuffix("/zarr.json")
            )  # says what is wrong with them
            about = json.loads(arrays.read_file(source.store, name, 1 << 20) or b"{}")
            about["shape"][0] = min(n_seeds, about["shape"][0])
            files.write_text(stage / name, json.dumps(about, indent=2))
    source.copy(plain, stage, result)
    for commit in manifest.commits(source.store, slide_id):
        seeds = range(commit.seeds.start, min(commit.seeds.stop, n_seeds))
        if seeds == commit.seeds:
            source.copy([f"manifest/views/{slide_id}/{commit.path.name}"], stage, result)
        elif seeds:
            table = commit.read()
            manifest.write_commit(
                stage, slide_id, commit.block, seeds, table.filter(pc.less(table["seed"], n_seeds))
            )
