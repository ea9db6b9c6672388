"""Out of memory in a training: one line that names the options which need less."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.distill.micro import make_divisible
from pipeline.distill.options import DistillOptions
from pipeline.distill.recompute import use_checkpointing
from pipeline.encoders.encoder import Encoder
from stores.errors import DistillError, OptionError

_OF_A_CPU = "DefaultCPUAllocator"
"""PyTorch's allocator of a CPU says so in a plain RuntimeError."""


@contextlib.contextmanager
def explained(options: DistillOptions, student: Encoder) -> Iterator[None]:
    """Turn what Python and PyTorch raise when memory is short into a DistillError; checkpoints are as they were.

    Parameters
    ----------
    student
        Whose training it is: some cannot do what others can. It is of no use afterwards.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or _OF_A_CPU in str(error)):
            raise
        of_device = isinstance(error, torch.OutOfMemoryError)
        raise DistillError(
            f"out of memory {'on the GPU' if of_device else 'on this machine'}: "
            f"{_remedies(options, student, of_device)}; checkpoints are kept, and the same command with them continues "
            "from the last, if there is one"
        ) from None


def _remedies(options: DistillOptions, student: Encoder, of_device: bool) -> str:
    part = options.micro_batch or options.batch_size
    found = []
    if not options.checkpointing and _can(use_checkpointing, student):
        found.append("--checkpointing")
    if part > 1 and _can(make_divisible, student.train(), "--micro-batch"):
        found.append(f"--micro-batch {max(part // 2, 1)}")
    found += [] if of_device else ["--readers threads", "fewer --threads"]
    tried = " or ".join(found) or "another device, or a smaller --batch-size in another --out"
    return f"try {tried} (`g2l plan --student {options.student}` says what fits)"


def _can(do: Callable[..., Any], *given: Any) -> bool:
    """Whether a student takes an option."""
    try:
        do(*given)
    except OptionError:
        return False
    return True
