"""The self-check of a pseudonymised export: no file may still hold a name that was replaced.

What can be decoded is read as text: the names of files, every string in JSON, every text column of Parquet. There a
name counts when it stands by itself, and from 8 characters on also inside of other text. Raw bytes are searched for
names of at least 8 bytes: compressed chunks are as good as random, 100 GB of them hold any 4 bytes some 23 times and
any 8 bytes not once.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stores.errors import CorruptStore, OptionError, StoreError
from stores.export.deidentify import own_columns
from stores.format import manifest, recipe
from stores.format.layout import classify
from stores.io import files
from stores.io.location import StoreLike

_SAFE_LENGTH = 8
_TEXT_LENGTH = 4
_WORDS = frozenset((*manifest.SPLITS, manifest.OK, manifest.BAD_READ, "slide", "option", "csv"))
"""Values that every store has: a slide of the name ``test`` is not told by them."""
_ID_COLUMNS = ("slide_id", "patient_id", "file_name", "fingerprint")
_MAX_JSON_BYTES = 16 << 20


class Originals:
    """The names that an export must not hold: ids, file names and their stems, fingerprints."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        texts = {str(row[column]) for row in rows for column in _ID_COLUMNS if row[column]}
        texts |= {PurePosixPath(row["file_name"]).stem for row in rows if row["file_name"]}
        self._texts = sorted(texts)
        self._words = {text.casefold(): text for text in self._texts}
        self._long = [text for text in self._texts if len(text) >= _SAFE_LENGTH]
        self._needles: dict[bytes, list[bytes]] = {}
        for text in self._texts:
            raw = text.encode()
            if len(raw) >= _SAFE_LENGTH:
                self._needles.setdefault(raw[:4], []).append(raw)
        self._pairs = np.zeros((2, 1 << 16), bool)  # which two bytes a needle begins with, and goes on with
        for start in self._needles:
            self._pairs[0, int.from_bytes(start[:2], "little")] = True
            self._pairs[1, int.from_bytes(start[2:], "little")] = True

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

    def in_bytes(self, raw: bytes) -> str | None:
        """A name of at least 8 bytes that `raw` holds."""
        if len(raw) < _SAFE_LENGTH or not self._needles:
            return None
        data = np.frombuffer(raw, np.uint8)
        pairs = data[:-1] | data[1:].astype(np.uint16) << 8
        starts = np.flatnonzero(self._pairs[0][pairs[:-2]])
        for start in starts[self._pairs[1][pairs[starts + 2]]].tolist():
            for needle in self._needles.get(raw[start : start + 4], ()):
                if raw.startswith(needle, start):
                    return needle.decode()
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
    """What is copied word by word is looked at before hours of copying, not only after."""
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
    """Read every file of a finished export again.

    Parameters
    ----------
    names
        Its files, below `stage`.
    issued
        All pseudonyms: nothing else may stand in a column or file name that holds ids.
    kept
        The user's own columns that were asked for.
    advance
        Told the name of each file that is in order.

    Raises
    ------
    StoreError
        When an original name is found; says in which file.
    """
    for name in names:
        known = classify(name)
        if known is None or (known.slide_id is not None and known.slide_id not in issued):
            raise StoreError(f"export: {stage / name}: not a file that an export has; nothing was published")
        raw = (stage / name).read_bytes()
        found = originals.in_bytes(raw)
        if found is None and known.kind in ("root", "options") and name.endswith(".json"):
            found = _first(originals, strings(files.read_json(stage / name, _MAX_JSON_BYTES)), issued)
        if found is None and name.endswith(".parquet"):
            found = _in_table(stage / name, raw, issued, originals, kept)
        if found is not None:
            raise StoreError(
                f"export: {stage / name}: still holds {found!r}, an original name; nothing was published"
            )
        advance(name)


def _first(originals: Originals, texts: Iterable[str], issued: frozenset[str]) -> str | None:
    found = (originals.in_text(text) for text in texts if text not in issued | _WORDS)
    return next((name for name in found if name is not None), None)


def strings(value: Any) -> Iterator[str]:
    """Every string of a JSON value but the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def _in_table(
    path: Path, raw: bytes, issued: frozenset[str], originals: Originals, kept: Sequence[str]
) -> str | None:
    table = pq.read_table(pa.BufferReader(raw))
    schemas = (manifest.SLIDES_SCHEMA, manifest.PATCHES_SCHEMA, manifest.VIEWS_SCHEMA)
    allowed = {name for schema in schemas for name in schema.names} | set(kept)
    for column in table.column_names:
        if column not in allowed:
            raise CorruptStore(f"{path}: column {column!r}, which was not asked for; nothing was published")
        if not pa.types.is_string(table[column].type):
            continue
        values = [text for text in table[column].unique().to_pylist() if text]
        if column in _ID_COLUMNS:
            foreign = next((text for text in values if text not in issued), None)
        else:
            foreign = _first(originals, values, issued)
        if foreign is not None:
            return str(foreign)
    return None
