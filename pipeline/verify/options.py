"""Options of ``store verify``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import option, require, require_machine, require_weights
from stores.errors import OptionError


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How deep ``store verify`` looks."""

    slides: tuple[Path, ...] = option(
        (), "Slide files or folders: re-read patches and render views from them."
    )
    views: bool = option(False, "Render views from the store's own pixels where no slide is given.")
    teacher: str | None = option(None, "Recompute features with this encoder; never taken from the store.")
    weights: Path | None = option(None, "Checkpoint file or folder, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights, for trials without a download.")
    sample: int = option(32, "Patches of each slide whose views and features are recomputed.")
    every: bool = option(False, "Recompute the views and features of every patch instead.")
    min_cosine: float = option(0.999, "Smallest cosine of a recomputed feature to the stored one.")
    partial: bool = option(False, "The store is unfinished: views that were never extracted are not wrong.")
    repair: bool = option(False, "Recompute what is broken; needs --slides and --teacher.")
    batch_size: int | None = option(None, "Views per forward pass; 256 on a GPU, 16 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the forward pass.", ("auto", "float32", "bfloat16", "float16"))
    threads: int | None = option(None, "Threads that read and render; the number of CPUs.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.sample >= 1, "sample", self.sample, "1 or more")
        require(0 < self.min_cosine <= 1, "min_cosine", self.min_cosine, "above 0, up to 1")
        if self.repair and not (self.slides and self.teacher):
            raise OptionError("--repair: needs --slides and --teacher, to recompute what is broken")
        if self.teacher is None and (self.weights is not None or self.random_weights is not None):
            raise OptionError("--weights and --random-weights: are the teacher's; give --teacher too")
        require_machine(self)
        require_weights(self)
