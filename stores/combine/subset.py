"""``store subset``: a store of some of the slides and seeds of another."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stores.combine.copy_slide import Shared, Source, copy_slide, from_one
from stores.combine.merge import begin, finish
from stores.combine.where import select
from stores.errors import OptionError, StoreError
from stores.format import layout, manifest
from stores.format.layout import read_options
from stores.format.splits import count_splits, split_warnings
from stores.io import files
from stores.io.foreign import TABLE_BYTES, is_regular, read_text
from stores.io.location import StoreLike
from stores.io.progress import SILENT, Reporter
from stores.io.staging import staged
from stores.io.table import Table, match_slides, read_table

_EXTRACTED = layout.options_file("extract-teacher")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a subset keeps. A slide must fit every condition that is given."""

    slides: tuple[str, ...] = ()
    """Ids; see `read_ids`."""
    splits: tuple[str, ...] = ()
    seeds: int | None = None
    """Seeds 0 to N-1."""
    where: tuple[str, ...] = ()
    """Conditions ``COLUMN=VALUE`` on the slides table; see `select`."""
    pixels: bool = True
    tokens: bool = True
    attention: bool = True

    def choose(self, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Ids of the slides that are kept, sorted.

        Raises
        ------
        OptionError
            When an id, a split, a column or a value is unknown, or nothing is left.
        """
        names = {slide_id: row["file_name"] for slide_id, row in rows.items()}
        meant = match_slides(dict.fromkeys(self.slides), names, "--slides", some=False)
        unknown = sorted(set(self.slides) - set(meant))
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
            raise OptionError(
                f"--slides {unknown[0]!r:.220}: no such slide in the store of {len(rows)}{more}"
            )
        wrong = sorted(set(self.splits) - set(manifest.SPLITS))
        if wrong:
            raise OptionError(f"--split {wrong[0]!r:.40}: allowed: {', '.join(manifest.SPLITS)}")
        keep = set(meant.values() if self.slides else rows)
        if self.splits:
            keep = {name for name in keep if rows[name]["split"] in self.splits}
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
        if not is_regular(Path(text)):
            found.append(text)
            continue
        try:
            lines = read_text(Path(text), TABLE_BYTES).splitlines()
        except (OSError, UnicodeDecodeError, StoreError) as error:
            raise OptionError(f"--slides {text}: cannot be read ({files.first_line(error)})") from None
        named = [line.strip() for line in lines if line.strip()]
        if named and re.search(r"\bslide_id\b", named[0], re.I):
            named = [row["slide_id"] for row in _table_of(Path(text), f"--slides {text}").rows]
        if not named:
            raise OptionError(f"--slides {text}: names no slide")
        found += named
    return tuple(found)


def _table_of(path: Path, what: str) -> Table:
    table = read_table(path, what, ("slide_id",))
    table.require("slide_id")
    return table


def _options_of(selection: Selection) -> dict[str, Any]:
    """The options with which extract-teacher would make the subset: it compares them when it continues a store."""
    without: dict[str, Any] = {"pixels": False} if not selection.pixels else {}
    without |= {"tokens": None} if not selection.tokens else {}
    return without | ({"attention": False} if not selection.attention else {})


def subset(store: StoreLike, out: Path, selection: Selection, report: Reporter = SILENT) -> Shared:
    """Write a store of some slides and seeds of another. Call it again after an interruption: it continues.

    Raises
    ------
    OptionError
        When the selection is wrong, or selects nothing.
    """
    source = Source(store)
    keep = selection.choose(source.rows)
    n_seeds = selection.seeds
    if n_seeds is not None and n_seeds < 1:
        raise OptionError(f"--seeds {n_seeds}: allowed is 1 or more")
    chosen = asdict(selection) | {"slides": keep, "where": list(selection.where) or None}
    if selection.attention:  # earlier versions did not say it
        del chosen["attention"]
    request = {"command": "subset", "store": [str(source), source.identity()], **chosen}
    result = begin(out, [source])
    report.start("subset", len(keep))
    with staged(out, files.parse_json(files.json_text(request))) as stage:
        for slide_id in keep:
            choice = from_one(
                source, slide_id, n_seeds, selection.pixels, selection.tokens, selection.attention
            )
            copy_slide(slide_id, choice, n_seeds, stage, result)
            report.advance(1, slide_id)
        source.copy(
            [name for name in (layout.options_file("tile"), _EXTRACTED) if name in source.listed],
            stage,
            result,
        )
        stored = source.recipe if selection.tokens else replace(source.recipe, tokens=None)
        if stored.tokens != source.recipe.tokens:
            result.notes.append(f"without tokens it is another store: recipe {stored.digest()[:12]}")
        if stored.attention is not None and not selection.attention:
            stored = replace(stored, attention=None)
            result.notes.append(f"without attention it is another store: recipe {stored.digest()[:12]}")
        if _EXTRACTED in source.listed and _options_of(selection):
            extracted = read_options(stage, "extract-teacher")
            files.write_json(stage / _EXTRACTED, extracted | _options_of(selection))
        files.write_json(stage / layout.options_file("subset"), {**chosen, "sources": result.sources})
        rows = [source.rows[name] for name in keep]
        finish(stage, stored, rows, result)
        if not selection.splits:
            result.warnings += split_warnings(count_splits(rows))
    return result
