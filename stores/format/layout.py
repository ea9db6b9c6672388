"""Every file that a store may have: its name, which slide it belongs to, and which files are strays.

Names are relative to the store and use ``/``, on every system and behind every URL. Slide ids may come from another
lab, so each name that contains one checks it.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.errors import CorruptStore, OptionError, StoreError
from stores.io.files import read_object
from stores.io.foreign import PARQUET_BYTES, TEXT_BYTES
from stores.io.location import StoreLike, read_file, walk

RECIPE = "recipe.json"
README = "README.md"
CROISSANT = "croissant.json"
CHECKSUMS = "checksums.sha256"
DIGEST = "checksums.sha256.digest"
"""One line: the SHA-256 of the checksums file, to publish."""
MAX_CHECKSUMS_BYTES = 1 << 30
MANIFEST = "manifest"
SLIDES = f"{MANIFEST}/slides.parquet"
INDEX = f"{MANIFEST}/index.parquet"
"""What the commit records hold, in short: see `stores.format.index`."""
PATCHES = f"{MANIFEST}/patches"
VIEWS = f"{MANIFEST}/views"
FEATURES = "features.zarr"
PIXELS = "pixels.zarr"
OPTIONS = "options"
PICTURES = "pictures"
METADATA = "zarr.json"
"""The file that makes a folder a Zarr group or array."""


def metadata_file(name: str) -> str:
    """The metadata of a group or an array."""
    return f"{name}/{METADATA}"


def chunk_file(array: str, index: Iterable[int]) -> str:
    """The file of a chunk of an array.

    >>> chunk_file("features.zarr/a/features", (0, 1, 0))
    'features.zarr/a/features/c/0/1/0'
    """
    return f"{array}/{chunk_key(index)}"


def chunk_key(index: Iterable[int]) -> str:
    """The name of a chunk below its array: what Zarr calls its key."""
    return f"c/{'/'.join(map(str, index))}"


def parse_chunk(name: str) -> tuple[str, tuple[int, ...]] | None:
    """The array and the index of the chunk in the file `name`; None when it is not the file of a chunk.

    >>> parse_chunk("pixels.zarr/c/c/0/1/0/0")
    ('pixels.zarr/c', (0, 1, 0, 0))
    """
    match = _CHUNK_FILE.fullmatch(name)
    return None if match is None else (match[1], tuple(map(int, match[2].split("/"))))


def array_of(name: str) -> str | None:
    """The array that a file belongs to; None when it belongs to none.

    >>> array_of("features.zarr/a/stats/zarr.json"), array_of("pixels.zarr/a/c/0/0/0/0")
    ('features.zarr/a/stats', 'pixels.zarr/a')
    >>> array_of("features.zarr/a/zarr.json") is None
    True
    """
    parts = name.split("/")
    depth = {FEATURES: 3, PIXELS: 2}.get(parts[0])
    return None if depth is None or len(parts) <= depth else "/".join(parts[:depth])


def slide_group(slide_id: str) -> str:
    """The group of a slide's arrays of features."""
    return f"{FEATURES}/{check_slide_id(slide_id)}"


def feature_array(slide_id: str, leaf: str) -> str:
    """One of the arrays in a slide's group: ``features``, ``coords``, ``stats``, ..."""
    return f"{slide_group(slide_id)}/{leaf}"


def pixel_array(slide_id: str) -> str:
    """The array of a slide's pixels."""
    return f"{PIXELS}/{check_slide_id(slide_id)}"


def patches_file(slide_id: str) -> str:
    """The table of a slide's patches."""
    return f"{PATCHES}/{check_slide_id(slide_id)}.parquet"


def views_folder(slide_id: str) -> str:
    """The folder of a slide's commit records."""
    return f"{VIEWS}/{check_slide_id(slide_id)}"


def commit_file(slide_id: str, block: int, seeds: range) -> str:
    """The commit record of a block under contiguous seeds.

    >>> commit_file("a", 2, range(0, 4))
    'manifest/views/a/00002-s0000-0003.parquet'
    """
    return f"{views_folder(slide_id)}/{block:05d}-s{seeds.start:04d}-{seeds.stop - 1:04d}.parquet"


def picture_file(slide_id: str) -> str:
    """The thumbnail of a slide with its patches."""
    return f"{PICTURES}/{check_slide_id(slide_id)}.png"


def options_file(command: str) -> str:
    """The options that `command` was last called with."""
    return f"{OPTIONS}/{command}.json"


MAX_SLIDE_ID = 200
"""Characters of a slide id: a file system takes 255 in a name, and ids get an ending."""
_SLIDE_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_SLIDE_ID - 1}}}")


def is_slide_id(text: str) -> bool:
    """Whether `text` may name a slide: it becomes a folder, so ``..`` or ``zarr.json`` may not."""
    return _SLIDE_ID.fullmatch(text) is not None and text != METADATA


def check_slide_id(text: str) -> str:
    """Return `text`, or raise CorruptStore: an id that comes from a file of another lab is untrusted."""
    if not is_slide_id(text):
        raise CorruptStore(f"slide id {text!r:.120}: allowed are letters, digits, '.', '_', '-', at most 200")
    return text


