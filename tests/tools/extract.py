"""The digest of every file of a store that stage one wrote."""

import hashlib
from pathlib import Path


def contents(store: Path) -> dict[str, str]:
    """SHA-256 of every file but pictures and options."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] not in ("pictures", "options")
    }
