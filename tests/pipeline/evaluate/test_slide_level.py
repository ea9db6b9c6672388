"""Slide-level protocols: what they pool, what they learn, what they must not see."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.evaluate.linear import Fold, folds_by_group, logistic_probe
from pipeline.evaluate.slide_level import (
    GatedAttention,
    abmil_scores,
    bags_of,
    mean_pool,
    mean_pool_scores,
    train_abmil,
)
from stores.errors import EvaluationError


def cohort(
    n_slides: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Slides of 20 to 40 patches; in a positive one a tenth of the patches are of another kind."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_slides) % 2
    rows, slides = [], []
    for slide, label in enumerate(labels):
        n = int(rng.integers(20, 41))
        x = rng.normal(size=(n, 12))
        x[: n // 10, :2] += 6 * label
        rows.append(rng.permutation(x))
        slides += [slide] * n
    return np.concatenate(rows).astype(np.float32), np.array(slides), labels


def test_bags_and_means_of_slides_in_any_order() -> None:
    x, slides, _ = cohort(6, 0)
    order = np.random.default_rng(0).permutation(len(x))
    bags = bags_of(slides[order])
    pooled = mean_pool(x[order], bags)
    for slide in range(6):
        np.testing.assert_allclose(pooled[slide], x[slides == slide].mean(axis=0, dtype=float), rtol=1e-6)


def test_gated_attention_equals_its_equation() -> None:
    torch.manual_seed(0)
    model, bag = GatedAttention(12, 2).double(), torch.randn(9, 12, dtype=torch.double)
    logits, attention = model(bag)
    embed: Any = model.embed[0]
    h = np.maximum(bag.numpy() @ embed.weight.detach().numpy().T + embed.bias.detach().numpy(), 0)
    scores = []
    for row in h:
        v = np.tanh(model.value.weight.detach().numpy() @ row + model.value.bias.detach().numpy())
        u = 1 / (1 + np.exp(-(model.gate.weight.detach().numpy() @ row + model.gate.bias.detach().numpy())))
        scores.append((model.weight.weight.detach().numpy()[0] * v * u).sum() + model.weight.bias.item())
    a = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(attention.detach().numpy(), a, rtol=1e-9)
    pooled = (a[:, None] * h).sum(axis=0)
    expected = model.classify.weight.detach().numpy() @ pooled + model.classify.bias.detach().numpy()
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-9)


@pytest.mark.slow
def test_attention_finds_the_few_patches_that_decide() -> None:
    x, slides, labels = cohort(60, 1)
    bags = bags_of(slides)
    folds = folds_by_group(labels, np.arange(60), 5, 0)[:1]
    scores = abmil_scores(x, bags, labels, folds, 2, seed=0)
    tested = np.concatenate([fold.test for fold in folds])
    assert (scores[tested].argmax(axis=1) == labels[tested]).mean() >= 0.9
    np.testing.assert_allclose(scores[tested].sum(axis=1), 1, rtol=1e-6)
    assert np.isnan(scores[np.setdiff1d(np.arange(60), tested)]).all()
    again = abmil_scores(x, bags, labels, folds, 2, seed=0)
    np.testing.assert_array_equal(scores, again)


def test_labels_of_test_slides_are_not_seen() -> None:
    x, slides, labels = cohort(20, 2)
    bags, fold = bags_of(slides), Fold(np.arange(12), np.arange(12, 16), np.arange(16, 20))
    turned = labels.copy()
    turned[fold.test] = 1 - turned[fold.test]
    for scores in (
        [abmil_scores(x, bags, y, [fold], 2, seed=0, epochs=2)[fold.test] for y in (labels, turned)],
        [mean_pool_scores(x, bags, y, [fold], 2)[fold.test] for y in (labels, turned)],
    ):
        np.testing.assert_array_equal(scores[0], scores[1])


def test_mean_pooling_is_a_probe_of_the_means() -> None:
    x, slides, labels = cohort(30, 3)
    bags = bags_of(slides)
    folds = folds_by_group(labels, np.arange(30), 3, 0)
    scores = mean_pool_scores(x, bags, labels, folds, 2)
    for fold in folds:
        expected = logistic_probe(mean_pool(x, bags), labels, fold, 2).scores
        np.testing.assert_array_equal(scores[fold.test], expected)


def test_the_epoch_with_the_smallest_validation_loss_is_kept() -> None:
    x, slides, labels = cohort(20, 4)
    bags = [torch.from_numpy(x[rows]) for rows in bags_of(slides)]
    fold = Fold(np.arange(12), np.arange(12, 20), np.arange(12, 20))
    longer = train_abmil(bags, labels, fold, 2, 0, epochs=12)
    shorter = train_abmil(bags, labels, fold, 2, 0, epochs=longer.epoch)
    assert shorter.val_loss == longer.val_loss
    with torch.inference_mode():
        for bag in bags[:3]:
            assert torch.equal(shorter.model(bag)[0], longer.model(bag)[0])


def test_one_class_and_nan_are_named() -> None:
    x, slides, _ = cohort(8, 5)
    bags, fold = bags_of(slides), Fold(np.arange(4), np.arange(4, 6), np.arange(6, 8))
    with pytest.raises(EvaluationError, match="training slides: 1 different value"):
        abmil_scores(x, bags, np.zeros(8, np.int64), [fold], 2, 0)
    x[3, 0] = np.nan
    with pytest.raises(EvaluationError, match="the embedding of sample 3 is not finite"):
        mean_pool(x, bags)
