"""Where a store is: a local folder, or a remote one behind the same few operations."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from stores.errors import CorruptStore
from stores.io.files import LOGS, PARTIAL, first_line

_T = TypeVar("_T")


class RemoteFiles(Protocol):
    """A store that is read over the network. ``str()`` of it is its URL."""

    def __truediv__(self, name: str) -> Path:
        """A local copy of a small file or folder of the store (recipe, options, manifest), made when it was opened."""

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A file of the store, None when it is absent; CorruptStore when it is larger than `limit_bytes`."""

    def list_files(self) -> dict[str, int]:
        """Size in bytes of every file, by its name below the store."""


StoreLike = Path | RemoteFiles


def read_file(store: StoreLike, name: str, limit_bytes: int) -> bytes | None:
    """A file of the store, None when it is absent; CorruptStore when it is not a regular file, or too large."""
    if not isinstance(store, Path):
        return store.read(name, limit_bytes)
    return read_local(store / name, limit_bytes, lambda path, _: path.read_bytes())


def read_local(path: Path, limit_bytes: int, read: Callable[[Path, int], _T]) -> _T | None:
    """The result of `read` on a file and its size; errors as in `read_file`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            what = "larger than" if stat.S_ISREG(status.st_mode) else "not a file; expected one of at most"
            raise CorruptStore(f"{path}: {what} {limit_bytes} bytes")
        return read(path, status.st_size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptStore(f"{path}: cannot be read ({first_line(error)})") from None


def _odd(entry: os.DirEntry[str]) -> str:
    return "a symbolic link" if entry.is_symlink() else "a device, pipe or socket"


def odd_below(folder: Path, *only: str) -> Iterator[tuple[Path, str]]:
    """(path, what it is) of everything below a folder that is neither a file nor a folder.

    Parameters
    ----------
    only
        Names in the folder, to look at them and below them alone.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if only and entry.name not in only:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from odd_below(folder / entry.name)
            elif not entry.is_file(follow_symlinks=False):
                yield folder / entry.name, _odd(entry)


def walk(folder: Path, odd: Callable[[str, str], None], prefix: str = "") -> Iterator[tuple[str, int]]:
    """(name, size) of every file below a folder, sorted; calls ``odd(name, what)`` for links, devices and the like.

    Logs are left out, since they are no part of a store; what is odd in them is not, since commands write there.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name == LOGS and not prefix:
            for path, what in odd_below(folder, LOGS):
                odd(path.relative_to(folder).as_posix(), what)
            continue
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield from walk(folder / entry.name, odd, f"{prefix}{entry.name}/")
        elif not stat.S_ISREG(status.st_mode):
            odd(prefix + entry.name, _odd(entry))
        elif not entry.name.endswith(PARTIAL):
            yield prefix + entry.name, status.st_size
