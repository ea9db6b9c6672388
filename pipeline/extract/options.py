"""Options of ``extract-teacher`` and ``plan``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import option, require, require_machine, require_weights
from stores.errors import OptionError


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """Stage one: the teacher over every view of every patch."""

    teacher: str = option("", "Preset, timm name, hf-hub:owner/name, folder, or module:function.")
    seeds: int = option(4, "Views per patch: the centre crop and seeds 1, 2, ...")
    policy: str = option("g2l", "Augmentation: g2l, none, hed, or a YAML file of your own.")
    weights: Path | None = option(None, "Checkpoint file or folder, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights, for trials without a download.")
    batch_size: int | None = option(None, "Views per forward pass; 256 on a GPU, 16 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the forward pass.", ("auto", "float32", "bfloat16", "float16"))
    threads: int | None = option(None, "Workers that read and render; the number of CPUs.")
    readers: str = option(
        "auto",
        "What reads and renders: threads, or processes, which leave Python to the device; processes beside a GPU.",
        ("auto", "threads", "processes"),
    )
    compile: bool = option(
        False, "Compile the encoder first (torch.compile): half a minute and more, then faster."
    )
    pixels: bool = option(False, "Keep the patches' pixels, for labs without the slides.")
    tokens: int | None = option(
        None, "Keep so many patch tokens of each view, at drawn positions; all of a view's 16x16 are 786 KB."
    )
    limit: int | None = option(None, "Stop after this many patches in total, for trials.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(
            bool(self.teacher), "teacher", "(missing)", "a preset (see `g2l models`) or a model of your own"
        )
        require(1 <= self.seeds <= 1000, "seeds", self.seeds, "1 to 1000")
        for name in ("limit", "tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        require_machine(self)
        require_weights(self)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What ``plan`` reckons with; the tile options decide the patches."""

    teacher: str | None = option(None, "The teacher: its feature length, and with --measure its speed.")
    seeds: int = option(4, "Views per patch: the centre crop and seeds 1, 2, ...")
    pixels: bool = option(False, "Reckon with the patches' pixels too.")
    tokens: int | None = option(None, "Reckon with so many patch tokens of each view too.")
    dim: int | None = option(None, "Feature length of a teacher that is not known by name.")
    views_per_s: float | None = option(None, "Measured speed of the teacher, in views per second.")
    measure: bool = option(False, "Load the teacher and measure its speed on this machine.")
    weights: Path | None = option(None, "Checkpoint file or folder, instead of the published weights.")
    random_weights: int | None = option(None, "Seed of random weights: speed does not depend on them.")
    batch_size: int | None = option(None, "Views per forward pass; 256 on a GPU, 16 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = option("auto", "Arithmetic of the forward pass.", ("auto", "float32", "bfloat16", "float16"))

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(1 <= self.seeds <= 1000, "seeds", self.seeds, "1 to 1000")
        for name in ("dim", "tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        speed = self.views_per_s
        require(speed is None or speed > 0, "views_per_s", speed, "above 0")
        if self.measure and self.teacher is None:
            raise OptionError("--measure: needs --teacher, whose speed is measured")
        if self.measure and speed is not None:
            raise OptionError("--measure and --views-per-s: give one of them")
