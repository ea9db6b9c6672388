"""Validation on held-out views: the loss, and figures that can be compared between steps, losses and runs."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loader import Batch
from pipeline.distill.model import Distiller, Embedded, Targets
from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder
from pipeline.metrics.cka import cka, flattered, linear_cka
from pipeline.metrics.explained import explained_variance

_VIEWS_AT_ONCE = 32
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures of one validation; a figure that is not defined is None."""

    loss: float | None
    """As in training: mean over batches of the same size, each normalised by itself. Needs one whole batch."""
    loss_constant: float | None
    """The same of the mean of the targets as prediction for every view. Needs a loss of features alone."""
    explained: float | None
    """`pipeline.metrics.explained.explained_variance` of the student's features. Needs views of the training split."""
    cosine: float | None
    """Mean cosine between the projected student and the normalised target. Needs a projector."""
    cka: float
    """Linear CKA between the student's features (before the projector) and the stored teacher features."""
    cka_unbiased: float | None
    """Its unbiased form."""
    cka_ema: float | None = None
    """Linear CKA of the moving average of the student, if there is one."""
    nested: dict[int, dict[str, float]] | None = None
    """With ``--nested``: ``explained``, ``cka``, ``cka_unbiased`` and ``cosine`` of each prefix of the embedding."""

    def figures(self) -> dict[str, float]:
        """Those that are defined, by name; those of a prefix of 64 numbers end in ``_64``."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        for length, of_prefix in found.pop("nested", {}).items():
            found |= {f"{name}_{length}": value for name, value in of_prefix.items()}
        return found


def limits(n_views: int, batch_size: int, *dims: int) -> list[str]:
    """What a validation on so many views cannot say, a line each.

    Parameters
    ----------
    batch_size : int
        As for `validate`.
    dims
        Numbers in a feature of student and teacher.
    """
    lines = []
    if n_views < batch_size:
        lines.append(
            f"no held-out loss: {n_views} held-out views are fewer than the {batch_size} of a step, and the loss of a "
            "smaller batch is another figure; the other figures are measured"
        )
    few = flattered(n_views, *dims)
    return [*lines, f"warning: held out: {few}"] if few else lines


@torch.inference_mode()
def _embed_all(model: Distiller, held_out: Batch, device: torch.device) -> Embedded:
    """The student's features and tokens of all held-out views, on the CPU."""
    found = []
    for start in range(0, len(held_out.views), _VIEWS_AT_ONCE):
        rows = slice(start, start + _VIEWS_AT_ONCE)
        positions = torch.from_numpy(held_out.positions[rows]).long().to(device)
        found.append(model.embed(torch.from_numpy(held_out.views[rows]).to(device), positions).to(_CPU))
    features, *others = (
        [getattr(part, name) for part in found] for name in ("features", "tokens", "attention")
    )
    joined = (None if other[0] is None else torch.cat(other) for other in others)
    return Embedded(torch.cat(features), *joined)


def _batches(n_views: int, size: int) -> list[Tensor]:
    """Rows of each whole batch, mixed over slides as in training, always in the same way; a remainder is left out."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(n_views))
    return [order[start : start + size] for start in range(0, n_views - size + 1, size)]


@torch.inference_mode()
def validate(
    model: Distiller,
    held_out: Batch,
    batch_size: int,
    device: torch.device,
    ema: Encoder | None = None,
    fit: Batch | None = None,
) -> Validation:
    """Compare student and teacher on `held_out`. The student computes as it will be used: its dropout is off, its own
    batch normalisation takes what it learned.

    Parameters
    ----------
    batch_size : int
        Views over which the loss of a training step is normalised and computed: of all processes, where they share it.
    fit
        Views of the training split, from which the linear map of ``explained`` is fitted.
    """
    training = model.training
    model.eval()
    student, targets = _embed_all(model, held_out, device), Targets.of(held_out)
    losses, constants = [], []
    for rows in _batches(len(held_out.views), batch_size):
        target = targets.rows(rows).map(lambda tensor: tensor.to(device))
        losses.append(float(model.compare(student.rows(rows).to(device), target)[0]))
        constant = model.loss_constant(target)
        constants += [] if constant is None else [float(constant)]
    cosine = None
    if model.projector is not None:
        pair = model.projected(student.features.to(device)), model.target_norm(targets.features.to(device))
        cosine = float(torch.nn.functional.cosine_similarity(*pair, dim=1).mean())

    def features_of(encoder: Encoder, batch: Batch) -> np.ndarray:
        return embed(encoder, batch.views, _VIEWS_AT_ONCE, device, model.dtype).numpy()

    x, y = student.features.numpy(), targets.features.numpy()
    explained, fitted = None, None
    if fit is not None:
        fitted = features_of(model.student, fit)
        explained = explained_variance(fitted, fit.targets.astype(np.float32), x, y)
    nested = {}
    if model.nested:
        projected = model.every_projected(student.features.to(device))
        target = model.target_norm(targets.features.to(device))
        for length in map(int, model.nested):
            of = cka(x[:, :length], y)
            found = {"cka": of.linear, "cka_unbiased": of.unbiased}
            if fit is not None and fitted is not None:
                fit_y = fit.targets.astype(np.float32)
                found["explained"] = explained_variance(fitted[:, :length], fit_y, x[:, :length], y)
            found["cosine"] = float(torch.cosine_similarity(projected[length], target, dim=1).mean())
            nested[length] = {name: value for name, value in found.items() if value is not None}
    model.train(training)
    alike = cka(x, y)
    return Validation(
        float(np.mean(losses)) if losses else None,
        float(np.mean(constants)) if constants else None,
        explained,
        cosine,
        alike.linear,
        alike.unbiased,
        None if ema is None else linear_cka(features_of(ema, held_out), y),
        nested or None,
    )
