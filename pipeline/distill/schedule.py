"""Cosine annealing of learning rate and weight decay."""

import math


def cosine_annealing(start: float, step: float, steps: int, warmup_steps: int = 0) -> float:
    """The value at `step` (0 .. steps - 1): linear from 0 over the warm-up, then a half cosine from `start` to 0.

    >>> cosine_annealing(1.0, 0, 10), round(cosine_annealing(1.0, 5, 10), 6)
    (1.0, 0.5)
    """
    if step < warmup_steps:
        return start * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return start * 0.5 * (1 + math.cos(math.pi * progress))
