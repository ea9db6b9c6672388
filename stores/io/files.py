"""Writing files so that a kill or a power cut leaves the old file or the new one, never half of one."""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stores.errors import DiskFull, G2LError, OptionError, StoreError
from stores.io.text import human_bytes

PARTIAL = ".partial"
_FULL_BYTES = 64 << 10
MARGIN_BYTES = 16 << 20
"""Left free, for the small files around a large one."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, cut to one line for use inside our own."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def fsync_path(path: Path) -> None:
    """Flush a file or a folder (its list of names) to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed onto `path`.

    The name ends in ``.partial`` and carries the process id, so that two writers do not share it.
    """
    with _partial(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that nobody else can read
        fsync_path(partial)
        os.replace(partial, path)
        fsync_path(path.parent)


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically, as with `replacing`, from its parts; with 11 system calls, not 20."""
    with _partial(path) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            for part in parts:
                left = memoryview(part).cast("B")
                while left:
                    left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)
        fsync_path(path.parent)


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """The temporary path beside `path`, in a folder that is there; removed after an error."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # torch and safetensors do not say in their errors that a disk is full
        full = isinstance(error, Exception) and (is_full(error) or free_bytes(path) < _FULL_BYTES)
        if full and not isinstance(error, G2LError):
            raise DiskFull(
                f"{path}: the disk is full; all that was committed is kept: make room, run it again"
            ) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically, UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN is refused: JSON has none."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def parse_json(text: str) -> Any:
    """Parse JSON; numbers that JSON does not have (NaN, infinity) are a ValueError, as any other mistake."""

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


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder while a command writes into it; it ends with the process, however that ends.

    Raises
    ------
    OptionError
        When another process holds it. File systems that know no locks are trusted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(
                f"{folder}: another command is writing into it; wait until it is done, or stop it first"
            ) from None
        except OSError:
            pass  # some network file systems have no locks on folders
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            folder.rmdir()  # nothing was written


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
