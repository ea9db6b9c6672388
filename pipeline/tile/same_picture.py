"""One picture is one slide, whatever order its files come in."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tile.slide_rows import failed
from stores.format import manifest


@dataclass(slots=True)
class Pictures:
    """Enters rows into the slides table so that one picture is one usable slide, whatever order rows come in."""

    store: Path
    rows: dict[str, dict[str, Any]]
    """The slides table."""
    settled: Mapping[str, Mapping[str, Any]]
    """Slides that were usable before: they stay."""
    listed: Collection[str]
    """Slides that the user's table names: of new ones they are kept."""
    _kept: dict[str, str] = field(default_factory=dict)
    _dropped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for slide_id, row in self.settled.items():
            self._kept.setdefault(row["fingerprint"], slide_id)

    def take(self, row: dict[str, Any]) -> None:
        """Enter a row; of two with one fingerprint, the settled, the listed, or else the first is usable."""
        slide_id = row["slide_id"]
        self.rows[slide_id] = row
        if row["status"] != manifest.OK or slide_id in self.settled:
            return
        other = self._kept.setdefault(row["fingerprint"], slide_id)
        if other != slide_id:
            keep, drop = sorted(
                (other, slide_id), key=lambda i: (i not in self.settled, i not in self.listed, i)
            )
            self._kept[row["fingerprint"]] = keep
            reason = f"the same picture as slide {keep} (equal fingerprints); give one of the two files"
            self.rows[drop] = failed(self.rows[drop], reason)
            self._dropped.append(drop)

    def remove_dropped(self) -> None:
        """Remove the patches of slides that are no longer usable; call it when the slides table says so."""
        for slide_id in self._dropped:
            manifest.patches_path(self.store, slide_id).unlink(missing_ok=True)
        self._dropped.clear()
