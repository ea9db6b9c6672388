"""New stores from old ones: files are copied into a folder beside the target, which is renamed when it is complete.

A killed copy continues where it stopped. Files appear by rename, so a file of the right size is whole.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stores.errors import CorruptStore, OptionError
from stores.io import files
from stores.io.location import StoreLike, read_file

REQUEST = ".request.json"


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
        When `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise OptionError(f"--out {out}: exists already; choose another name, nothing is overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".{out.name}{files.PARTIAL}")
    marker = stage / REQUEST
    wanted = dict(request)
    if stage.exists() and (not marker.is_file() or files.read_json(marker) != wanted):
        shutil.rmtree(stage)
    stage.mkdir(exist_ok=True)
    files.sweep_partials(stage)  # a killed copy left them; they would be published
    files.write_json(marker, wanted)
    yield stage
    marker.unlink()
    files.fsync_path(stage)
    os.rename(stage, out)
    files.fsync_path(out.parent)


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
        if isinstance(store, Path):
            shutil.copyfile(store / name, partial)
        else:
            data = read_file(store, name, size)
            if data is None:
                raise CorruptStore(f"{store}/{name}: listed, but not there")
            partial.write_bytes(data)
        if partial.stat().st_size != size:
            raise CorruptStore(f"{store}/{name}: {partial.stat().st_size} bytes, listed with {size}")
