"""Options of ``prototypes``; imports nothing heavy."""

from dataclasses import dataclass

from pipeline.runtime.options import option, require


@dataclass(frozen=True, slots=True)
class PrototypeOptions:
    """Prototypes of the teacher's features and tokens."""

    k: int = option(4096, "Prototypes of the features, and as many of the tokens.")
    seeds: int | None = option(None, "Fit on seeds 0 to N-1; all that the store has.")
    epochs: int = option(3, "Passes over the views of the training split.")
    window: int = option(4096, "Views of a minibatch.")
    tokens_per_view: int = option(16, "At most so many of a view's tokens in a minibatch.")
    seed: int = option(0, "Seed of the order of views and of the start.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    threads: int | None = option(None, "Threads that compute; the number of CPUs.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(2 <= self.k <= 1 << 20, "k", self.k, f"2 to {1 << 20}")
        for name in ("epochs", "window", "tokens_per_view"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        for name in ("seeds", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