MAX_METADATA_BYTES = 64 << 10
MAX_READ_BYTES = 256 << 20
"""The most memory that one chunk, or one array that is read whole, may ask for."""
MAX_CHUNK_FILE_BYTES = MAX_READ_BYTES * 9 // 8 + 1024
"""The most that a chunk of this size takes on disk: what cannot be compressed grows by a header per block."""
_MAX_PICTURE_BYTES = 256 << 20
_LIMITS = {CHECKSUMS: MAX_CHECKSUMS_BYTES, DIGEST: 1024}
_ROOT_FILES = {
    RECIPE,
    README,
    CROISSANT,
    CHECKSUMS,
    DIGEST,
    SLIDES,
    INDEX,
    metadata_file(FEATURES),
    metadata_file(PIXELS),
}
_OPTIONS_FILE = re.compile(r"options/[a-z-]{1,40}\.json")
_CHUNK_FILE = re.compile(r"(.+)/c/(\d+(?:/\d+)*)")
_CHUNK = r"c(?:/\d{1,9}){1,4}"
_OF_SLIDE = (
    ("patches", re.compile(r"manifest/patches/([^/]+)\.parquet")),
    ("commit", re.compile(r"manifest/views/([^/]+)/\d{5}-s\d{4}-\d{4}\.parquet")),
    (
        "features",
        re.compile(
            r"features\.zarr/([^/]+)/(?:zarr\.json|(?:features|coords|stats|scales|standard|tokens|positions|attention)"
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
    if _OPTIONS_FILE.fullmatch(name):
        return Known("options", None)
    for kind, pattern in _OF_SLIDE:
        match = pattern.fullmatch(name)
        if match and is_slide_id(match[1]):
            return Known(kind, match[1])
    return None


def limit_bytes(name: str) -> int:
    """The most bytes that the file `name` of a store can have. A larger one, even a sparse one, is not read or copied.

    >>> limit_bytes("recipe.json"), limit_bytes("features.zarr/a/zarr.json")
    (4194304, 65536)
    """
    if name in _LIMITS:
        return _LIMITS[name]
    if name.endswith(METADATA):
        return MAX_METADATA_BYTES
    if name.endswith(".parquet"):
        return PARQUET_BYTES
    if name.endswith(".png"):
        return _MAX_PICTURE_BYTES
    return MAX_CHUNK_FILE_BYTES if _CHUNK_FILE.fullmatch(name) else TEXT_BYTES


def list_files(store: StoreLike, only_plain: bool = True) -> dict[str, int]:
    """Size in bytes of every file below a store, by name; unfinished ``*.partial`` files are left out.

    Raises
    ------
    CorruptStore
        With `only_plain`, when there is a symbolic link, device or socket: a link may lead outside, and its target
        would be copied; or when a file is larger than `limit_bytes` allows, such as a sparse one that fills a disk.
    """
    listed = store.list_files() if not isinstance(store, Path) else _list_local(store, only_plain)
    for name, size in listed.items() if only_plain else ():
        if size > limit_bytes(name) and classify(name) is not None:
            raise CorruptStore(
                f"{store}/{name}: {size} bytes; no file of this kind has more than {limit_bytes(name)}"
            )
    return listed


def _list_local(store: Path, only_plain: bool) -> dict[str, int]:
    def refuse(name: str, what: str) -> None:
        if only_plain:
            raise CorruptStore(f"{store / name}: {what}; a store consists of plain files and folders")

    return dict(walk(store, refuse))


def require_unchanged(store: StoreLike, listed: Mapping[str, int]) -> None:
    """Raise StoreError when files of a local store are not those that were listed: a command writes into it.

    A copy may have a commit record then that came after the listing, without its chunks.
    """
    if isinstance(store, Path) and list_files(store) != listed:
        raise StoreError(
            f"{store}: was changed while it was copied; start the same command again when no other one writes into it"
        )


def is_sealed(store: Path) -> bool:
    """Whether ``store seal`` was run on a local store."""
    return (store / CHECKSUMS).exists()


def require_unsealed(store: Path) -> None:
    """Raise OptionError when a store is sealed: others may have its digest and expect it to stay as it is."""
    if is_sealed(store):
        raise OptionError(
            f"{store}: is sealed; to change it delete {CHECKSUMS} and {DIGEST}, and run `g2l store seal` again after"
        )


def seal_digest(store: StoreLike) -> str | None:
    """The digest of a store's seal, to be compared with the one that its owner published; None without a seal."""
    raw = read_file(store, CHECKSUMS, MAX_CHECKSUMS_BYTES)
    return None if raw is None else hashlib.sha256(raw).hexdigest()


def require_digest(digest: str | None) -> None:
    """Raise OptionError unless `digest` is None or has the form of one."""
    if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
        raise OptionError(
            f"--digest {digest!r:.80}: allowed are 64 hex digits in small letters, as `g2l store seal` prints them"
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
    """The options that a command made a store with; empty when the file is absent, because options only inform."""
    path = store / options_file(command)
    return read_object(path, inside=path.parents[1]) if path.exists() else {}
