"""Validation on held-out views: loss, cosine and linear CKA against the teacher."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.distill.loader import Batch
from pipeline.distill.model import Distiller, TargetNorm, standardise
from pipeline.encoders import Encoder
from pipeline.evaluate.cka import linear_cka


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures of one validation."""

    loss: float
    """Mean over batches of the training's size."""
    cosine: float
    """Mean over views, between the projected student and the target, normalised as for the loss."""
    cka: float
    """Linear CKA between the student's embedding (before the projector) and the raw teacher features."""


@torch.inference_mode()
def embed(
    student: Encoder, views: npt.NDArray[np.uint8], batch_size: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The student's embeddings of views (N, H, W, 3), float32 (N, d_s) on the CPU."""
    training = student.training
    student.eval()
    parts = []
    for start in range(0, len(views), batch_size):
        batch = torch.from_numpy(views[start : start + batch_size]).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            parts.append(student(batch).float().cpu())
    student.train(training)
    return torch.cat(parts)


@torch.inference_mode()
def validate(
    model: Distiller,
    targets_norm: TargetNorm,
    loss: Callable[[Tensor, Tensor], Tensor],
    held_out: Batch,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Validation:
    """Compare student and teacher on `held_out`.

    Batch normalisation takes its statistics from all held-out views together: they exist before the first
    step, and do not depend on how views fall into batches.
    """
    embedding = embed(model.student, held_out.views, max(batch_size, 32), device, dtype)
    raw = torch.from_numpy(held_out.targets).float()
    projected = standardise(model.projector.linear(embedding.to(device)))
    targets = targets_norm(raw.to(device))
    losses = [
        float(loss(s, t))
        for s, t in zip(projected.split(batch_size), targets.split(batch_size), strict=True)
        if len(s) > 1
    ]
    return Validation(
        loss=float(np.mean(losses)),
        cosine=float(torch.nn.functional.cosine_similarity(projected, targets, dim=1).mean()),
        cka=linear_cka(embedding.numpy(), raw.numpy()),
    )
