"""Out of memory in a training: one line that names the options which need less."""

import contextlib
from collections.abc import Iterator

import torch

from pipeline.distill.options import DistillOptions
from stores.errors import DistillError

_OF_A_CPU = "DefaultCPUAllocator"
"""PyTorch's allocator of a CPU says so in a plain RuntimeError."""


@contextlib.contextmanager
def explained(options: DistillOptions) -> Iterator[None]:
    """Turn what Python and PyTorch raise when memory is short into a DistillError; checkpoints are as they were."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or _OF_A_CPU in str(error)):
            raise
        of_device = isinstance(error, torch.OutOfMemoryError)
        raise DistillError(
            f"out of memory {'on the GPU' if of_device else 'on this machine'}: {_remedies(options, of_device)}; "
            "checkpoints are kept, and the same command with them continues from the last, if there is one"
        ) from None


def _remedies(options: DistillOptions, of_device: bool) -> str:
    part = options.micro_batch or options.batch_size
    found = [] if options.checkpointing else ["--checkpointing"]
    found += [f"--micro-batch {max(part // 2, 1)}"] if part > 1 else []
    found += [] if of_device else ["--readers threads", "fewer --threads"]
    tried = " or ".join(found) or "another device"
    return f"try {tried} (`g2l plan --student {options.student}` says what fits)"
