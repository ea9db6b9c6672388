"""Where a store is: a local folder, or a remote one behind the same few operations."""

from pathlib import Path
from typing import Protocol


class RemoteFiles(Protocol):
    """A store that is read over the network. ``str()`` of it is its URL."""

    def __truediv__(self, name: str) -> Path:
        """A local copy of a small file or folder of the store (recipe, options, manifest), made when it was opened."""

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A file of the store, None when it is absent; CorruptStore when it is larger than `limit_bytes`."""

    def list_files(self) -> dict[str, int]:
        """Size in bytes of every file, by its name below the store."""


StoreLike = Path | RemoteFiles
