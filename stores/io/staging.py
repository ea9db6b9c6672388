"""New stores from old ones: files are copied into a folder beside the target, which is renamed when it is complete.

A killed copy continues where it stopped. Files appear by rename, so a file of the right size is whole. One process at a
time makes a target: two would remove each other's files, and publish what the other has not finished.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stores.errors import CorruptStore, OptionError, StoreError
from stores.io import files
from stores.io.location import StoreLike, open_file, read_file
from stores.io.lock import only_writer

REQUEST = ".request.json"
_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def staged(out: Path, request: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a folder to build a store in, renamed to `out` at the end.

    Parameters
    ----------
    request
        All that decides the result, as JSON types. A copy that was killed continues when its request was the same.

    Raises
    ------
    OptionError
        When `out` exists, or another command is making it.
    """
    _require_absent(out)
    with only_writer(out.with_name(f".{out.name}{files.PARTIAL}")) as writer:
        _require_absent(out)  # made while we waited for the lock
        stage = writer.folder
        marker = stage / REQUEST
        wanted = dict(request)
        if not marker.is_file() or files.read_json(marker) != wanted:
            _clear(stage)
        files.sweep_partials(stage)  # a killed copy left them; they would be published
        files.write_json(marker, wanted)
        yield stage
        files.remove(marker)
        try:
            writer.rename(out)
        except OSError as error:
            _require_absent(out)
            raise StoreError(f"--out {out}: cannot be made ({files.first_line(error)})") from None
        files.fsync_path(out.parent)


def _require_absent(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise OptionError(f"--out {out}: exists already; choose another name, nothing is overwritten")


def _clear(stage: Path) -> None:
    """Remove what a copy with another request left, but not the lock."""
    for path in stage.iterdir():
        if path.name == files.LOGS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def copy_file(store: StoreLike, name: str, size: int, stage: Path, target: str | None = None) -> None:
    """Copy one file of a store into `stage`, under another name if asked; kept when it is there already.

    Parameters
    ----------
    size : int
        Bytes, as `stores.format.layout.list_files` says.
    """
    path = stage / (target or name)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == size:
            return
    with files.replacing(path) as partial:
        data = open_file(store, name, size) if isinstance(store, Path) else read_file(store, name, size)
        if data is None:
            raise CorruptStore(f"{store}/{name}: listed, but not there")
        if isinstance(data, bytes):
            partial.write_bytes(data)
        else:
            with data, partial.open("wb") as written:
                shutil.copyfileobj(data, written, _PIECE_BYTES)
        if partial.stat().st_size != size:
            raise CorruptStore(f"{store}/{name}: {partial.stat().st_size} bytes, listed with {size}")
