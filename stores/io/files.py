"""Writing files: after a kill or a power cut there is the old file or the new one, never half of one."""

import contextlib
import errno
import glob
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stores.errors import DiskFull, G2LError, OptionError, StoreError
from stores.io.foreign import TEXT_BYTES, read_regular
from stores.io.text import human_bytes, is_utf8, utf8

PARTIAL = ".partial"
LOGS = "logs"
"""Folder with the logs of the commands that made a store. It is no part of the store: no copy or seal includes it."""
RUN_LOG = "log.jsonl"
"""The log of a run, in its folder."""
_LEFT_FILE = re.compile(rf"(\..+|.+\.[0-9a-f]{{32}}){re.escape(PARTIAL)}|\.tmp[A-Za-z0-9]{{6}}")
"""Unfinished files: ours, Zarr's, and those of safetensors, which writes beside the file that it is given."""
_LEFT_FOLDER = re.compile(rf"(\..+\.\d+|tmp\w{{8}}){re.escape(PARTIAL)}")
"""Unfinished folders, which earlier versions made in a store."""
_FULL_BYTES = 64 << 10
_QUOTED_NUMBER = re.compile(r"(?:\(os error |\berrno = )(\d{1,5})\b")
MAX_DEPTH = 64
"""Greatest depth of objects and lists in JSON: copying, comparing and writing it are recursive."""
_DEEP = f"nested more than {MAX_DEPTH} deep"
_TOO_LARGE, _WHOLE_DIGITS = 1 << 64, 21
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
_MOST_FLUSHED = 1 << 14
"""That many are remembered: each chunk of pixels has a folder, and those of 1,000 slides would take 600 MB."""
_CANNOT_FLUSH = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS, errno.ENOTSUP)


def make_folder(*folders: Path) -> None:
    """Make folders and their parents where they are missing, and flush the entry of each to the disk.

    A power cut takes a folder whose entry was not flushed, with all the flushed files in it. Folders that are there
    are flushed once by each process: another one may have made them a moment ago. Several folders at once cost little
    more than one, since the first flush takes the others along.
    """
    unsure: set[Path] = set()
    for folder in map(Path.absolute, folders):
        while (
            folder != folder.parent and folder not in unsure and not (folder in _FLUSHED and folder.is_dir())
        ):
            unsure.add(folder)
            folder = folder.parent
    made: set[Path] = set()
    for each in sorted(unsure, key=lambda path: len(path.parts)):
        if not each.is_dir():
            each.mkdir(exist_ok=True)
            made.add(each.parent)
    for parent in {each.parent for each in unsure}:
        try:
            fsync_path(parent)
        except OSError as error:
            if parent in made or error.errno not in _CANNOT_FLUSH:  # folders far above may be closed to us
                raise
    if len(_FLUSHED) + len(unsure) > _MOST_FLUSHED:
        _FLUSHED.clear()  # they are flushed once more when they are used again
    _FLUSHED.update(unsure)


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
    OSError
        When the system refuses to write, also where a library reports that as an error of its own.
    """
    partial = partial_of(path)
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
        if isinstance(error, G2LError) or not isinstance(error, Exception):
            raise
        if is_full(error) or free_bytes(path) < _FULL_BYTES:  # not every library says why it could not write
            raise DiskFull(
                f"{path}: the disk is full; all that was committed is kept: make room, run it again"
            ) from None
        numbers = [] if isinstance(error, OSError) and error.errno else _system_errors(error)
        if numbers:
            raise OSError(numbers[0], os.strerror(numbers[0]), str(path)) from None
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


def partial_of(path: Path) -> Path:
    """The name under which this process writes what becomes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


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


