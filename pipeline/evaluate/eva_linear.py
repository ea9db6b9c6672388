"""eva's protocol of a linear head: AdamW, 12,500 steps of 256 samples, five runs, early stopping on validation.

kaiko-ai/eva's offline classification of patches, as its code does it (``configs/vision/pathology/offline``,
``HeadModule``, and Lightning's defaults under them):

- A ``torch.nn.Linear`` on frozen features. Two classes have one output and binary cross entropy, more have an output
  each and cross entropy. AdamW at 3e-4; the configurations name no schedule, and ``HeadModule`` then takes torch's
  ``ConstantLR``, which is a third of the rate in the first five epochs.
- Balanced accuracy on validation after every whole epoch; the best epoch is tested, of equals the first. A class that
  validation lacks counts as recall 0 when it is predicted (torchmetrics); of two classes, always.
- Patience differs by data set (BACH 1250 epochs, PatchCamelyon 3), and is always a fifth of the epochs that 12,500
  steps make, rounded up: `patience_of`. Their ten-shot variant of PatchCamelyon alone has a rule of its own.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.evaluate.linear import Fold
from pipeline.metrics.checks import require_classes, require_features

STEPS, BATCH, LR, RUNS = 12_500, 256, 3e-4, 5
SLOW_EPOCHS = 5
"""Of torch's ``ConstantLR``."""


@dataclass(frozen=True, slots=True)
class HeadRun:
    """One of the runs."""

    scores: npt.NDArray[np.float64]
    """Of the test samples, (m, n_classes)."""
    balanced_accuracy: float
    """On the test samples."""
    best_epoch: int
    steps: int


def patience_of(n_train: int, steps: int = STEPS) -> int:
    """Epochs without a better validation after which eva stops: a fifth of those that `steps` make, rounded up.

    >>> {name: patience_of(n) for name, n in (("BACH", 268), ("CRC", 100_000), ("MHIST", 2175), ("PCam", 262_144))}
    {'BACH': 1250, 'CRC': 7, 'MHIST': 278, 'PCam': 3}
    """
    return math.ceil(steps / math.ceil(n_train / BATCH) / 5)


def eva_linear(
    x: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    fold: Fold,
    n_classes: int,
    seed: int,
    patience: int | None = None,
    steps: int = STEPS,
    runs: int = RUNS,
) -> list[HeadRun]:
    """Train and test the head `runs` times; run i draws from seed ``seed + i``.

    Parameters
    ----------
    patience
        None takes eva's for a data set of this size, `patience_of`.
    """
    require_features("linear", x)
    require_classes("labels of the training samples", labels[fold.train])
    parts = [torch.from_numpy(x[rows].astype(np.float32)) for rows in (fold.train, fold.val, fold.test)]
    if patience is None:
        patience = patience_of(len(fold.train))
    return [_run(parts, labels, fold, n_classes, seed + number, patience, steps) for number in range(runs)]


def _run(
    parts: list[torch.Tensor],
    labels: npt.NDArray[np.int64],
    fold: Fold,
    n_classes: int,
    seed: int,
    patience: int,
    steps: int,
) -> HeadRun:
    train, val, test = parts
    binary = n_classes == 2
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(train.shape[1], 1 if binary else n_classes)
    bound = train.shape[1] ** -0.5  # torch's own start, drawn from our generator
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.uniform_(-bound, bound, generator=generator)
    optimiser = torch.optim.AdamW(head.parameters(), lr=LR)
    targets = torch.from_numpy(labels[fold.train])
    best, best_epoch, best_state, done, epoch = -1.0, 0, None, 0, 0
    while done < steps and epoch - best_epoch < patience:
        for group in optimiser.param_groups:
            group["lr"] = LR / 3 if epoch < SLOW_EPOCHS else LR
        batches = torch.randperm(len(train), generator=generator).split(BATCH)
        for rows in batches[: steps - done]:
            optimiser.zero_grad(set_to_none=True)
            _loss(head(train[rows]), targets[rows]).backward()
            optimiser.step()
        if len(batches) > steps - done:  # Lightning does not validate an epoch that the last step cuts
            done = steps
            break
        done += len(batches)
        epoch += 1
        figure = _balanced_accuracy(_scores(head, val), labels[fold.val])
        if figure > best:
            best, best_epoch = figure, epoch
            best_state = {name: value.clone() for name, value in head.state_dict().items()}
    if best_state is not None:
        head.load_state_dict(best_state)
    scores = _scores(head, test)
    return HeadRun(scores, _balanced_accuracy(scores, labels[fold.test]), best_epoch, done)


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if logits.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
    return nn.functional.cross_entropy(logits, targets)


@torch.inference_mode()
def _scores(head: nn.Linear, x: torch.Tensor) -> npt.NDArray[np.float64]:
    """Probabilities of the classes, (n, n_classes)."""
    logits = head(x).double()
    if logits.shape[1] == 1:
        return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1).numpy()
    return logits.softmax(dim=1).numpy()


def _balanced_accuracy(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The mean recall over the classes that occur or are predicted; of two classes, over both."""
    predicted, n_classes = scores.argmax(axis=1), scores.shape[1]
    there = np.bincount(labels, minlength=n_classes)
    right = np.bincount(labels[predicted == labels], minlength=n_classes)
    counted = (there + np.bincount(predicted, minlength=n_classes) > 0) | (n_classes == 2)
    return float((right / np.maximum(there, 1))[counted].mean())
