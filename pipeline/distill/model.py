"""What is trained: the student, the projector onto the teacher's dimensions, and the targets' normalisation."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.encoders import Encoder

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

    def forward(self, e_BS: Tensor) -> Tensor:
        """Embeddings (B, d_s) to (B, d_t), each dimension of zero mean and unit variance over the batch."""
        return self.norm(self.linear(e_BS))


class TargetNorm(nn.Module):
    """Normalisation of the targets: ``batch`` (as the projector's), ``store`` (fixed statistics) or ``none``."""

    def __init__(self, kind: str, mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.from_numpy(mean).float(), persistent=False)
        self.register_buffer("std", torch.from_numpy(variance).add(BN_EPS).sqrt().float(), persistent=False)

    def forward(self, t_BD: Tensor) -> Tensor:
        """Targets (B, d_t), float32, normalised."""
        if self.kind == "batch":
            return standardise(t_BD)
        if self.kind == "store":
            return (t_BD - self.mean) / self.std  # type: ignore[operator]
        return t_BD


def standardise(x_BD: Tensor) -> Tensor:
    """Zero mean and unit variance of each dimension over the batch, as `BatchNorm1d` does in training."""
    return nn.functional.batch_norm(x_BD, None, None, training=True, eps=BN_EPS)


class Distiller(nn.Module):
    """Student and projector, trained together; only the student is kept in the end."""

    def __init__(
        self,
        student: Encoder,
        projector: Projector,
        dtype: torch.dtype = torch.float32,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.projector = projector
        self.dtype = dtype
        self._gather = gather

    def forward(self, views: Tensor) -> Tensor:
        """Views uint8 (B, H, W, 3) to projected features, float32 (B, d_t), or those of all processes' views."""
        with torch.autocast(views.device.type, self.dtype, enabled=self.dtype != torch.float32):
            embedding = self.student(views)
        embedding = embedding.float()
        return self.projector(embedding if self._gather is None else self._gather(embedding))


def build(
    student: Encoder,
    teacher_dim: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Distiller:
    """A distiller with a seeded projector; leaves the global random state alone.

    Parameters
    ----------
    dtype
        Arithmetic of the student's forward pass; the projector computes in float32.
    gather
        Puts the embeddings of all processes together before the projector; see `pipeline.distill.ranks.Gather`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Distiller(student, Projector(student.dim, teacher_dim), dtype, gather)
