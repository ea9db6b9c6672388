"""``--micro-batch``: a step in parts, whose loss is that of the whole batch.

Batch normalisation, log-sum and InfoNCE see all views of a step, so the losses of parts cannot be added up. But the
loss depends on the student through its embeddings alone, which are small:

1. all parts are embedded without a gradient,
2. the loss of the whole is computed, and its gradient with respect to the embeddings,
3. each part is embedded again, and the gradient of its embeddings is taken back to the weights.

Gao et al., arXiv 2101.06983, section 3.2 (gradient cache). The weights get the gradient of the undivided step, to
float32 rounding; the price is one more forward pass. Layers draw the same in both passes, and `StochasticDepth` leaves
out what the undivided step leaves out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.distill.model import Distiller, Embedded, Targets, different, with_others
from stores.errors import OptionError


class StochasticDepth(nn.Module):
    """timm's ``DropPath``, except that the draws for a part of a step are rows of the draws for the whole step."""

    part: tuple[Tensor, int] | None = None
    """Which views of the step the part has, (n,), and how many the step has; None where a step is not divided."""

    def __init__(self, drop_prob: float, scale_by_keep: bool) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, ...), some of them 0, the others scaled up. A view may have several rows, such as windows."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        which, of_step = self.part or (torch.arange(len(x), device=x.device), len(x))
        rows = len(x) // len(which)
        drawn = x.new_empty((of_step * rows,) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        drawn = drawn.unflatten(0, (of_step, rows))[which].flatten(0, 1)
        return x * (drawn.div_(keep) if keep > 0 and self.scale_by_keep else drawn)


def make_divisible(student: nn.Module, option: str) -> None:
    """Prepare a student, in training, for steps in parts.

    Raises
    ------
    OptionError
        When it has batch normalisation that learns: its statistics would be those of a part.
    """
    for part in student.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise OptionError(
                f"{option}: {student.name} has batch normalisation of its own, which would see only a part of the "
                "batch; leave the option out and use --checkpointing"
            )
    for parent in list(student.modules()):
        child: Any
        for name, child in parent.named_children():
            if type(child).__name__ == "DropPath":
                setattr(parent, name, StochasticDepth(child.drop_prob, child.scale_by_keep))


def add_gradients(
    model: Distiller,
    views: Tensor,
    targets: Targets,
    size: int,
    seed: int,
    scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradients of a step to those of the parameters, by parts of `size` views; returns what `model` returns.

    Parameters
    ----------
    seed : int
        Of the random layers.
    scaled
        Applied to the loss before its gradient is taken.
    """
    depths = [part for part in model.student.modules() if isinstance(part, StochasticDepth)]
    parts = [slice(start, min(start + size, len(views))) for start in range(0, len(views), size)]
    places = [targets.positions, *(other.positions for other in targets.others)]

    of_step = torch.arange(len(views), device=views.device)
    with_beside = of_step[:0] if targets.has_beside is None else targets.has_beside.nonzero().flatten()

    def embedded(rows: slice) -> list[Embedded]:
        beside = with_beside
        if targets.has_beside is not None:
            here = targets.has_beside[rows].nonzero().flatten() + rows.start
            beside = torch.searchsorted(with_beside, here)
        for depth in depths:
            depth.part = (torch.cat([of_step[rows], len(views) + beside]), len(views) + len(with_beside))
        torch.manual_seed(seed)
        return model.embed_for(views[rows], [place[rows] for place in places], targets.rows(rows))

    with torch.no_grad():
        found = [embedded(rows) for rows in parts]
    leaves = [torch.cat(tensors).requires_grad_() for tensors in zip(*map(different, found), strict=True)]
    loss, terms = model.loss_of(with_others(found[0], leaves), targets)
    scaled(loss).backward()
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    for rows in parts:
        torch.autograd.backward(different(embedded(rows)), [gradient[rows] for gradient in gradients])
    for depth in depths:
        depth.part = None
    return loss.detach(), terms
