"""Sealing: a SHA-256 of every file in the format of ``sha256sum -c``, and one digest of that to publish.

Who has the digest from another place than the store can check that nothing was changed, added or lost since.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stores.errors import StoreError
from stores.format.layout import CHECKSUMS, DIGEST, classify, limit_bytes, list_files, seal_digest
from stores.io import files
from stores.io.location import StoreLike, open_file, read_file
from stores.io.lock import only_writer
from stores.io.progress import SILENT, Reporter
from stores.io.text import counted
from stores.verify.findings import Finding

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_MAX_STRAY_BYTES = 1 << 36
"""Of a file that is not of the format, and sealed all the same."""
_PLAIN = re.compile(r"[^\x00-\x1f\x7f\\\ud800-\udfff]+")


def sha256_of(store: StoreLike, name: str) -> str:
    """SHA-256 (hex) of a file of a store, read in pieces where it is local."""
    limit = _MAX_STRAY_BYTES if classify(name) is None else limit_bytes(name)
    data = open_file(store, name, limit) if isinstance(store, Path) else read_file(store, name, limit)
    if data is None:
        raise StoreError(f"{store}/{name}: no such file")
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data:
        return hashlib.file_digest(data, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Sealed:
    """A store under seal."""

    store: str
    digest: str
    """To publish."""
    files: int
    """Those that the seal lists."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same to read."""
        return [
            f"sealed {counted(self.files, 'file')} of {self.store}",
            f"digest  {self.digest}  (publish it)",
        ]


def _hashes(store: StoreLike, names: Iterable[str]) -> Iterator[tuple[str, str | StoreError]]:
    def hashed(name: str) -> str | StoreError:
        try:
            return sha256_of(store, name)
        except StoreError as error:
            return error
        except OSError as error:
            return StoreError(files.first_line(error))

    names = list(names)
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="sha256") as pool:
        yield from zip(names, pool.map(hashed, names), strict=True)


def seal(store: Path, report: Reporter = SILENT) -> Sealed:
    """Write ``checksums.sha256`` and the digest of it.

    Raises
    ------
    OptionError
        When another command writes into the store.
    StoreError
        When a file has a name that a checksum file cannot hold on one line, or cannot be read.
    CorruptStore
        When something in the store is neither file nor folder.
    """
    if not store.is_dir():
        raise StoreError(f"{store}: no such folder")
    with only_writer(store):
        return _seal(store, report)


def _seal(store: Path, report: Reporter) -> Sealed:
    listed = {name: size for name, size in list_files(store).items() if name not in (CHECKSUMS, DIGEST)}
    for name in listed:
        if not _PLAIN.fullmatch(name):
            raise StoreError(
                f"{store}: file {name!r}: a name with control characters, with \\, or not in UTF-8; rename or "
                "remove it"
            )
    lines = []
    report.start("seal", sum(listed.values()))
    for name, found in _hashes(store, listed):
        report.advance(listed[name], name)
        if isinstance(found, StoreError):
            raise found
        lines.append(f"{found}  {name}\n")
    text = "".join(lines)
    digest = hashlib.sha256(text.encode()).hexdigest()
    files.remove(store / DIGEST)  # a kill in between leaves no digest rather than a wrong one
    files.write_text(store / CHECKSUMS, text)
    files.write_text(store / DIGEST, f"{digest}  {CHECKSUMS}\n")
    return Sealed(str(store), digest, len(listed))


def read_checksums(store: StoreLike) -> dict[str, str] | None:
    """SHA-256 by file name, as sealed; None when the store is not sealed.

    Raises
    ------
    StoreError
        When the file is not in the format of ``sha256sum``, or does not fit its own digest.
    """
    raw = read_file(store, CHECKSUMS, limit_bytes(CHECKSUMS))
    stated = read_file(store, DIGEST, limit_bytes(DIGEST))
    if raw is None:
        if stated is not None:
            raise StoreError(f"{CHECKSUMS} is missing, although {DIGEST} is there")
        return None
    if stated is None:
        raise StoreError(f"{DIGEST} is missing, although {CHECKSUMS} is there")
    if stated.split(b" ")[0] != hashlib.sha256(raw).hexdigest().encode():
        raise StoreError(f"{CHECKSUMS} does not fit {DIGEST}: one of them was changed")
    found: dict[str, str] = {}
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise StoreError(
                f"{CHECKSUMS} line {number}: {line[:80]!r} is not a checksum and a name of its own"
            )
        found[match[2]] = match[1]
    return found


def check_digest(store: StoreLike, digest: str | None) -> list[Finding]:
    """Find that a store does not carry the seal with this digest: it was changed and sealed again, or unsealed."""
    if digest is None:
        return []
    try:
        found = seal_digest(store)
    except StoreError as error:
        return [Finding(CHECKSUMS, str(error), "seal")]
    if found == digest:
        return []
    if found is None:
        problem = f"is missing: the store is not sealed, the digest that was given is {digest}"
    else:
        problem = (
            f"has the digest {found}, the one that was given is {digest}: another store, or sealed again"
        )
    return [Finding(CHECKSUMS, problem, "seal")]


def check_seal(store: StoreLike, listed: dict[str, int], report: Reporter = SILENT) -> list[Finding]:
    """Find what was changed, added or removed since a store was sealed; nothing when it is not sealed.

    Parameters
    ----------
    listed
        Files that there are, name to bytes.
    report : Reporter
        Shows the names; the bytes were counted when the structure was verified.
    """
    try:
        sealed = read_checksums(store)
    except StoreError as error:
        return [Finding(CHECKSUMS, str(error), "seal")]
    if sealed is None:
        return []
    here = {name: size for name, size in listed.items() if name not in (CHECKSUMS, DIGEST)}
    found = [
        _finding(name, "is not in the seal: added afterwards") for name in sorted(set(here) - set(sealed))
    ]
    found += [_finding(name, "is missing, the seal lists it") for name in sorted(set(sealed) - set(here))]
    for name, digest in _hashes(store, sorted(set(here) & set(sealed))):
        report.advance(0, name)
        if isinstance(digest, StoreError):
            found.append(_finding(name, f"cannot be read ({digest})"))
        elif digest != sealed[name]:
            found.append(_finding(name, "was changed after sealing: another SHA-256"))
    return found


def _finding(name: str, problem: str) -> Finding:
    known = classify(name)
    return Finding(name, problem, "seal", known.slide_id if known else None)
