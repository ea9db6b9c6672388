"""Options of ``report``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import (
    DeviceOptions,
    ThreadsOptions,
    WeightsOptions,
    option,
    require,
    require_one_or_more,
)
from stores.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ThreadsOptions, DeviceOptions, WeightsOptions):
    """One page about a run or a store."""

    store: Path | None = option(
        None, "Store that the run was trained on. Without it no slides are shown.", metavar="DIR"
    )
    slides: tuple[Path, ...] = option(
        (),
        "Slide file or folder: for thumbnails, and for patches where the store has no pixels. May be repeated.",
        metavar="PATH",
    )
    student: str | None = option(
        None,
        "For a store: encoder to compare with its teacher, such as the student folder of a run. For a run: what its "
        "student was built from, where that is code or needs the hub; the run's own files never start either.",
        metavar="ENCODER",
    )
    tables: tuple[Path, ...] = option(
        (), "table.json of `g2l evaluate all`. May be repeated.", metavar="FILE"
    )
    max_slides: int = option(6, "Slides to show.")
    max_patches: int = option(250, "Patches of each slide to show.")
    views: int = option(3, "Patches to show under every seed.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require_one_or_more(self, "max_slides", "max_patches")
        require(self.views >= 0, "views", self.views, "0 or more")
        ThreadsOptions.validate(self)
        WeightsOptions.validate(self)
        if self.student is None and (self.weights is not None or self.random_weights is not None):
            raise OptionError("--weights and --random-weights: say of which encoder, with --student")
