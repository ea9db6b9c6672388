"""Pseudonyms: keyed hashes of slide ids, patient ids, file names and fingerprints.

The same key gives the same pseudonyms, so that exports of one lab can be merged; without the key nobody can try out
likely ids, of which a plain hash would be no protection.
"""

import csv
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stores import manifest
from stores.errors import CorruptStore, OptionError, StoreError
from stores.files import first_line
from stores.layout import classify, list_files

_PREFIX = {"slide": "s-", "patient": "p-", "file": "f-", "fingerprint": "x-"}
_DIGITS = 24
_CHUNK = re.compile(r"/c(/\d+)+$")
_MIN_KEY_BYTES = 16
_MIN_SEARCHED = 8  # shorter ids occur in compressed data by chance; names and cells are compared whole
_HARMLESS = {"split", "status", "vendor", "mpp_source", "reason"}


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """A secret key and what follows from it."""

    key: bytes

    def of(self, kind: str, text: str) -> str:
        """The pseudonym of a ``slide``, ``patient``, ``file`` or ``fingerprint``: HMAC-SHA256, 96 bits."""
        digest = hmac.new(self.key, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()
        return _PREFIX[kind] + digest[:_DIGITS]

    @property
    def key_id(self) -> str:
        """Tells two keys apart without giving either away."""
        return hmac.new(self.key, b"key id", hashlib.sha256).hexdigest()[:16]

    def row(self, row: Mapping[str, Any], keep_columns: Iterable[str]) -> dict[str, Any]:
        """A row of the slides table that may leave: names replaced, reason and the user's own columns gone."""
        new = {name: row[name] for name in [*manifest.SLIDES_SCHEMA.names, *keep_columns]}
        for kind, name in (("slide", "slide_id"), ("patient", "patient_id"), ("file", "file_name")):
            new[name] = self.of(kind, str(row[name])) if row[name] is not None else None
        new["fingerprint"] = self.of("fingerprint", str(row["fingerprint"]))
        new["reason"] = ""
        return new


def read_key(path: Path) -> Pseudonyms:
    """The key of a file.

    Raises
    ------
    OptionError
        When there is no such file, or it holds less than 16 bytes.
    """
    try:
        key = path.read_bytes().strip()
    except OSError:
        raise OptionError(
            f"--pseudonymise {path}: no such key file; make one with `openssl rand -hex 32 > {path}`, keep it secret"
        ) from None
    if len(key) < _MIN_KEY_BYTES:
        raise OptionError(
            f"--pseudonymise {path}: a key of {len(key)} bytes can be guessed; at least {_MIN_KEY_BYTES}, for example "
            "from `openssl rand -hex 32`"
        )
    return Pseudonyms(key)


def check_mapping(path: Path, out: Path) -> None:
    """Raise OptionError when a mapping would overwrite a file, or lie in the export that it would give away."""
    if path.exists() or path.resolve().is_relative_to(out.resolve()):
        raise OptionError(f"--mapping {path}: exists already, or lies within {out}; choose another place")


def write_mapping(path: Path, names: Mapping[str, str]) -> None:
    """Write slide ids beside their pseudonyms, readable by the owner alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "pseudonym"])
        writer.writerows(sorted(names.items()))


def originals(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Everything that must not be found in an export: ids, file names and their stems, fingerprints."""
    found: set[str] = set()
    for row in rows:
        for name in ("slide_id", "patient_id", "file_name", "fingerprint"):
            if row[name]:
                found.add(str(row[name]))
        found.add(Path(str(row["file_name"])).stem)
    return found


def require_none(folder: Path, names: set[str]) -> None:
    """Raise StoreError that says where, if any of `names` is in a file's name, bytes or text columns.

    Chunks are passed over: they are numbers.
    """
    long = sorted(name for name in names if len(name) >= _MIN_SEARCHED)
    pattern = re.compile(b"|".join(re.escape(name.encode()) for name in long)) if long else None
    for file in list_files(folder):
        known = classify(file)
        if (known is not None and known.slide_id in names) or any(name in file for name in long):
            raise StoreError(f"{file}: the file's name holds an original name; nothing was exported")
        if _CHUNK.search(file):
            continue
        found = pattern.search((folder / file).read_bytes()) if pattern is not None else None
        if found:
            raise StoreError(f"{file}: holds the original name {found[0].decode()!r}; nothing was exported")
        if file.endswith(".parquet"):
            _require_none_in_table(folder / file, file, names, long)


def _require_none_in_table(path: Path, file: str, names: set[str], long: Iterable[str]) -> None:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CorruptStore(f"{file}: not a readable Parquet file ({first_line(error)})") from None
    text = [field.name for field in table.schema if str(field.type) == "string"]
    for column in set(text) - _HARMLESS:
        for value in set(table[column].to_pylist()) - {None}:
            if value in names or any(name in value for name in long):
                raise StoreError(
                    f"{file}: column {column} holds the original name {value!r:.80}; leave that column out; "
                    "nothing was exported"
                )
