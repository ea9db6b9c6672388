"""What a run of ``tile`` left in a store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tile.frames import frame_counts
from stores.format import manifest
from stores.format.qc import FRAME, count_in, was_judged
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
        return (
            {
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
            }
            | self._qc()
            | ({"refused_tiles": self.refused} if self.refused else {})
        )

    def _qc(self) -> dict[str, Any]:
        """What ``--qc`` made of the slides; empty without it."""
        judged = {
            row["slide_id"]: {name: count_in(row, f"qc_{name}") for name in ("left_out", "unknown")}
            for row in self.slides
            if was_judged(row)
        }
        frames = frame_counts(self.slides, FRAME)
        return {"qc": judged} | ({"qc_frames": frames} if frames else {}) if judged else {}

    def lines(self) -> list[str]:
        """The same as text."""
        found = self.to_json()
        return [
            f"{found['slides_usable']} of {found['slides']} slides usable, "
            f"{counted(found['patches'], 'patch', 'patches')}",
            *split_lines(found["split_counts"]),
            *(f"warning: {text}" for text in found["warnings"]),
            *_frame_lines("masks", found["mask_frames"]),
            *_qc_lines(found.get("qc", {})),
            *_frame_lines("regions of --qc", found.get("qc_frames", {})),
            f"pictures: {self.store / 'pictures'}",
            *unusable_lines(found["unusable"]),
            *first_of("tile not used", self.refused),
        ]


def _frame_lines(what: str, counts: Mapping[str, int]) -> list[str]:
    named = {"slide": "the corner of the slide", "bounds": "the corner of the scanned bounds, as in QuPath"}
    return [f"{what} that count from {named[name]}: {count}" for name, count in counts.items()]


def _qc_lines(judged: Mapping[str, Mapping[str, int]]) -> list[str]:
    if not judged:
        return []
    left_out, unknown = (sum(of[name] for of in judged.values()) for name in ("left_out", "unknown"))
    said = counted(
        left_out, "patch with enough tissue was left out", "patches with enough tissue were left out"
    )
    without = f"; something is not known of {counted(unknown, 'patch', 'patches')}" if unknown else ""
    return [f"QC of {counted(len(judged), 'slide')}: {said}{without}"]
