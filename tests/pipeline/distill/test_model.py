"""Projector and normalisation of the targets."""

import numpy as np
import pytest
import torch

from pipeline.distill.heads import BN_EPS, Projector, TargetNorm, standardise
from pipeline.distill.model import Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.several import build
from pipeline.encoders.load import load_encoder
from stores.errors import G2LError


def test_projector_is_linear_and_batch_norm_without_affine() -> None:
    projector = Projector(5, 7)
    assert sorted(name for name, _ in projector.named_parameters()) == ["linear.bias", "linear.weight"]
    x = torch.randn(64, 5)
    y = projector(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(y, standardise(projector.linear(x)))
    raw = projector.linear(x)
    manual = (raw - raw.mean(0)) / (raw.var(0, unbiased=False) + BN_EPS).sqrt()
    torch.testing.assert_close(y, manual)


def test_building_the_projector_leaves_the_global_random_state_alone() -> None:
    student = load_encoder("tests.tools.tiny:student", random_weights=0)
    before = torch.get_rng_state()
    teaching = Teaching(9, np.zeros(9), np.ones(9))
    first, second, third = (
        build(student, [teaching], DistillOptions(seed=seed)).projector for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first is not None
    assert second is not None
    assert third is not None
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, third.linear.weight)


def test_target_norms() -> None:
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.normal(3, 2, (40, 6))).float()
    mean, variance = rng.normal(size=6), rng.uniform(1, 2, 6)
    torch.testing.assert_close(TargetNorm("none", mean, variance)(targets), targets)
    torch.testing.assert_close(TargetNorm("batch", mean, variance)(targets), standardise(targets))
    by_store = (targets.numpy() - mean) / np.sqrt(variance + BN_EPS)
    np.testing.assert_allclose(
        TargetNorm("store", mean, variance)(targets).numpy(), by_store, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("loss", ["dino", "ibot", "token-cosine"])
def test_a_loss_without_what_it_needs_is_one_line(loss: str) -> None:
    student = load_encoder("tests.tools.tiny:student", random_weights=0)
    with pytest.raises(G2LError, match="which the loss needs"):
        build(student, [Teaching(9, np.zeros(9), np.ones(9))], DistillOptions(loss=loss))
