"""Writing files: after a kill or a power cut there is the old file or the new one, never half of one."""

import contextlib
import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stores.errors import DiskFull, G2LError, OptionError, StoreError
from stores.io.text import human_bytes, is_utf8, utf8

PARTIAL = ".partial"
LOGS = "logs"
"""Folder with the logs of the commands that made a store. It is no part of the store: no copy or seal includes it."""
_FULL_BYTES = 64 << 10
MARGIN_BYTES = 16 << 20
"""Stays free, for the small files around a large one."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, for use inside our own."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def require_utf8(path: Path) -> None:
    """Raise OptionError when a path is not UTF-8: safetensors reads no other, and calls the file damaged."""
    if not is_utf8(str(path)):
        raise OptionError(
            f"{path}: a path that is not UTF-8, and safetensors reads no other; rename its folders"
        )


def fsync_path(path: Path) -> None:
    """Flush a file or a folder (its list of names) to the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot flush a folder
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_FLUSHED: set[Path] = set()
"""Folders whose entries in their parents this process has flushed."""
_CANNOT_FLUSH = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS, errno.ENOTSUP)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents where they are missing, and flush the entry of each to the disk.

    A power cut takes a folder whose entry was not flushed, with all the flushed files in it. Folders that are there
    are flushed once by each process: another one may have made them a moment ago.
    """
    missing: list[Path] = []
    folder = folder.absolute()
    while folder != folder.parent and not (folder in _FLUSHED and folder.is_dir()):
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        is_new = not each.is_dir()
        if is_new:
            each.mkdir(exist_ok=True)
        try:
            fsync_path(each.parent)
        except OSError as error:
            if is_new or error.errno not in _CANNOT_FLUSH:  # folders far above may be closed to us
                raise
        _FLUSHED.add(each)


def remove(path: Path) -> None:
    """Remove a file, if it is there, and flush that it is gone."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        fsync_path(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed onto `path`, else removed.

    The name ends in ``.partial`` and carries the process id, so that two writers do not share it. The file is new: what
    stands under its name, which may be a link that came with a foreign folder, is removed. Neither is a link at `path`
    followed.

    Raises
    ------
    DiskFull
        When the disk is full; `path` is then as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        make_folder(path.parent)
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner can read
        fsync_path(partial)
        os.replace(partial, path)
        fsync_path(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        # torch and safetensors do not say in their errors that a disk is full
        full = isinstance(error, Exception) and (is_full(error) or free_bytes(path) < _FULL_BYTES)
        if full and not isinstance(error, G2LError):
            raise DiskFull(
                f"{path}: the disk is full; all that was committed is kept: make room, run it again"
            ) from None
        raise


def open_log(path: Path) -> IO[str]:
    """Open a log to append lines to it; its folder is made where it is missing.

    Raises
    ------
    OptionError
        When it is no plain file, or its folder ``logs`` is a link: a foreign folder may come with links, and what is
        appended would end up in another file.
    """
    make_folder(path.parent)
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would wait for its reader
    try:
        if path.parent.name == LOGS and path.parent.is_symlink():
            raise OSError(errno.ELOOP, "")
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise OptionError(
            f"{path}: not a plain file in a plain folder, so no log is written; remove it"
        ) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OptionError(f"{path}: not a plain file, so no log is written; remove it")
    return os.fdopen(handle, "a", encoding="utf-8", buffering=1)


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically, as with `replacing`, from its parts."""
    with replacing(path) as partial, partial.open("wb") as file:
        for part in parts:
            file.write(part)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically, in UTF-8; half characters, which it cannot hold, become escapes."""
    write_bytes(path, utf8(text).encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN is refused: JSON has none."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def parse_json(text: str) -> Any:
    """Parse JSON; NaN and infinity, which JSON does not have, are a ValueError, as is any other mistake."""

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f"number {number[:80]} is not finite")
        return value

    return json.loads(text, parse_constant=finite, parse_float=finite)


def read_json(path: Path, limit_bytes: int = 16 << 20, finite: bool = False) -> Any:
    """Read a JSON file that may come from another lab.

    Parameters
    ----------
    finite : bool
        Refuse NaN and infinity, which JSON does not have.

    Raises
    ------
    StoreError
        When the file is absent, larger than `limit_bytes` or not JSON.
    """
    try:
        if path.stat().st_size > limit_bytes:
            raise StoreError(f"{path}: larger than {limit_bytes} bytes, which no file of this kind is")
        text = path.read_text(encoding="utf-8")
        return parse_json(text) if finite else json.loads(text)  # QuPath writes NaN into annotations
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not a readable JSON file ({error})") from None


def is_unused(folder: Path) -> bool:
    """Whether a folder is absent or empty; logs, with the lock of the command that asks, do not count."""
    return not folder.exists() or all(entry.name == LOGS for entry in folder.iterdir())


def sweep_partials(root: Path) -> int:
    """Remove the ``*.partial`` files that killed writers left below `root`; return how many."""
    found = [path for path in root.rglob(f"*{PARTIAL}") if path.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system that `folder` is on or will be on. A quota may allow less."""
    found = folder.absolute()
    while not found.exists():
        found = found.parent
    return shutil.disk_usage(found).free


def require_free(folder: Path, size: int, what: str) -> None:
    """Raise DiskFull unless `size` bytes and a margin are free where `folder` is."""
    free = free_bytes(folder)
    if free < size + MARGIN_BYTES:
        raise DiskFull(
            f"{what}: needs {human_bytes(size)}, {folder} has {human_bytes(free)} free; "
            "all that was committed is kept: make room and start the same command again"
        )


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that a disk or quota is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
