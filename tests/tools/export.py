"""Call ``store export``, and the digest of every file of a store."""

import hashlib
from pathlib import Path
from typing import Any

from stores.export import export
from stores.export.export import ExportOptions
from stores.format import layout


def run(store: Path, out: Path, **options: Any) -> export.Exported:
    return export.export(store, out, ExportOptions(**options))


def contents(store: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((store / name).read_bytes()).hexdigest() for name in layout.list_files(store)
    }
