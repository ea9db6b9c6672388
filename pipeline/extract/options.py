"""Options of ``extract-teacher`` and ``plan``; imports nothing heavy."""

from dataclasses import dataclass

from pipeline.runtime.options import (
    ENCODER,
    VIEWS,
    CompileOptions,
    ForwardOptions,
    ReadingOptions,
    WeightsOptions,
    option,
    require,
    require_one_or_more,
)
from stores.errors import OptionError

_SEEDS = "Views of a patch: the centre crop, and one augmented view for each further seed."


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(CompileOptions, ReadingOptions, ForwardOptions, WeightsOptions):
    """Stage one: the teacher over every view of every patch."""

    teacher: str = option(
        "",
        "Preset, timm name, hf-hub:owner/name, folder, or module:function.",
        metavar="ENCODER",
        heading=ENCODER,
    )
    seeds: int = option(4, _SEEDS, heading=VIEWS)
    policy: str = option("g2l", "Augmentation: g2l, none, hed, or a YAML file of your own.", heading=VIEWS)
    pixels: bool = option(
        False, "Keep the pixels of the patches, for labs that do not have the slides.", heading=VIEWS
    )
    tokens: int | None = option(
        None,
        "Keep N patch tokens of each view, at drawn positions. All 16x16 of a view take 786 KB.",
        heading=VIEWS,
        shown="none",
    )
    attention: bool = option(
        False,
        "Keep the attention of the class token to the patches, mean over the heads of the last block: 512 bytes a view "
        "of 16x16.",
        heading=VIEWS,
    )
    limit: int | None = option(
        None, "Stop after N patches in total, for trials.", heading=VIEWS, shown="no limit"
    )

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.teacher), "teacher", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        require(1 <= self.seeds <= 1000, "seeds", self.seeds, "1 to 1000")
        require_one_or_more(self, "limit", "tokens")
        if self.attention and self.compile:
            raise OptionError(
                "--attention and --compile: give one of them; attention is read from within the model"
            )
        ForwardOptions.validate(self)
        ReadingOptions.validate(self)
        WeightsOptions.validate(self)


@dataclass(frozen=True, kw_only=True)
class PlanOptions(ForwardOptions, WeightsOptions):
    """What ``plan`` calculates with; the tile options decide the patches."""

    teacher: str | None = option(
        None,
        "The teacher. Its name gives the feature length; --measure finds its speed.",
        metavar="ENCODER",
        heading=ENCODER,
    )
    seeds: int = option(4, _SEEDS, heading=VIEWS)
    pixels: bool = option(False, "Include the pixels of the patches.", heading=VIEWS)
    tokens: int | None = option(None, "Include N patch tokens of each view.", heading=VIEWS, shown="none")
    attention: bool = option(
        False, "Include the attention of the class token to the patches; needs --teacher.", heading=VIEWS
    )
    dim: int | None = option(
        None, "Feature length of a teacher that `g2l models` does not list.", heading=ENCODER
    )
    views_per_s: float | None = option(
        None, "Speed of the teacher in views per second, if you have measured it.", heading=ENCODER
    )
    measure: bool = option(False, "Load the teacher and measure its speed on this machine.", heading=ENCODER)

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(1 <= self.seeds <= 1000, "seeds", self.seeds, "1 to 1000")
        require_one_or_more(self, "dim", "tokens")
        speed = self.views_per_s
        require(speed is None or speed > 0, "views_per_s", speed, "above 0")
        if self.attention and self.teacher is None:
            raise OptionError("--attention: needs --teacher, whose grid of patches decides its size")
        if self.measure and self.teacher is None:
            raise OptionError("--measure: needs --teacher, whose speed is measured")
        if self.measure and speed is not None:
            raise OptionError("--measure and --views-per-s: give one of them")
