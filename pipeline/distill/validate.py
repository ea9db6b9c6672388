"""Validation on held-out views: loss, cosine and linear CKA against the teacher."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loader import Batch
from pipeline.distill.heads import standardise
from pipeline.distill.model import Distiller, Embedded, Targets
from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder
from pipeline.metrics.cka import linear_cka


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures of one validation."""

    loss: float
    """Mean over batches of the size used in training."""
    cosine: float | None
    """Mean cosine between the projected student and the normalised target; None for a loss without projector."""
    cka: float
    """Linear CKA between the student's features (before the projector) and the stored teacher features."""
    cka_ema: float | None = None
    """The same for the moving average of the student, if there is one."""


@torch.inference_mode()
def _embed_all(model: Distiller, held_out: Batch, batch_size: int, device: torch.device) -> Embedded:
    """The student's features and tokens of all held-out views, on the CPU."""
    features, tokens = [], []
    for start in range(0, len(held_out.views), batch_size):
        views = torch.from_numpy(held_out.views[start : start + batch_size]).to(device)
        positions = torch.from_numpy(held_out.positions[start : start + batch_size]).long().to(device)
        found = model.embed(views, positions)
        features.append(found.features.cpu())
        if found.tokens is not None:
            tokens.append(found.tokens.cpu())
    return Embedded(torch.cat(features), torch.cat(tokens) if tokens else None)


@torch.inference_mode()
def validate(
    model: Distiller, held_out: Batch, batch_size: int, device: torch.device, ema: Encoder | None = None
) -> Validation:
    """Compare student and teacher on `held_out`.

    Batch normalisation takes its statistics from all held-out views together: they exist before the first
    step, and do not depend on how views fall into batches.
    """
    training = model.training
    model.eval()
    large = max(batch_size, 32)
    student, targets = _embed_all(model, held_out, large, device), Targets.of(held_out)
    pairs: list[tuple[Tensor, Tensor] | None] = [None] * len(student.split(batch_size))
    cosine = None
    if model.projector is not None:
        projected = standardise(model.projector.linear(student.features.to(device)))
        normalised = model.target_norm(targets.features.to(device))
        cosine = float(torch.nn.functional.cosine_similarity(projected, normalised, dim=1).mean())
        pairs = list(zip(projected.split(batch_size), normalised.split(batch_size), strict=True))
    losses = []
    for part, target, pair in zip(student.split(batch_size), targets.split(batch_size), pairs, strict=True):
        if len(part.features) > 1:
            found = model.terms(part.to(device), target.map(lambda tensor: tensor.to(device)), pair)
            losses.append(sum(model.loss[name] * float(value) for name, value in found.items()))
    model.train(training)
    raw, cka_ema = targets.features.numpy(), None
    if ema is not None:
        cka_ema = linear_cka(embed(ema, held_out.views, large, device, model.dtype).numpy(), raw)
    return Validation(float(np.mean(losses)), cosine, linear_cka(student.features.numpy(), raw), cka_ema)
