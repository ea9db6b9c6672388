"""Room on the disk: asked before work begins and before each large write."""

import errno
import shutil
from pathlib import Path

from stores.errors import DiskFull
from stores.io.text import human_bytes

MARGIN_BYTES = 16 << 20
"""Left free, for the small files around a large one."""


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
