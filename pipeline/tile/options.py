"""Options of ``tile``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import TILES, option, require, require_one_or_more
from stores.errors import OptionError

MASK_FRAMES = ("auto", "slide", "bounds")
PADS = ("none", "white", "reflect")
OF_QC = ("qc", "qc_max", "qc_min", "qc_frame")
"""Options of ``--qc``; the record of a store that was tiled without it leaves them out."""
OF_TILES = ("tiles", "pad", "root", "column")
"""Options that only tiles have; the record of a store of slides leaves them out."""


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """What a patch is, and how many there are."""

    mpp: float = option(
        0.5, "Target resolution in micrometres per pixel (mpp).", metavar="MPP", heading=TILES
    )
    patch: int = option(
        256, "Side of a patch in pixels at the target resolution.", metavar="PX", heading=TILES
    )
    min_tissue: float = option(
        0.5, "Smallest share of tissue in a patch, above 0, up to 1.", metavar="SHARE", heading=TILES
    )
    max_patches: int | None = option(
        None, "Keep at most N patches of a slide, chosen by position.", heading=TILES, shown="all"
    )


@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """What is known of slides beyond their files: patients, splits, resolutions."""

    val: float = option(
        0.1,
        "Share of patients in the validation split, where --slides-csv names no split; at least one of two or more.",
        metavar="SHARE",
        heading=TILES,
    )
    slides_csv: Path | None = option(
        None,
        "CSV with slide_id and any of mpp, patient_id, split, and columns of your own.",
        metavar="FILE",
        heading=TILES,
    )
    slide_mpp: tuple[str, ...] = option(
        (),
        "True level-0 resolution of one slide, in micrometres per pixel. May be repeated.",
        metavar="ID=MPP",
        heading=TILES,
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(0 <= self.val < 1, "val", self.val, "0 up to, not including, 1")


@dataclass(frozen=True, kw_only=True)
class TileOptions(CohortOptions, GridOptions):
    """Stage zero: tissue, patch grid, splits."""

    square_pixels: bool = option(
        False,
        "Take slides whose pixels are not square too, and resample their patches to square pixels.",
        heading=TILES,
    )
    masks: Path | None = option(
        None,
        "Folder with a tissue mask (ID.png, ID.tif) or an annotation (ID.geojson) of every slide.",
        metavar="DIR",
        heading=TILES,
        shown="tissue is found by colour",
    )
    mask_frame: str = option(
        "auto",
        "Where the coordinates of masks begin: at the corner of the slide, or of its scanned bounds as in QuPath.",
        choices=MASK_FRAMES,
        heading=TILES,
        shown="decided for each slide, where it can be",
    )
    qc: Path | None = option(
        None,
        "What another tool says of the quality: a folder of GeoJSON with classified regions (ID.geojson), or a table "
        "of scores by slide_id, or by slide_id, x_px0 and y_px0.",
        metavar="PATH",
        heading=TILES,
    )
    qc_max: tuple[str, ...] = option(
        (),
        "Leave out patches that a class of --qc covers by more than a share, or with a higher score, such as fold=0.1, "
        "and those of which that is not known. May be repeated.",
        metavar="NAME=VALUE",
        heading=TILES,
    )
    qc_min: tuple[str, ...] = option(
        (),
        "The same for lower values. May be repeated.",
        metavar="NAME=VALUE",
        heading=TILES,
    )
    qc_frame: str = option(
        "auto",
        "Where the coordinates of regions of --qc begin, as --mask-frame says it for masks.",
        choices=MASK_FRAMES,
        heading=TILES,
        shown="decided for each slide, where it can be",
    )
    tiles: bool = option(
        False,
        "The folders or images are tiles: images that were cut before, with classes as folder names. "
        "A CSV with a column path, or an HDF5 file, always lists tiles.",
        heading=TILES,
    )
    pad: str = option(
        "none",
        "Margin of tiles that are smaller than a patch; none refuses them.",
        choices=PADS,
        heading=TILES,
    )
    root: Path | None = option(
        None,
        "Folder to which the paths in a CSV of tiles are relative.",
        metavar="DIR",
        heading=TILES,
        shown="the folder of the CSV",
    )
    column: tuple[str, ...] = option(
        (),
        "Meaning of a column of a CSV of tiles, such as path=image. May be repeated.",
        metavar="NAME=COLUMN",
        heading=TILES,
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(0.05 <= self.mpp <= 5, "mpp", self.mpp, "0.05 to 5")
        require(32 <= self.patch <= 4096, "patch", self.patch, "32 to 4096")
        require(0 < self.min_tissue <= 1, "min_tissue", self.min_tissue, "above 0, up to 1")
        require_one_or_more(self, "max_patches")
        require(self.pad in PADS, "pad", self.pad, ", ".join(PADS))
        require(self.mask_frame in MASK_FRAMES, "mask_frame", self.mask_frame, ", ".join(MASK_FRAMES))
        require(self.qc_frame in MASK_FRAMES, "qc_frame", self.qc_frame, ", ".join(MASK_FRAMES))
        from stores.format.qc import parse_limits  # imports tables

        limits = parse_limits(self.qc_max, self.qc_min)
        if self.qc is None and (limits or self.qc_frame != "auto"):
            raise OptionError(
                f"{limits[0] if limits else '--qc-frame'}: needs --qc, the file or folder that it judges by"
            )
        CohortOptions.validate(self)
