"""Pseudonyms: keyed hashes of slide ids, patient ids, file names and fingerprints.

The same key gives the same pseudonym every time, so that later exports of a lab fit the earlier ones. A guess cannot be
tested without the key. The hash is written in consonants, so that no number or word appears in it by chance.
"""

import csv
import hashlib
import hmac
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stores.errors import OptionError, StoreError
from stores.io import files
from stores.io.text import csv_cell, utf8

MIN_KEY_BYTES = 16
_MAX_KEY_BYTES = 1 << 16
_LETTERS = 24
"""Of 4 bits each: among a million names two share one with a probability of 6e-18."""
_CONSONANTS = str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst")
_PREFIX = {"slide": "s-", "patient": "p-", "file": "f-", "fingerprint": "keyed-"}
_KEYED = re.compile(f"keyed-[bcdfghjklmnpqrst]{{{_LETTERS}}}")
_COLUMNS = {"slide_id": "slide", "patient_id": "patient", "file_name": "file", "fingerprint": "fingerprint"}


def is_keyed(fingerprint: str | None) -> bool:
    """Whether a fingerprint is a pseudonym: then no slide file can be matched to its slide."""
    return fingerprint is not None and _KEYED.fullmatch(fingerprint) is not None


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Pseudonyms under a key. It remembers them, and refuses to give one to two names."""

    key: bytes = field(repr=False)
    _given: dict[str, tuple[str, str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fresh(self) -> "Pseudonyms":
        """The same key, with nothing given yet."""
        return Pseudonyms(self.key)

    @property
    def key_id(self) -> str:
        """A short hash that distinguishes keys and does not reveal them."""
        return self._hash("key-id", "")[:16]

    def _hash(self, kind: str, text: str) -> str:
        message = f"g2l {kind}\0{text}".encode()
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:_LETTERS].translate(_CONSONANTS)

    def of(self, kind: str, text: str) -> str:
        """The pseudonym of a name; `kind` is ``slide``, ``patient``, ``file`` or ``fingerprint``.

        Raises
        ------
        StoreError
            When another name of that kind has the same.
        """
        pseudonym = _PREFIX[kind] + self._hash(kind, text)
        before = self._given.setdefault(pseudonym, (kind, text))
        if before != (kind, text):
            raise StoreError(f"{kind} {before[1]!r} and {text!r} get the same pseudonym; use another key")
        return pseudonym

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the slides table with every name replaced; an empty one stays empty."""
        changed = []
        for row in rows:
            new = dict(row)
            for column, kind in _COLUMNS.items():
                if row[column]:
                    new[column] = self.of(kind, row[column])
            changed.append(new)
        return changed

    def given(self) -> frozenset[str]:
        """All pseudonyms given so far."""
        return frozenset(self._given)

    def mapping(self) -> str:
        """CSV of kind, original and pseudonym, for the lab itself; see `stores.io.text.csv_cell`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("kind", "original", "pseudonym"))
        for row in sorted((*name, pseudonym) for pseudonym, name in self._given.items()):
            writer.writerow(map(csv_cell, row))
        return text.getvalue()


def read_key(path: Path) -> Pseudonyms:
    """The key in a file, without the white space at its end.

    Raises
    ------
    OptionError
        When it cannot be read, or holds less than 16 bytes.
    """
    remedy = f"make one with `openssl rand -hex 32 > {path}`, and keep it secret"
    try:
        with path.open("rb") as file:
            key = file.read(_MAX_KEY_BYTES).rstrip()
    except OSError as error:
        raise OptionError(
            f"--pseudonymise {path}: no readable key file ({error.strerror}); {remedy}"
        ) from None
    if len(key) < MIN_KEY_BYTES:
        raise OptionError(
            f"--pseudonymise {path}: a key of {len(key)} bytes can be guessed, {MIN_KEY_BYTES} are needed; {remedy}"
        )
    return Pseudonyms(key)


def check_mapping(path: Path, text: str, store: object, out: Path) -> None:
    """Raise OptionError when the mapping would leave with the export, or replace another file."""
    for folder, flag in ((out, "--out"), (store, "the store")):
        if isinstance(folder, Path) and path.resolve().is_relative_to(folder.resolve()):
            raise OptionError(
                f"--mapping {path}: lies within {flag} {folder}, and would leave with it; choose a private place"
            )
    if path.exists() and (not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text):
        raise OptionError(f"--mapping {path}: exists already; choose another name, nothing is overwritten")


def write_mapping(path: Path, text: str) -> None:
    """Write the mapping, readable by its owner alone from the first byte on."""
    files.make_folder(path.parent)
    files.sweep_partials_of(path)
    partial = files.partial_of(path)
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(utf8(text))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    files.fsync_path(path.parent)
