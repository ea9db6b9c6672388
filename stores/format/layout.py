"""Which files a store may have, by name: what a copy takes along, and what ``verify`` calls a stray file."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.errors import CorruptStore, OptionError, StoreError
from stores.format.manifest import is_slide_id
from stores.io.files import read_json
from stores.io.location import StoreLike, walk

CHECKSUMS = "checksums.sha256"
DIGEST = "checksums.sha256.digest"
"""One line: the SHA-256 of the checksums file, to publish."""
_ROOT_FILES = {
    "recipe.json",
    "README.md",
    "croissant.json",
    CHECKSUMS,
    DIGEST,
    "manifest/slides.parquet",
    "features.zarr/zarr.json",
    "pixels.zarr/zarr.json",
}
_OPTIONS = re.compile(r"options/[a-z-]{1,40}\.json")
_CHUNK = r"c(?:/\d{1,9}){1,4}"
_OF_SLIDE = (
    ("patches", re.compile(r"manifest/patches/([^/]+)\.parquet")),
    ("commit", re.compile(r"manifest/views/([^/]+)/\d{5}-s\d{4}-\d{4}\.parquet")),
    (
        "features",
        re.compile(
            r"features\.zarr/([^/]+)/(?:zarr\.json|(?:features|coords|stats|scales|standard|tokens|positions)"
            rf"/(?:zarr\.json|{_CHUNK}))"
        ),
    ),
    ("pixels", re.compile(rf"pixels\.zarr/([^/]+)/(?:zarr\.json|{_CHUNK})")),
    ("picture", re.compile(r"pictures/([^/]+)\.png")),
)


@dataclass(frozen=True, slots=True)
class Known:
    """What a file of a store is."""

    kind: str
    """``root``, ``options``, ``patches``, ``commit``, ``features``, ``pixels`` or ``picture``."""
    slide_id: str | None


def classify(name: str) -> Known | None:
    """What the file `name` (with ``/``, below the store) is; None when no store has such a file.

    >>> classify("features.zarr/a/features/c/0/1/0")
    Known(kind='features', slide_id='a')
    >>> classify("features.zarr/../x/features/c/0") is None
    True
    """
    if name in _ROOT_FILES:
        return Known("root", None)
    if _OPTIONS.fullmatch(name):
        return Known("options", None)
    for kind, pattern in _OF_SLIDE:
        match = pattern.fullmatch(name)
        if match and is_slide_id(match[1]):
            return Known(kind, match[1])
    return None


def list_files(store: StoreLike, only_plain: bool = True) -> dict[str, int]:
    """Size in bytes of every file below a store, by name; unfinished ``*.partial`` files are left out.

    Raises
    ------
    CorruptStore
        When there is a symbolic link, device or socket and `only_plain` is set: a link may lead outside, and a copy
        would take that along.
    """
    if not isinstance(store, Path):
        return store.list_files()

    def refuse(name: str, what: str) -> None:
        if only_plain:
            raise CorruptStore(f"{store / name}: {what}; a store consists of plain files and folders")

    return dict(walk(store, refuse))


def is_sealed(store: Path) -> bool:
    """Whether ``store seal`` was run on a local store."""
    return (store / CHECKSUMS).exists()


def require_unsealed(store: Path) -> None:
    """Raise OptionError when a store is sealed: whoever has its digest expects it to stay as it is."""
    if is_sealed(store):
        raise OptionError(
            f"{store}: is sealed; to change it delete {CHECKSUMS} and {DIGEST}, and run `g2l store seal` again after"
        )


def by_slide(names: Iterable[str]) -> dict[str, list[str]]:
    """The known files of each slide, sorted; files of no slide are left out."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        known = classify(name)
        if known is not None and known.slide_id is not None:
            found.setdefault(known.slide_id, []).append(name)
    return found


def read_options(store: StoreLike, command: str) -> dict[str, Any]:
    """The options that a command made a store with; empty when they are not there: they only inform."""
    path = store / "options" / f"{command}.json"
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise StoreError(f"{path}: expected an object, found {value!r:.80}")
    return value
