"""Tasks of whole slides, such as a TP53 mutation: mean pooling, and gated attention (ABMIL), by patient.

- ``mean``: the mean of a slide's embeddings, then the logistic regression of `linear`.
- ``abmil``: attention-based multiple-instance learning with the gated attention of Ilse et al. (arXiv 1802.04712,
  equation 9): a linear layer to 256 numbers with ReLU, attention over 128, one slide a step, AdamW 2e-4 with weight
  decay 1e-3, at most 30 epochs, the one with the smallest loss on validation. G2L's paper does not say how it pools.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.evaluate.linear import CS, Fold, logistic_probe
from pipeline.metrics.checks import require_classes, require_features
from stores.errors import EvaluationError

HIDDEN, ATTENTION = 256, 128
EPOCHS, PATIENCE, LR, WEIGHT_DECAY = 30, 8, 2e-4, 1e-3


def bags_of(slides: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The rows of each slide, by the number of the slide."""
    order = np.argsort(slides, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(slides[order])) + 1)


def mean_pool(x: npt.NDArray[Any], bags: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    """The mean embedding of every slide, (n_slides, d)."""
    require_features("embeddings", x)
    return np.stack([x[rows].mean(axis=0, dtype=np.float64) for rows in bags])


def mean_pool_scores(
    x: npt.NDArray[Any],
    bags: Sequence[npt.NDArray[np.int64]],
    labels: npt.NDArray[np.int64],
    folds: Sequence[Fold],
    n_classes: int,
    cs: Sequence[float] = CS,
) -> npt.NDArray[np.float64]:
    """Scores of every slide from the fold that tests it, (n_slides, n_classes); NaN where none does."""
    pooled = mean_pool(x, bags)
    result = np.full((len(bags), n_classes), np.nan)
    for fold in folds:
        result[fold.test] = logistic_probe(pooled, labels, fold, n_classes, cs).scores
    return result


class GatedAttention(nn.Module):
    """Gated-attention pooling with a classifier."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU())
        self.value = nn.Linear(HIDDEN, ATTENTION)
        self.gate = nn.Linear(HIDDEN, ATTENTION)
        self.weight = nn.Linear(ATTENTION, 1)
        self.classify = nn.Linear(HIDDEN, n_classes)

    def forward(self, bag_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n_classes,) and attention (N,), which sums to 1, of the N patches of one slide."""
        hidden = self.embed(bag_ND)
        attention = self.weight(torch.tanh(self.value(hidden)) * torch.sigmoid(self.gate(hidden)))[
            :, 0
        ].softmax(0)
        return self.classify(attention @ hidden), attention


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained pooling."""

    model: GatedAttention
    epoch: int
    val_loss: float


def train_abmil(
    bags: Sequence[Tensor],
    labels: npt.NDArray[np.int64],
    fold: Fold,
    n_classes: int,
    seed: int,
    epochs: int = EPOCHS,
) -> Trained:
    """Train on the slides of a fold, keep the epoch with the smallest loss on its validation slides.

    Parameters
    ----------
    bags : float32 (patches, d) each
    """
    require_classes("labels of the training slides", labels[fold.train])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = GatedAttention(bags[0].shape[1], n_classes)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    targets = torch.from_numpy(labels)
    counts = np.bincount(labels[fold.train], minlength=n_classes).clip(min=1)
    weight = torch.from_numpy(len(fold.train) / (n_classes * counts)).float()  # classes count alike
    loss = nn.CrossEntropyLoss(weight)
    best: Trained | None = None
    for epoch in range(1, epochs + 1):
        model.train()
        for i in torch.randperm(len(fold.train), generator=order).tolist():
            slide = int(fold.train[i])
            optimiser.zero_grad(set_to_none=True)
            value = loss(model(bags[slide])[0][None], targets[slide][None])
            value.backward()
            optimiser.step()
        val_loss = _loss(model, bags, targets, fold.val)
        if best is None or val_loss < best.val_loss:
            kept = GatedAttention(bags[0].shape[1], n_classes)
            kept.load_state_dict(model.state_dict())
            best = Trained(kept.eval(), epoch, val_loss)
        elif epoch - best.epoch >= PATIENCE:
            break
    assert best is not None
    return best


@torch.inference_mode()
def _loss(
    model: GatedAttention, bags: Sequence[Tensor], targets: Tensor, rows: npt.NDArray[np.int64]
) -> float:
    model.eval()
    values = [nn.functional.cross_entropy(model(bags[i])[0][None], targets[i][None]) for i in rows.tolist()]
    return float(torch.stack(values).double().mean())


class _Scaled(Sequence[Tensor]):
    """Bags scaled by mean and standard deviation of the training patches, computed on access."""

    def __init__(
        self, x: npt.NDArray[Any], bags: Sequence[npt.NDArray[np.int64]], train: npt.NDArray[np.int64]
    ) -> None:
        self._x, self._bags = x, bags
        n = sum(len(bags[i]) for i in train)
        self._mean = sum(x[bags[i]].sum(axis=0, dtype=np.float64) for i in train) / n
        variance = sum(np.square(x[bags[i]] - self._mean).sum(axis=0) for i in train) / n
        self._std = np.where(variance > 0, np.sqrt(variance), 1)

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, index: Any) -> Any:
        scaled = (self._x[self._bags[index]] - self._mean) / self._std
        return torch.from_numpy(scaled.astype(np.float32))


def abmil_scores(
    x: npt.NDArray[Any],
    bags: Sequence[npt.NDArray[np.int64]],
    labels: npt.NDArray[np.int64],
    folds: Sequence[Fold],
    n_classes: int,
    seed: int,
    epochs: int = EPOCHS,
) -> npt.NDArray[np.float64]:
    """As `mean_pool_scores`, with gated attention; features are scaled by the training patches of the fold."""
    require_features("embeddings", x)
    if len(labels) != len(bags):
        raise EvaluationError(f"{len(labels)} labels and {len(bags)} slides; one each is needed")
    result = np.full((len(bags), n_classes), np.nan)
    for number, fold in enumerate(folds):
        scaled = _Scaled(x, bags, fold.train)
        trained = train_abmil(scaled, labels, fold, n_classes, seed + number, epochs)
        with torch.inference_mode():
            for i in fold.test.tolist():
                result[i] = trained.model(scaled[i])[0].softmax(0).double().numpy()
    return result
