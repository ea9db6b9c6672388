"""Projector and normalisation of the targets."""

import numpy as np
import torch

from pipeline import encoders
from pipeline.distill.model import BN_EPS, Projector, TargetNorm, build, standardise


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
    student = encoders.load_encoder("tests.tiny:student", random_weights=0)
    before = torch.get_rng_state()
    first, second, third = build(student, 9, 0), build(student, 9, 0), build(student, 9, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.projector.linear.weight, second.projector.linear.weight)
    assert not torch.equal(first.projector.linear.weight, third.projector.linear.weight)


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
