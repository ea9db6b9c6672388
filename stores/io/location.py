"""Where a store is: a local folder, or a remote one behind the same few operations."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from stores.errors import CorruptStore
from stores.io.files import LOGS, PARTIAL, first_line
from stores.io.foreign import kind_of, open_regular

MAX_FOLDERS = 16
"""Depth of folders below a store; those of the format are at most seven deep."""


class RemoteFiles(Protocol):
    """A store that is read over the network. ``str()`` of it is its URL."""

    def __truediv__(self, name: str) -> Path:
        """A local copy of a small file or folder of the store (recipe, options, manifest), made when it was opened."""

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A file of the store, None when it is absent; CorruptStore when it is larger than `limit_bytes`."""

    def read_range(self, name: str, start: int, length: int) -> bytes | None:
        """Bytes of a file from `start`, fewer where it ends before; None when it is absent."""

    def list_files(self, beside: Collection[str] = ()) -> dict[str, int]:
        """Size in bytes of every file, by its name below the store; without those of the folders `beside`."""

    def entries(self, folder: str) -> dict[str, int]:
        """What is in a folder, by name: bytes of a file, 0 for a folder. Empty without it."""


StoreLike = Path | RemoteFiles
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def is_same(a: StoreLike | str, b: StoreLike | str) -> bool:
    """Whether two paths or URLs lead to one store.

    >>> is_same(Path("a"), Path("b/../a")), is_same(Path("a"), Path("b"))
    (True, False)
    """
    return os.path.realpath(str(a)) == os.path.realpath(str(b))


def names_of(stores: Sequence[object]) -> list[str]:
    """What options and figures call several stores: the last part of the path or URL of each, or 1, 2, ...

    They are numbers where two have the same last part, or one has letters that such a name cannot have.

    >>> names_of(["s3://lab/a/", "stores/b"]), names_of(["x/a", "y/a"])
    (['a', 'b'], ['1', '2'])
    """
    names = [re.split(r"[/\\]", str(store).rstrip("/\\"))[-1] for store in stores]
    if len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
        return [str(place) for place in range(1, len(names) + 1)]
    return names


def entries(store: StoreLike, folder: str) -> dict[str, int]:
    """What is in a folder of a store, by name: bytes of a file, 0 for a folder. Empty without it."""
    if not isinstance(store, Path):
        return store.entries(folder)
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(store / folder) as listed:
        for entry in listed:
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                is_folder = entry.is_dir(follow_symlinks=False)
                found[entry.name] = 0 if is_folder else entry.stat(follow_symlinks=False).st_size
    return found


def read_file(store: StoreLike, name: str, limit_bytes: int) -> bytes | None:
    """A file of the store, None when it is absent; CorruptStore when it is not a regular file, or too large."""
    if not isinstance(store, Path):
        return store.read(name, limit_bytes)
    file = open_file(store, name, limit_bytes)
    if file is None:
        return None
    with file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_range(store: StoreLike, name: str, start: int, length: int) -> bytes | None:
    """`length` bytes of a file of the store from `start`, fewer where it ends before; None when it is absent."""
    if not isinstance(store, Path):
        return store.read_range(name, start, length)
    file = open_file(store, name, 1 << 62)
    if file is None:
        return None
    with file:
        file.seek(start)
        return file.read(length)


def open_file(store: Path, name: str, limit_bytes: int) -> io.BufferedReader | None:
    """A file of a local store, open for reading; errors as in `read_file`."""
    path = store / name
    try:
        return open_regular(path, limit_bytes, inside=store)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptStore(f"{path}: cannot be read ({first_line(error)})") from None


def walk(folder: Path, odd: Callable[[str, str], None], *only: str) -> Iterator[tuple[str, int]]:
    """(name, size) of every file below a folder, sorted; calls ``odd(name, what)`` for links, devices and the like.

    Folders that are nested deeper than any of a store are odd too, and are not looked into. Logs are left out, since
    they are no part of a store; what is odd in them is not, since commands write there.

    Parameters
    ----------
    only
        Names in the folder, to look at them and below them alone.
    """
    for name, size in _below(folder, odd, only):
        # what ends in .partial, file or folder, is of a command at work or of one that was killed
        if not name.startswith(f"{LOGS}/") and f"{PARTIAL}/" not in f"{name}/":
            yield name, size


def odd_below(folder: Path, *only: str) -> Iterator[tuple[Path, str]]:
    """(path, what it is) of everything below a folder that is neither a file nor a folder.

    Parameters
    ----------
    only
        Names in the folder, to look at them and below them alone.
    """
    found: list[tuple[Path, str]] = []
    for _ in _below(folder, lambda name, what: found.append((folder / name, what)), only):
        pass
    return iter(found)


def _below(
    folder: Path, odd: Callable[[str, str], None], only: tuple[str, ...] = ()
) -> Iterator[tuple[str, int]]:
    """As `walk`, logs and unfinished files too. Without recursion, which folders from elsewhere may exceed."""
    root = str(folder)
    waiting = [("", iter([entry for entry in _entries(root) if not only or entry.name in only]))]
    while waiting:
        prefix, entries = waiting[-1]
        entry = next(entries, None)
        if entry is None:
            waiting.pop()
            continue
        name = prefix + entry.name
        try:
            # as the listing says: a large store has more folders than files
            if entry.is_dir(follow_symlinks=False):
                if len(waiting) > MAX_FOLDERS:
                    odd(name, f"a folder below {MAX_FOLDERS} others")
                else:
                    waiting.append((f"{name}/", iter(_entries(os.path.join(root, name)))))
                continue
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # another process has just removed it
            continue
        if (kind := kind_of(status.st_mode)) is not None:
            odd(name, kind)
        else:
            yield name, status.st_size


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
