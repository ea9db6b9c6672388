"""eva's protocol of a linear head: AdamW, 12,500 steps of 256 samples, five runs, early stopping on validation.

kaiko-ai/eva's offline classification: a ``torch.nn.Linear`` on frozen features, cross entropy, learning rate 3e-4,
shuffled epochs; training stops when balanced accuracy on validation has not risen for `patience` epochs, and the best
epoch is tested. Patience is set for each data set there (BACH 400, for instance).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.evaluate.linear import Fold
from pipeline.metrics.checks import require_classes, require_features
from pipeline.metrics.classification import Classification

STEPS, BATCH, LR, RUNS = 12_500, 256, 3e-4, 5


@dataclass(frozen=True, slots=True)
class HeadRun:
    """One of the runs."""

    scores: npt.NDArray[np.float64]
    """Of the test samples, (m, n_classes)."""
    balanced_accuracy: float
    """On the test samples."""
    best_epoch: int
    steps: int


def eva_linear(
    x: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    fold: Fold,
    n_classes: int,
    seed: int,
    patience: int = 400,
    steps: int = STEPS,
    runs: int = RUNS,
) -> list[HeadRun]:
    """Train and test the head `runs` times; run i draws from seed ``seed + i``."""
    require_features("linear", x)
    require_classes("labels of the training samples", labels[fold.train])
    parts = [torch.from_numpy(x[rows].astype(np.float32)) for rows in (fold.train, fold.val, fold.test)]
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
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(train.shape[1], n_classes)
    bound = train.shape[1] ** -0.5  # torch's own start, drawn from our generator
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.uniform_(-bound, bound, generator=generator)
    optimiser = torch.optim.AdamW(head.parameters(), lr=LR)
    targets = torch.from_numpy(labels[fold.train])
    best, best_epoch, best_state, done, epoch = -1.0, 0, head.state_dict(), 0, 0
    while done < steps and epoch - best_epoch <= patience:
        order = torch.randperm(len(train), generator=generator)
        for rows in order.split(BATCH)[: steps - done]:
            optimiser.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(head(train[rows]), targets[rows]).backward()
            optimiser.step()
            done += 1
        epoch += 1
        figure = _balanced_accuracy(head, val, labels[fold.val], n_classes)
        if figure > best:
            best, best_epoch = figure, epoch
            best_state = {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best_state)
    with torch.inference_mode():
        scores = head(test).softmax(dim=1).double().numpy()
    return HeadRun(scores, _balanced_accuracy(head, test, labels[fold.test], n_classes), best_epoch, done)


def _balanced_accuracy(
    head: nn.Linear, x: torch.Tensor, labels: npt.NDArray[np.int64], n_classes: int
) -> float:
    with torch.inference_mode():
        predicted = head(x).argmax(dim=1).numpy()
    return float(Classification(labels, predicted, n_classes).figures(np.ones(len(labels)))[1])
