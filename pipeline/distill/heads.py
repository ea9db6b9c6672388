"""Modules between student and loss: projectors, heads over prototypes, and the normalisation of targets."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.distill.losses import sharpened, sinkhorn
from pipeline.distill.prototypes.files import Space

BN_EPS = 1e-4


class Projector(nn.Module):
    """``Linear(d_s, d_t)`` then ``BatchNorm1d(d_t, affine=False)``.

    Miles & Mikolajczyk's ``torchdistill/losses/single.py``: a linear layer with bias and default initialisation,
    eps 1e-4.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student_dim, teacher_dim)
        self.norm = nn.BatchNorm1d(teacher_dim, eps=BN_EPS, affine=False)

    def forward(self, e_NS: Tensor) -> Tensor:
        """Embeddings (N, d_s) to (N, d_t), each dimension of zero mean and unit variance over the rows."""
        return self.norm(self.linear(e_NS))


class DinoHead(nn.Module):
    """Three layers with GELU to a bottleneck on the unit sphere, then cosines to K learned prototypes.

    DINO's head (facebookresearch/dinov2 ``layers/dino_head.py``), with the norms of its last layer fixed at 1.
    """

    def __init__(self, student_dim: int, n_prototypes: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(student_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(n_prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, e_NS: Tensor) -> Tensor:
        """Cosines (N, K)."""
        return functional.normalize(self.mlp(e_NS), dim=1) @ functional.normalize(self.prototypes, dim=1).T


class TargetNorm(nn.Module):
    """Normalisation of the targets: ``batch`` (as the projector's), ``store`` (fixed statistics) or ``none``."""

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.from_numpy(mean).float(), persistent=False)
        self.register_buffer("std", torch.from_numpy(variance).add(BN_EPS).sqrt().float(), persistent=False)

    def forward(self, t_ND: Tensor) -> Tensor:
        """Targets (N, d_t), float32, normalised."""
        if self.kind == "batch":
            return standardise(t_ND)
        if self.kind == "store":
            return (t_ND - self.mean) / self.std
        return t_ND


def standardise(x_ND: Tensor) -> Tensor:
    """Zero mean and unit variance of each dimension over the rows, as `BatchNorm1d` does in training."""
    return functional.batch_norm(x_ND, None, None, training=True, eps=BN_EPS)


class Assigner(nn.Module):
    """The teacher's assignments: its vectors are standardised and normalised; then cosines to prototypes and softmax.

    Parameters
    ----------
    balance : str
        ``centre``: the prototypes' mean cosines over the training split are subtracted; ``sinkhorn``: balanced
        within the batch.
    """

    mean: Tensor
    std: Tensor
    prototypes: Tensor
    centre: Tensor

    def __init__(self, space: Space, balance: str, temperature: float) -> None:
        super().__init__()
        self.balance, self.temperature = balance, temperature
        for name in ("mean", "std", "prototypes", "centre"):
            self.register_buffer(name, torch.from_numpy(getattr(space, name)), persistent=False)

    def forward(self, t_ND: Tensor) -> Tensor:
        """Probabilities (N, K) of the teacher's raw features or tokens, float32 (N, D)."""
        similarity = functional.normalize((t_ND - self.mean) / self.std, dim=1) @ self.prototypes.T
        if self.balance == "sinkhorn":
            return sinkhorn(similarity, self.temperature)
        return sharpened(similarity, self.centre, self.temperature)
