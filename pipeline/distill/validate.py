"""Validation on held-out views: the loss, and figures that can be compared between steps, losses and runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loader import Batch
from pipeline.distill.model import Distiller, Embedded, Lesson, Targets
from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder
from pipeline.metrics.cka import cka, flattered, linear_cka
from pipeline.metrics.explained import explained_variance

_LEAST = 2
"""Views of a teacher that figures need."""


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
    teachers: dict[str, dict[str, Any]] | None = None
    """With several stores: the figures against each teacher, by the name of its store, on the views that it has a
    target for. Those above are then their means, and the losses their weighted sums."""

    def figures(self) -> dict[str, Any]:
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
def _embed_all(model: Distiller, held_out: Batch, device: torch.device, at_once: int) -> list[Embedded]:
    """The student's features and tokens of all held-out views, on the CPU, as the loss of each teacher takes them."""
    parts: list[list[Embedded]] = []
    for start in range(0, len(held_out.views), at_once):
        rows = slice(start, start + at_once)
        positions = [torch.from_numpy(part.positions[rows]).long().to(device) for part in held_out.stored]
        views = torch.from_numpy(held_out.views[rows]).to(device)
        found = model.embed_for(views, positions, _beside(held_out, rows, device))
        parts.append([embedded.to(torch.device("cpu")) for embedded in found])
    return [_joined(of_teacher) for of_teacher in zip(*parts, strict=True)]


def _beside(held_out: Batch, rows: slice, device: torch.device) -> Targets | None:
    """The targets of some views with the views beside them, where the loss uses pairs."""
    if held_out.paired is None:
        return None
    return Targets.of(held_out.rows(rows)).map(lambda tensor: tensor.to(device))


def _joined(found: Sequence[Embedded]) -> Embedded:
    features, *others = (
        [getattr(part, name) for part in found] for name in ("features", "tokens", "attention", "beside")
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
    at_once: int | None = None,
) -> Validation:
    """Compare student and teacher on `held_out`. The student computes as it will be used: its dropout is off, its own
    batch normalisation takes what it learned.

    Parameters
    ----------
    batch_size : int
        Views over which the loss of a training step is normalised and computed: of all processes, where they share it.
    fit
        Views of the training split, from which the linear map of ``explained`` is fitted.
    at_once : int, optional
        Views that the student computes together: as in a step of training, by default `batch_size`.
    """
    training = model.training
    model.eval()
    at_once = at_once or batch_size
    students, targets = _embed_all(model, held_out, device, at_once), Targets.of(held_out)

    def features_of(encoder: Encoder, batch: Batch) -> np.ndarray:
        return embed(encoder, batch.views, at_once, device, model.dtype).numpy()

    fitted = None if fit is None else features_of(model.student, fit)
    averaged = None if ema is None else features_of(ema, held_out)
    found: list[Validation | None] = []
    for number, (lesson, student) in enumerate(zip(model.lessons, students, strict=True)):
        rows, known = _rows_of(held_out, number), None
        if len(rows) < _LEAST:
            found.append(None)
            continue
        if fit is not None and fitted is not None:
            at = _rows_of(fit, number)
            stored = fit.stored[number].targets[at].astype(np.float32)
            known = (fitted[at], stored) if len(at) >= _LEAST else None
        target = [targets, *targets.others][number].alone(rows)
        of_average = None if averaged is None else averaged[rows.numpy()]
        found.append(_of_teacher(lesson, student.rows(rows), target, batch_size, device, known, of_average))
    model.train(training)
    if len(found) == 1:
        assert found[0] is not None  # `open_data` asks for two views
        return found[0]
    return _together(model, found)


def identities(held_out: Batch) -> list[dict[str, Any]]:
    """Number and SHA-256 of the held-out views that each teacher is compared on: equal for the same pixels.

    Figures of two runs can be ranked only where they were measured on the same views. The digest is over those of the
    views, in sorted order.
    """
    digests = [hashlib.sha256(view.data).digest() for view in np.ascontiguousarray(held_out.views)]
    found = []
    for number in range(len(held_out.stored)):
        rows = _rows_of(held_out, number).tolist()
        joined = b"".join(sorted(digests[row] for row in rows))
        found.append({"views": len(rows), "sha256": hashlib.sha256(joined).hexdigest()})
    return found


def _rows_of(batch: Batch, number: int) -> Tensor:
    """The views that a teacher has a target for."""
    if batch.present is None:
        return torch.arange(len(batch.views))
    return torch.from_numpy(batch.present[:, number]).nonzero().flatten()


def _of_teacher(
    lesson: Lesson,
    student: Embedded,
    targets: Targets,
    batch_size: int,
    device: torch.device,
    known: tuple[np.ndarray, np.ndarray] | None,
    averaged: np.ndarray | None,
) -> Validation:
    """The figures against one teacher.

    Parameters
    ----------
    known
        Features of student and teacher on training views.
    averaged
        Features of the moving average of the student.
    """
    losses, constants = [], []
    for rows in _batches(len(targets.features), batch_size):
        target = targets.rows(rows).map(lambda tensor: tensor.to(device))
        losses.append(float(lesson.compare(student.rows(rows).to(device), target)[0]))
        constant = lesson.loss_constant(target)
        constants += [] if constant is None else [float(constant)]
    cosines: dict[int, float] = {}
    if lesson.projector is not None:
        normed = lesson.target_norm(targets.features.to(device))
        for length, projected in lesson.every_projected(student.features.to(device)).items():
            cosines[length] = float(torch.nn.functional.cosine_similarity(projected, normed, dim=1).mean())
    x, y = student.features.numpy(), targets.features.numpy()
    nested = {}
    for length in map(int, lesson.nested):
        of = cka(x[:, :length], y)
        found = {"cka": of.linear, "cka_unbiased": of.unbiased}
        if known is not None:
            found["explained"] = explained_variance(known[0][:, :length], known[1], x[:, :length], y)
        found["cosine"] = cosines[length]
        nested[length] = {name: value for name, value in found.items() if value is not None}
    alike = cka(x, y)
    return Validation(
        float(np.mean(losses)) if losses else None,
        float(np.mean(constants)) if constants else None,
        None if known is None else explained_variance(*known, x, y),
        next(iter(cosines.values()), None),  # of all that is compared: prefixes come after
        alike.linear,
        alike.unbiased,
        None if averaged is None else linear_cka(averaged, y),
        nested or None,
    )


def _together(model: Distiller, found: Sequence[Validation | None]) -> Validation:
    """The figures of several teachers: means, and weighted sums of the losses where every teacher has one."""
    there = [one for one in found if one is not None]

    def mean(name: str) -> float | None:
        values = [getattr(one, name) for one in there]
        return float(np.mean(values)) if values and None not in values else None

    def total(name: str) -> float | None:
        values = [getattr(one, name) for one in there]
        if len(there) < len(found) or None in values:
            return None
        return float(np.dot(model.weights, values))

    of_each = {name: one.figures() for name, one in zip(model.names, found, strict=True) if one is not None}
    nested: dict[int, dict[str, float]] = {}
    for length, figures in (there[0].nested or {}).items():
        every = [(one.nested or {}).get(length, {}) for one in there]
        shared = [name for name in figures if all(name in of for of in every)]
        nested[length] = {name: float(np.mean([of[name] for of in every])) for name in shared}
    alike = mean("cka")
    assert alike is not None  # `open_data` asks for two views
    return Validation(
        total("loss"),
        total("loss_constant"),
        mean("explained"),
        mean("cosine"),
        alike,
        mean("cka_unbiased"),
        mean("cka_ema"),
        nested or None,
        of_each,
    )
