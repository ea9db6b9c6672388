"""Losses between the projected student and the normalised target.

Shapes: ``s_BD`` and ``t_BD`` are float32 (batch, teacher dim). Every loss returns a scalar.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-5


def log_sum(s_BD: Tensor, t_BD: Tensor, alpha: float = 4.0, eps: float = EPS) -> Tensor:
    """``log(sum over batch and dimensions of |s - t|^alpha + eps)``: one log over the whole batch.

    Miles & Mikolajczyk, arXiv 2303.11098, in the form of their ``torchdistill/losses/single.py``, which G2L's
    formula matches; the eps is ours, since the loss is unbounded below. Two independent unit-normal inputs
    give about ``log(12 * B * D)`` for alpha = 4: 13.29 for B = 32, D = 1536.
    """
    return torch.log((s_BD - t_BD).abs().pow(alpha).sum() + eps)


def cosine(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """``1 - mean over the batch of cos(s, t)``."""
    return 1 - functional.cosine_similarity(s_BD, t_BD, dim=1).mean()


def relational(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """Mean squared difference of the two batches' cosine-similarity matrices (Park et al., arXiv 1904.05068)."""
    s, t = functional.normalize(s_BD, dim=1), functional.normalize(t_BD, dim=1)
    return functional.mse_loss(s @ s.T, t @ t.T)


def make_loss(name: str, alpha: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of ``--loss``; `alpha` matters to log-sum only."""
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "log-sum": partial(log_sum, alpha=alpha),
        "mse": functional.mse_loss,
        "l1": functional.l1_loss,
        "smooth-l1": functional.smooth_l1_loss,
        "cosine": cosine,
        "relational": relational,
    }
    return losses[name]
