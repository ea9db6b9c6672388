"""Options of ``report``; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.options import option, require


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """One page about a run or a store."""

    store: Path | None = option(
        None, "Of a run: the store that it trained on; without it slides are not shown."
    )
    slides: tuple[Path, ...] = option(
        (), "Slide files or folders: for thumbnails, and for patches where the store has no pixels."
    )
    student: str | None = option(
        None, "Of a store: an encoder to compare with the teacher, such as a run's student."
    )
    random_weights: int | None = option(None, "Seed of random weights of that encoder.")
    tables: tuple[Path, ...] = option((), "table.json of `evaluate all`; may be repeated.")
    max_slides: int = option(6, "Slides that are shown.")
    max_patches: int = option(250, "Patches of each slide that are shown.")
    views: int = option(3, "Patches that are shown under every seed.")
    device: str = option("auto", "Where the student runs: auto, cpu, cuda, cuda:N or mps.")
    threads: int | None = option(None, "Threads that read and render; the number of CPUs.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        for name in ("max_slides", "max_patches"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.views >= 0, "views", self.views, "0 or more")
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "1 or more")
