"""Options of ``embed``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.embed.formats.registry import FORMATS
from pipeline.runtime.options import (
    ENCODER,
    CompileOptions,
    ForwardOptions,
    PoolingOptions,
    ReadingOptions,
    WeightsOptions,
    option,
    require,
    require_choices,
)

_CSV = "Tiles from a CSV"


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(CompileOptions, ReadingOptions, ForwardOptions, PoolingOptions, WeightsOptions):
    """Deployment: any encoder over slides or tiles."""

    encoder: str = option(
        "",
        "Preset, timm name, hf-hub:owner/name, a run's student folder, or module:function.",
        metavar="ENCODER",
        heading=ENCODER,
    )
    format: str = option("parquet", "Format of the embeddings.", choices=FORMATS)
    column: tuple[str, ...] = option(
        (),
        "Meaning of a column, such as path=tile or label=density. May be repeated.",
        metavar="NAME=COLUMN",
        heading=_CSV,
    )
    root: Path | None = option(
        None,
        "Folder to which the paths in the CSV are relative.",
        metavar="DIR",
        heading=_CSV,
        shown="the folder of the CSV",
    )
    fit: str = option(
        "resize",
        "What is done with tiles of another size than the encoder takes: "
        "resize the shorter side and crop the centre, or only crop.",
        choices=("resize", "crop"),
        heading=_CSV,
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.encoder), "encoder", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        require(self.format in FORMATS, "format", self.format, ", ".join(FORMATS))
        require_choices(self)
        ForwardOptions.validate(self)
        ReadingOptions.validate(self)
        WeightsOptions.validate(self)


SHARED = ("column", "root", "fit", "threads", "readers")
"""What holds for all encoders that see the same patches; any other of `EmbedOptions` may be one encoder's own."""