def parse_json(text: str, finite: bool = True) -> Any:
    """Parse JSON of unknown origin.

    Parameters
    ----------
    finite : bool
        Refuse NaN and infinity, which JSON does not have.

    Raises
    ------
    ValueError
        When it is not JSON, nested more than `MAX_DEPTH` deep, or has a whole number of more than 64 bits.
    """

    def real(number: str) -> float:
        value = float(number)
        if finite and not math.isfinite(value):
            raise ValueError(f"number {number[:80]} is not finite")
        return value

    def whole(number: str) -> int:
        value = int(number) if len(number) <= _WHOLE_DIGITS else _TOO_LARGE
        if abs(value) >= _TOO_LARGE:
            raise ValueError(f"number {number[:80]} has more than 64 bits")
        return value

    try:
        value = json.loads(text, parse_constant=real, parse_float=real, parse_int=whole)
    except RecursionError:
        raise ValueError(_DEEP) from None
    if deeper_than(value, MAX_DEPTH):
        raise ValueError(_DEEP)
    return value


def deeper_than(value: Any, depth: int) -> bool:
    """Whether objects and lists are nested deeper than `depth`; deeper levels are not visited."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(deeper_than(item, depth - 1) for item in inner)


def read_json(
    path: Path, limit_bytes: int = TEXT_BYTES, finite: bool = False, inside: Path | None = None
) -> Any:
    """Read a JSON file that may come from another lab.

    Parameters
    ----------
    finite : bool
        As for `parse_json`: QuPath writes NaN into annotations.
    inside
        The folder that the file was found in, when that comes from elsewhere: see `stores.io.foreign.open_regular`.

    Raises
    ------
    StoreError
        When the file is absent, not a regular one, larger than `limit_bytes` or not JSON.
    """
    try:
        return parse_json(read_regular(path, limit_bytes, inside).decode("utf-8"), finite)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not a readable JSON file ({first_line(error)})") from None


def read_object(path: Path, inside: Path | None = None) -> dict[str, Any]:
    """As `read_json`; StoreError when it is anything but an object."""
    value = read_json(path, inside=inside)
    if not isinstance(value, dict):
        raise StoreError(f"{path}: expected a JSON object, found {value!r:.80}")
    return value


def is_unused(folder: Path) -> bool:
    """Whether a folder is absent or empty; logs, with the lock of the command that asks, do not count."""
    return not folder.exists() or all(entry.name in (LOGS, RUN_LOG) for entry in folder.iterdir())


def unfinished(root: Path) -> list[Path]:
    """The unfinished files and folders below `root`, of writers at work or killed; links are not followed.

    What a copy has not finished (`stores.io.staging`) is not among them: the same command continues it.
    """
    found, folders = [], [root]
    while folders:  # folders from elsewhere may be nested deeper than Python recurses
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        left = entry.is_file(follow_symlinks=False) and _LEFT_FILE.fullmatch(entry.name)
                    else:
                        left = _LEFT_FOLDER.fullmatch(entry.name)
                        if not entry.name.endswith(PARTIAL):
                            folders.append(Path(entry.path))
                    if left:
                        found.append(Path(entry.path))
        except OSError:
            continue  # gone just now, or its path is longer than the system allows
    return sorted(found)


def sweep_partials(root: Path) -> int:
    """Remove the unfinished files and folders that killed writers left below `root`; return how many."""
    found = unfinished(root)
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found)


def sweep_partials_of(path: Path) -> None:
    """Remove what killed processes of this machine left of one file, which lies in no folder that a command locks."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        number = partial.name.removesuffix(PARTIAL).rpartition(".")[2]
        if number.isdigit() and not is_alive(int(number)):
            partial.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this host lives; where it cannot be asked for without ending it, it counts as alive."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
    return not {errno.ENOSPC, errno.EDQUOT}.isdisjoint(_system_errors(error))


def _system_errors(error: BaseException) -> list[int]:
    """Numbers of the system's errors in an error and in those that it came from.

    Rust (safetensors) and HDF5 have errors of their own, which quote the number.
    """
    numbers: list[int] = []
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            numbers.append(seen.errno)
        else:
            numbers += [int(found[1]) for found in _QUOTED_NUMBER.finditer(str(seen))]
        seen = seen.__cause__ or seen.__context__
    return numbers
