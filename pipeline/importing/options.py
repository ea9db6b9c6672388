"""Options of ``store import``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import ThreadsOptions, option, require
from pipeline.tile.options import CohortOptions
from stores.format.recipe import DTYPES, FILTERS, TOOLS

_ENCODER, _CUT = "Encoder, where it is no preset", "How patches were cut and scaled"
LAYOUTS = ("auto", *TOOLS)


@dataclass(frozen=True, kw_only=True)
class ImportOptions(ThreadsOptions, CohortOptions):
    """Features that exist, into a store."""

    encoder: str = option(
        "",
        "Encoder that computed the features: a preset, or any name with the options below.",
        metavar="NAME",
    )
    pixels: bool = option(False, "Keep the patches' pixels, for labs without the slides.")
    pooling: str | None = option(
        None,
        "What of the encoder was kept.",
        choices=("cls", "cls+mean", "forward"),
        heading=_ENCODER,
        shown="that of the preset",
    )
    mean: str | None = option(
        None, "Normalize of the encoder: subtracted.", metavar="R,G,B", heading=_ENCODER, shown="the preset's"
    )
    std: str | None = option(
        None, "Normalize of the encoder: divided by.", metavar="R,G,B", heading=_ENCODER, shown="the preset's"
    )
    image_px: int | None = option(
        None, "Side of the view that it takes.", metavar="PX", heading=_ENCODER, shown="the preset's"
    )
    dtype: str | None = option(
        None,
        "Arithmetic in which it ran.",
        choices=DTYPES,
        heading=_ENCODER,
        shown="float16 by TRIDENT, float32 by CLAM",
    )
    layout: str = option(
        "auto",
        "Tool that wrote the files, whose rule says how patches were read.",
        choices=LAYOUTS,
        heading=_CUT,
        shown="by the attributes in the files",
    )
    coords: Path | None = option(
        None,
        "Folder with h5 files of coordinates, where those of the features do not say how patches were cut (CLAM).",
        metavar="DIR",
        heading=_CUT,
    )
    resize_px: int | None = option(
        None,
        "Side to which the encoder's transform scaled a patch before it cut out the centre.",
        metavar="PX",
        heading=_CUT,
        shown="as the tool does it for this encoder, else the view's side",
    )
    filter: str | None = option(
        None,
        "How it scaled.",
        choices=FILTERS,
        heading=_CUT,
        shown="as the tool does it for this encoder, else bilinear",
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        ThreadsOptions.validate(self)
        CohortOptions.validate(self)
        require(self.encoder != "", "encoder", self.encoder, "the name of the encoder")
        require(self.layout in LAYOUTS, "layout", self.layout, ", ".join(LAYOUTS))
        require(self.filter in (None, *FILTERS), "filter", self.filter, ", ".join(FILTERS))
        require(self.dtype in (None, *DTYPES), "dtype", self.dtype, ", ".join(DTYPES))
        for name in ("image_px", "resize_px"):
            value = getattr(self, name)
            require(value is None or 16 <= value <= 4096, name, value, "16 to 4096")
