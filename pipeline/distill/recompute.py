"""``--checkpointing``: activations are computed again when the gradient needs them, instead of kept.

The second time a layer sees the same numbers and draws the same, so loss, gradients and weights are the same to the
bit; only batch normalisation must not learn from a batch twice.
"""

import contextlib
from collections.abc import Iterator

from torch import nn

from pipeline.encoders.encoder import Encoder
from stores.errors import OptionError


def use_checkpointing(student: Encoder) -> None:
    """Keep only what each block of the backbone begins with.

    Raises
    ------
    OptionError
        When the backbone cannot do so.
    """
    switch = getattr(student.backbone, "set_grad_checkpointing", None)
    if switch is not None:
        try:
            switch(True)
        except (AssertionError, NotImplementedError):  # models of timm that cannot
            switch = None
    if switch is None:
        raise OptionError(
            f"--checkpointing: {student.name} cannot compute its blocks again (most models of timm can); leave the "
            "option out, and use --micro-batch or a smaller --batch-size"
        )


@contextlib.contextmanager
def statistics_kept(student: nn.Module) -> Iterator[None]:
    """Batch normalisation computes as in training and learns no statistics: what is computed again was seen before."""
    learning = [
        (part, part.momentum, part.num_batches_tracked)
        for part in student.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training and part.track_running_stats
    ]
    counts = [None if count is None else count.clone() for _, _, count in learning]
    for part, _, _ in learning:
        part.momentum = 0.0  # (1 - 0) * statistics + 0 * those of the batch
    try:
        yield
    finally:
        for (part, momentum, count), before in zip(learning, counts, strict=True):
            part.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)
