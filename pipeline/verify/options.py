"""Options of ``store verify``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.runtime.options import ENCODER, ForwardOptions, ThreadsOptions, WeightsOptions, option, require
from stores.errors import OptionError
from stores.format.layout import require_digest

ALL: Literal["all"] = "all"


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ThreadsOptions, ForwardOptions, WeightsOptions):
    """How deeply ``store verify`` checks a store."""

    slides: tuple[Path, ...] = option(
        (),
        "Slide file or folder: read patches again and render views from them. May be repeated.",
        metavar="PATH",
    )
    views: bool = option(False, "Render views from the pixels in the store, where no slide is given.")
    teacher: str | None = option(
        None,
        "Recompute features with this encoder. The one that the store names is never loaded by itself.",
        metavar="ENCODER",
        heading=ENCODER,
    )
    sample: int | Literal["all"] = option(
        32, "Patches of each slide to recompute: a number, or all.", metavar="N|all"
    )
    min_cosine: float = option(0.999, "Smallest cosine of a recomputed feature to the stored one.")
    max_relative_error: float | None = option(
        None,
        "Largest relative error of a recomputed feature.",
        shown="by the arithmetic of store and machine",
    )
    digest: str | None = option(
        None, "Digest of the seal that the owner published: the store must carry this seal.", metavar="HEX"
    )
    partial: bool = option(
        False, "Accept an unfinished store: views that were never extracted are not a mistake."
    )
    repair: bool = option(False, "Recompute what is broken. Needs --slides and --teacher.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.sample == ALL or self.sample >= 1, "sample", self.sample, "1 or more, or all")
        require(0 < self.min_cosine <= 1, "min_cosine", self.min_cosine, "above 0, up to 1")
        error = self.max_relative_error
        require(error is None or error > 0, "max_relative_error", error, "above 0")
        require_digest(self.digest)
        if self.repair and not (self.slides and self.teacher):
            raise OptionError("--repair: needs --slides and --teacher, to recompute what is broken")
        if self.teacher is None and (self.weights is not None or self.random_weights is not None):
            raise OptionError("--weights and --random-weights: are the teacher's; give --teacher too")
        ForwardOptions.validate(self)
        ThreadsOptions.validate(self)
        WeightsOptions.validate(self)
