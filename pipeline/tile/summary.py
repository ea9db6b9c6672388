"""What a run of ``tile`` left in a store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tile.frames import frame_counts
from stores.format import manifest
from stores.format.splits import count_splits, split_lines, split_warnings
from stores.io.text import counted, first_of, unusable_lines


@dataclass(frozen=True, slots=True)
class TileSummary:
    """What a run of ``tile`` left in the store."""

    store: Path
    slides: list[dict[str, Any]]
    """All rows of the slides table."""
    paths: Mapping[str, Path] = field(default_factory=dict)
    """The slide files of the inputs, by slide id."""
    refused: list[str] = field(default_factory=list)
    """A line for each tile that could not be used; empty for slides."""
    holds_out: bool = True
    """Whether held-out patients are wanted, and missed where there are none."""

    @property
    def warnings(self) -> list[str]:
        """What a training on the splits cannot do, a line each."""
        return split_warnings(count_splits(self.slides)) if self.holds_out else []

    @property
    def unusable(self) -> list[dict[str, Any]]:
        """Rows without patches; each has a reason."""
        return [row for row in self.slides if row["status"] != manifest.OK]

    @property
    def n_patches(self) -> int:
        """Patches of all slides."""
        return sum(row["n_patches"] for row in self.slides)

    @property
    def some_failed(self) -> bool:
        """Whether some slide or tile could not be used."""
        return bool(self.unusable or self.refused)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        usable = [row for row in self.slides if row["status"] == manifest.OK]
        return {
            "store": str(self.store),
            "slides": len(self.slides),
            "slides_usable": len(usable),
            "patches": self.n_patches,
            "patches_by_slide": {row["slide_id"]: row["n_patches"] for row in self.slides},
            "splits": {
                name: sum(row["split"] == name for row in usable) for name in ("train", "val", "test")
            },
            "split_counts": count_splits(self.slides),
            "warnings": self.warnings,
            "mask_frames": frame_counts(self.slides),
            "unusable": {row["slide_id"]: row["reason"] for row in self.unusable},
        } | ({"refused_tiles": self.refused} if self.refused else {})

    def lines(self) -> list[str]:
        """The same as text."""
        found = self.to_json()
        return [
            f"{found['slides_usable']} of {found['slides']} slides usable, "
            f"{counted(found['patches'], 'patch', 'patches')}",
            *split_lines(found["split_counts"]),
            *(f"warning: {text}" for text in found["warnings"]),
            *_frame_lines(found["mask_frames"]),
            f"pictures: {self.store / 'pictures'}",
            *unusable_lines(found["unusable"]),
            *first_of("tile not used", self.refused),
        ]


def _frame_lines(counts: Mapping[str, int]) -> list[str]:
    named = {"slide": "the corner of the slide", "bounds": "the corner of the scanned bounds, as in QuPath"}
    return [f"masks that count from {named[name]}: {count}" for name, count in counts.items()]
