"""Options of ``tile``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import option, require


@dataclass(frozen=True, slots=True)
class TileOptions:
    """Stage zero: tissue, patch grid, splits."""

    mpp: float = option(0.5, "Target resolution in micrometres per pixel.")
    patch: int = option(256, "Side of a patch in pixels at that resolution.")
    min_tissue: float = option(0.5, "Smallest share of tissue in a patch, 0 to 1.")
    max_patches: int | None = option(None, "Keep at most this many patches a slide, drawn by position.")
    val: float = option(0.1, "Share of patients in the validation split, when the CSV gives none.")
    slides_csv: Path | None = option(
        None, "CSV with slide_id and any of mpp, patient_id, split, and columns of your own."
    )
    slide_mpp: tuple[str, ...] = option((), "Level-0 mpp of one slide, as ID=0.25; may be repeated.")
    masks: Path | None = option(
        None, "Folder with a tissue mask (ID.png, ID.tif) or annotation (ID.geojson) for every slide."
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(0.05 <= self.mpp <= 5, "mpp", self.mpp, "0.05 to 5")
        require(32 <= self.patch <= 4096, "patch", self.patch, "32 to 4096")
        require(0 < self.min_tissue <= 1, "min_tissue", self.min_tissue, "above 0, up to 1")
        require(
            self.max_patches is None or self.max_patches > 0, "max_patches", self.max_patches, "1 or more"
        )
        require(0 <= self.val < 1, "val", self.val, "0 up to, not including, 1")
