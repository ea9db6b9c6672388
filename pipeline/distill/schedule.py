"""Cosine annealing of learning rate and weight decay, and early stopping."""

import math
from collections import deque
from typing import Any

WINDOW = 100
PATIENCE = 10


def cosine_annealing(start: float, step: float, steps: int, warmup_steps: int = 0) -> float:
    """The value at `step` (0 .. steps - 1): linear from 0 over the warm-up, then a half cosine from `start` to 0.

    >>> cosine_annealing(1.0, 0, 10), round(cosine_annealing(1.0, 5, 10), 6)
    (1.0, 0.5)
    """
    if step < warmup_steps:
        return start * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return start * 0.5 * (1 + math.cos(math.pi * progress))


class EarlyStop:
    """Stops when the loss exceeded the mean of its last 100 values more than 10 times.

    G2L does not say whether the times are counted in a row. Counted in total, noise alone would stop any run after
    about 120 steps, since a stationary loss is above its mean half of the time. Only times in a row are counted here.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.exceeded = 0

    def update(self, loss: float) -> bool:
        """Add the loss of a step; True when training should stop."""
        if len(self.recent) == WINDOW:
            above = loss > sum(self.recent) / WINDOW
            self.exceeded = self.exceeded + 1 if above else 0
        self.recent.append(loss)
        return self.mode != "off" and self.exceeded > PATIENCE

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"recent": list(self.recent), "exceeded": self.exceeded}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.exceeded = state["exceeded"]
