"""The self-check of a pseudonymised export: nothing in it that no export has, and no name that was replaced.

Names can be where text is: in the names of files, in JSON, in the text columns and the footers of Parquet. All of
these are read again; chunks hold numbers. What `allowed` lists is compared with its lists, so that a name of any
length is found there, also one that stands in no table. In what is free text (the recipe's names, the licence, columns
that were asked for) a name of the tables counts when it stands by itself, and from 8 characters on also inside of other
text.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stores.errors import CorruptStore, OptionError, StoreError
from stores.export.allowed import COLUMN_VALUES, array_metadata, check_recipe, public_options, strings
from stores.export.deidentify import own_columns
from stores.format import layout, manifest, oblong, recipe
from stores.format.index import read_index
from stores.format.layout import CHECKSUMS, DIGEST, METADATA, classify
from stores.io import files
from stores.io.location import StoreLike

_SAFE_LENGTH = 8
_TEXT_LENGTH = 4
WORDS = frozenset((*manifest.SPLITS, manifest.OK, manifest.BAD_READ, "slide", "option", "csv"))
"""Values that every store has: they do not give away a slide of the name ``test``."""
_ID_COLUMNS = ("slide_id", "patient_id", "file_name", "fingerprint")
"""Of the slides table."""
_STAYS = ("README.md", "croissant.json", CHECKSUMS, DIGEST)
_FOOTER = frozenset((manifest.CHECKSUM_KEY, b"ARROW:schema"))
_Look = Callable[[str, int], str | None]
"""`Originals.in_text`, which looks at the same text once: a store repeats its few texts in every slide."""


class Originals:
    """The names that an export must not hold: ids, file names and their stems, fingerprints."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        texts = {str(row[column]) for row in rows for column in _ID_COLUMNS if row[column]}
        texts |= {PurePosixPath(row["file_name"]).stem for row in rows if row["file_name"]}
        self._texts = sorted(texts)
        self._words = {text.casefold(): text for text in self._texts}
        self._long = [text for text in self._texts if len(text) >= _SAFE_LENGTH]

    def in_text(self, text: str, shortest: int = _TEXT_LENGTH) -> str | None:
        """A name that `text` holds, by itself or, if long, inside of other text; upper and lower case are equal."""
        folded = text.casefold()
        for name in self._long:
            if name.casefold() in folded:
                return name
        for start, end in _stretches(folded):
            word = folded[start:end]
            if len(word) >= shortest and word in self._words:
                return self._words[word]
        return None


def _stretches(text: str) -> Iterator[tuple[int, int]]:
    """Every stretch of `text` that begins and ends at the edge of a word, up to 16 words long."""
    words = [match.span() for match in re.finditer(r"[^\W_]+", text)]
    for first, (start, _) in enumerate(words):
        for _, end in words[first : first + 16]:
            yield start, end


def check_columns(rows: Sequence[Mapping[str, Any]], keep: Sequence[str], originals: Originals) -> None:
    """Raise OptionError when a kept column of the user's own does not exist, or holds an original name."""
    own = own_columns(rows)
    for column in keep:
        if column not in own:
            raise OptionError(f"--keep-column {column}: no such column; there are {', '.join(own) or 'none'}")
        for row in rows:
            found = originals.in_text(row[column] or "", shortest=1)
            if found is not None:
                raise OptionError(
                    f"--keep-column {column}: holds the original name {found!r}; leave it out, nothing was exported"
                )


def check_texts(
    store: StoreLike, stored: recipe.Recipe, rows: Sequence[Mapping[str, Any]], originals: Originals
) -> None:
    """Check texts that are copied as they are before hours of copying, not only after."""
    texts = [*strings(stored.to_json()), *sorted({row["vendor"] or "" for row in rows})]
    for text in texts:
        found = originals.in_text(text)
        if found is not None:
            raise StoreError(
                f"{store}: {text!r:.80} in its recipe or vendors holds {found!r}, a name that must not leave"
            )


