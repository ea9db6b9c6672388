"""Files that somebody else may have made: regular ones only, links inside a folder not followed, size before reading.

Every reader opens such a file here. A pipe in its place would wait for ever, a device has no end, and a link may lead
to either, or to a file that is none of the owner's business.
"""

import io
import mmap
import os
import stat
from pathlib import Path

from stores.errors import CorruptStore

TEXT_BYTES = 4 << 20
"""The most that a small text file of a store or run may have: JSON takes up to 25 times its size in memory."""
TABLE_BYTES = 1 << 30
"""The most that a table of the user's own may have."""
PARQUET_BYTES = 1 << 28
"""The most that a table of a store may have, as a file."""
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def kind_of(mode: int) -> str | None:
    """What an entry that is no regular file is, in words; None when it is one."""
    if stat.S_ISREG(mode):
        return None
    return next((what for test, what in _KINDS if test(mode)), "a device")


def open_regular(path: Path, limit_bytes: int, inside: Path | None = None) -> io.BufferedReader:
    """Open a regular file of at most `limit_bytes` for reading.

    Parameters
    ----------
    inside
        A folder above `path` that comes from elsewhere: neither the file nor a folder between the two may be a
        symbolic link. The folder itself may be one. None when the user named the file, through a link or not.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        When there is no such file.
    CorruptStore
        When it is a link, pipe, device or folder, or larger.
    """
    if inside is not None:
        _require_no_link(path, inside)
    # looked at first, because opening a device can already do something; and again, because it may be another file now
    _judge(path, os.stat(path), limit_bytes)
    handle = os.open(path, _FLAGS | (0 if inside is None else _NO_LINK))
    try:
        _judge(path, os.fstat(handle), limit_bytes)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _judge(path: Path, status: os.stat_result, limit_bytes: int) -> None:
    kind = kind_of(status.st_mode)
    if kind is not None:
        raise CorruptStore(f"{path}: is {kind}, not a file")
    if status.st_size > limit_bytes:
        raise CorruptStore(f"{path}: larger than {limit_bytes} bytes, which no file of this kind is")


def _require_no_link(path: Path, inside: Path) -> None:
    at = str(inside)
    for part in path.relative_to(inside).parts:
        at = os.path.join(at, part)
        if stat.S_ISLNK(os.lstat(at).st_mode):
            raise CorruptStore(f"{at}: is a symbolic link, which is not followed; put the file itself there")


def read_regular(path: Path, limit_bytes: int, inside: Path | None = None) -> bytes:
    """The bytes of a file; parameters and errors as for `open_regular`."""
    with open_regular(path, limit_bytes, inside) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def map_regular(path: Path, limit_bytes: int, inside: Path | None = None) -> mmap.mmap:
    """A file as a memory map; ValueError when it is empty, else as for `open_regular`."""
    with open_regular(path, limit_bytes, inside) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_text(path: Path, limit_bytes: int = TEXT_BYTES, inside: Path | None = None) -> str:
    """The text of a file, UTF-8 with or without a byte order mark; UnicodeDecodeError when it is not."""
    return read_regular(path, limit_bytes, inside).decode("utf-8-sig")


def is_regular(path: Path, inside: Path | None = None) -> bool:
    """Whether there is a regular file, for commands that look which files there are; links as in `open_regular`."""
    try:
        if inside is not None:
            _require_no_link(path, inside)
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, CorruptStore, ValueError):  # a name with a zero byte is a ValueError
        return False
