"""A task: the views of one block that one worker encodes and writes; and the tally of a run."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.slides.sources import Source
from stores.format.same_views import Expected
from stores.io.text import counted, one_line, unusable_lines

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Task:
    """What one writer owns: the chunks of `seeds` of one block. Small, since it travels to the worker."""

    source: Source
    fingerprint: str
    split: str
    n_patches: int
    """How many patches the whole slide has."""
    block: int
    seeds: range
    rows: range
    """The wanted rows of the block; fewer than the block has only under ``--limit``."""
    expected: tuple[Expected, ...] = field(default=(), compare=False, repr=False)
    """What other stores say that the checksums of the views have to be."""

    @property
    def n_views(self) -> int:
        return len(self.rows) * len(self.seeds)

    def __str__(self) -> str:
        return f"{self.source.slide_id} block {self.block} seeds {self.seeds.start}-{self.seeds.stop - 1}"


@dataclass(frozen=True, slots=True)
class Together:
    """Tasks of one block, each for one of several stores: its views are rendered once for all of them."""

    tasks: tuple[tuple[int, Task], ...]
    """(number of the store, its task); a store may have several, of other seeds."""

    @property
    def first(self) -> Task:
        """Any of them: slide, block and rows are those of all."""
        return self.tasks[0][1]

    @property
    def n_rendered(self) -> int:
        """How many views are rendered; those that two stores want count once."""
        return len(self.first.rows) * len({seed for _, task in self.tasks for seed in task.seeds})

    def __str__(self) -> str:
        if len(self.tasks) == 1:
            return str(self.first)
        stores = len({number for number, _ in self.tasks})
        text = f"{self.first.source.slide_id} block {self.first.block}"
        return f"{text} for {stores} stores" if stores > 1 else text


@dataclass(slots=True)
class Tally:
    """What a run over blocks did."""

    views: int = 0
    views_before: int = 0
    bad_reads: list[str] = field(default_factory=list)
    failed_slides: dict[str, str] = field(default_factory=dict)
    failed_blocks: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    device_seconds: float = 0.0
    """Time in which some block had the device, summed over processes."""
    wait_seconds: float = 0.0
    """The part of it without a batch, waiting for patches."""
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, item: Task, outcome: Any, error: str) -> None:
        """Count a finished block: its `pipeline.inference.engine.Outcome`, or the reason why it failed."""
        if outcome is None:
            self.failed_blocks[str(item)] = error
            return
        self.views += outcome.views
        self.bad_reads += outcome.bad_reads
        self.device_seconds += outcome.device_seconds
        self.wait_seconds += outcome.wait_seconds
        for name, value in outcome.figures.items():
            self.figures[name] = max(value, self.figures.get(name, 0))

    @property
    def some_failed(self) -> bool:
        """Whether a slide, a block or a patch could not be done."""
        return bool(self.failed_slides or self.failed_blocks or self.bad_reads)

    def figures_json(self) -> dict[str, Any]:
        """Speed, memory and what failed, as plain JSON types."""
        return {
            "seconds": self.seconds,
            "views_per_s": self.views / self.seconds if self.views else None,
            "data_wait": self.wait_seconds / self.device_seconds if self.views else None,
            "bad_reads": self.bad_reads,
            "failed_blocks": self.failed_blocks,
            "unusable": self.failed_slides,
            **self.figures,
        }

    def speed(self) -> str:
        """Views per second and the time without a batch; only after some views."""
        return f"{self.views / self.seconds:.1f} views/s, {self.waiting()}"

    def waiting(self) -> str:
        """The share of its time in which the device had no batch; only after some views."""
        return f"waited for data {self.wait_seconds / self.device_seconds:.1%} of the time"

    def failed_lines(self) -> list[str]:
        """What could not be done, and why: patches, blocks, slides."""
        lines = []
        if self.bad_reads:
            lines.append(
                f"{counted(len(self.bad_reads), 'patch', 'patches')} could not be read (status bad_read):"
            )
            lines += [f"  {one_line(text, 300)}" for text in self.bad_reads[:_SHOWN]]
        if self.failed_blocks:
            lines.append(
                f"{counted(len(self.failed_blocks), 'block')} failed twice; the same command tries again:"
            )
            lines += [
                f"  {name}: {one_line(why, 300)}" for name, why in list(self.failed_blocks.items())[:_SHOWN]
            ]
        return lines + unusable_lines(self.failed_slides)