def check_export(
    stage: Path,
    names: Iterable[str],
    issued: frozenset[str],
    originals: Originals,
    kept: Sequence[str],
    advance: Callable[[str], None],
) -> None:
    """Read every text of a finished export again.

    Parameters
    ----------
    names
        Its files, below `stage`.
    issued
        All pseudonyms: columns and file names that hold ids may hold nothing else.
    kept
        The user's own columns that were asked for.
    advance
        Called with the name of each file that is in order.

    Raises
    ------
    StoreError
        When an original name is found, or something that no export has; says in which file.
    """
    look = functools.lru_cache(1 << 16)(originals.in_text)
    for name in names:
        known = classify(name)
        if (
            known is None
            or known.kind == "picture"
            or name in _STAYS
            or (known.slide_id is not None and known.slide_id not in issued)
        ):
            raise StoreError(f"export: {stage / name}: not a file that an export has; nothing was published")
        found = None
        if name == layout.INDEX:
            found = next((slide_id for slide_id in _indexed(stage) if slide_id not in issued), None)
        elif name.endswith(".json"):
            value = _listed_json(stage, name)
            found = None if name.endswith(METADATA) else _first(look, strings(value), issued)
        elif name.endswith(".parquet"):
            found = _in_table(stage / name, look, issued, kept)
        if found is not None:
            raise StoreError(
                f"export: {stage / name}: still holds {found!r}, which no export may hold; nothing was published"
            )
        advance(name)


def _indexed(stage: Path) -> Iterable[str]:
    """The slide ids in the index; all else that it may hold is numbers and digests, or this is an error."""
    index = read_index(stage)
    return () if index is None else index.of_slide


def _first(
    look: _Look, texts: Iterable[str], issued: frozenset[str], shortest: int = _TEXT_LENGTH
) -> str | None:
    found = (look(text, shortest) for text in texts if text not in issued and text not in WORDS)
    return next((name for name in found if name is not None), None)


def _listed_json(stage: Path, name: str) -> Any:
    """What a JSON file holds; StoreError when that is anything that no export has there."""
    path = stage / name
    value = files.read_json(path)
    try:
        if name == layout.RECIPE:
            stored = recipe.load(stage)
            check_recipe(stored, stage)
            wanted: Any = stored.to_json() | {"digest": stored.digest()}
        elif path.name == METADATA:
            wanted = array_metadata(path.read_bytes(), name, str(path))
        else:
            wanted = public_options(path.stem, value) if isinstance(value, dict) else None
    except StoreError:
        wanted = None
    if value != wanted:
        raise StoreError(f"export: {path}: holds more than an export does; nothing was published")
    return value


def _in_table(path: Path, look: _Look, issued: frozenset[str], kept: Sequence[str]) -> str | None:
    with path.open("rb") as raw, pq.ParquetFile(raw) as file:
        table, about = file.read(), file.metadata.metadata or {}
    schemas = (manifest.SLIDES_SCHEMA, manifest.PATCHES_SCHEMA, manifest.VIEWS_SCHEMA)
    allowed = {field.name: field.type for schema in schemas for field in schema}
    allowed |= dict.fromkeys((*kept, *oblong.COLUMNS, manifest.TILE), pa.string())
    if (set(about) | set(table.schema.metadata or ())) - _FOOTER:
        raise CorruptStore(f"{path}: metadata that no table of an export has; nothing was published")
    for field in table.schema:
        if allowed.get(field.name) != field.type or field.metadata:
            raise CorruptStore(
                f"{path}: column {field.name!r}, which was not asked for; nothing was published"
            )
        if not pa.types.is_string(field.type):
            continue
        values = [text for text in table[field.name].unique().to_pylist() if text]
        if field.name in (*_ID_COLUMNS, manifest.TILE):
            foreign = next((text for text in values if text not in issued), None)
        elif field.name in COLUMN_VALUES:
            foreign = next((text for text in values if text not in COLUMN_VALUES[field.name]), None)
        else:
            foreign = _first(look, values, issued)
        if foreign is not None:
            return str(foreign)
    return None
