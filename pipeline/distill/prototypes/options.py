"""Options of ``prototypes``; imports nothing heavy."""

from dataclasses import dataclass

from pipeline.runtime.options import (
    MACHINE,
    DeviceOptions,
    ThreadsOptions,
    option,
    require,
    require_one_or_more,
)


@dataclass(frozen=True, kw_only=True)
class PrototypeOptions(ThreadsOptions, DeviceOptions):
    """Prototypes of the teacher's features and tokens."""

    k: int = option(4096, "Prototypes of the features, and as many of the tokens.")
    seeds: int | None = option(None, "Fit on seeds 0 to N-1.", shown="all seeds of the store")
    epochs: int = option(3, "Passes over the views of the training split.")
    window: int = option(4096, "Views of a minibatch.")
    tokens_per_view: int = option(16, "Largest number of tokens of one view in a minibatch.")
    seed: int = option(0, "Seed of the order of views and of the first prototypes.", metavar="SEED")
    threads: int | None = option(None, "Threads that compute.", heading=MACHINE, shown="number of CPUs")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(2 <= self.k <= 1 << 20, "k", self.k, f"2 to {1 << 20}")
        require_one_or_more(self, "epochs", "window", "tokens_per_view", "seeds")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        ThreadsOptions.validate(self)
