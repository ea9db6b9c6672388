"""Losses against float64 references written from their formulas."""

import math
import re

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from pipeline.distill import loss_spec
from pipeline.distill.losses import (
    EPS,
    assignment,
    feature_loss,
    infonce,
    koleo,
    log_sum,
    log_sum_corr,
    sharpened,
    sinkhorn,
)
from stores.errors import OptionError

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(2, 8, 24)) * 1.3


def reference(
    s: npt.NDArray[np.float64], t: npt.NDArray[np.float64], alpha: float
) -> tuple[float, npt.NDArray[np.float64]]:
    """Value and gradient by s of log(sum |s - t|^alpha + eps), element by element."""
    total = EPS
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            total += abs(s[i, j] - t[i, j]) ** alpha
    gradient = np.empty_like(s)
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            d = s[i, j] - t[i, j]
            gradient[i, j] = alpha * abs(d) ** (alpha - 1) * math.copysign(1, d) / total
    return math.log(total), gradient


@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0, 8.0])
def test_log_sum_value_and_gradient(alpha: float) -> None:
    s = torch.tensor(S, dtype=torch.float32, requires_grad=True)
    loss = log_sum(s, torch.tensor(T, dtype=torch.float32), alpha)
    loss.backward()
    value, gradient = reference(S, T, alpha)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), gradient, rtol=2e-5, atol=1e-7)


def test_log_sum_starts_near_13_29() -> None:
    """log(12 * 32 * 1536) for unit-normal inputs, FACTS' figure for an untrained student."""
    generator = torch.Generator().manual_seed(0)
    values = [float(log_sum(*torch.randn(2, 32, 1536, generator=generator))) for _ in range(5)]
    assert math.log(12 * 32 * 1536) == pytest.approx(13.29, abs=0.005)
    assert np.mean(values) == pytest.approx(13.29, abs=0.03)


def test_log_sum_takes_one_log_over_the_batch() -> None:
    s, t = torch.tensor(S), torch.tensor(T)
    per_sample = torch.stack([log_sum(a[None], b[None]) for a, b in zip(s, t, strict=True)]).mean()
    assert abs(float(log_sum(s, t) - per_sample)) > 1


def test_log_sum_is_bounded_when_student_equals_teacher() -> None:
    s = torch.tensor(S, requires_grad=True)
    loss = log_sum(s, s.detach().clone())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(EPS))
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


def unit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x / np.sqrt((x * x).sum(axis=1, keepdims=True))


def correlation(s: npt.NDArray[np.float64], t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each dimension over the batch: mean product of both, each with mean 0 and variance 1."""
    s, t = ((x - x.mean(axis=0)) / x.std(axis=0) for x in (s, t))
    return (s * t).sum(axis=0) / len(s)


def infonce_of(s: npt.NDArray[np.float64], t: npt.NDArray[np.float64], temperature: float) -> float:
    """Element by element: how unlikely the right target is among all, and the right view among all."""
    s, t, total = unit(s), unit(t), 0.0
    for i in range(len(s)):
        to_targets = [math.exp(s[i] @ t[j] / temperature) for j in range(len(t))]
        to_views = [math.exp(s[j] @ t[i] / temperature) for j in range(len(s))]
        total -= math.log(to_targets[i] / sum(to_targets)) + math.log(to_views[i] / sum(to_views))
    return total / (2 * len(s))


D = S - T
REFERENCES = {
    "mse": (D**2).mean(),
    "l1": np.abs(D).mean(),
    "smooth-l1": np.where(np.abs(D) < 1, D**2 / 2, np.abs(D) - 0.5).mean(),
    "cosine": 1 - (unit(S) * unit(T)).sum(axis=1).mean(),
    "relational": ((unit(S) @ unit(S).T - unit(T) @ unit(T).T) ** 2).mean(),
    "infonce": infonce_of(S, T, 0.1),
    "log-sum": math.log((D**4).sum() + EPS),
    "log-sum-corr": math.log((np.abs(correlation(S, T) - 1) ** 4).sum() + EPS),
}


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_every_loss_equals_its_formula(name: str) -> None:
    loss = feature_loss(name, 4.0)(torch.tensor(S), torch.tensor(T))
    assert float(loss) == pytest.approx(float(REFERENCES[name]), rel=1e-9)


def test_infonce_has_a_temperature_and_starts_near_the_log_of_the_batch() -> None:
    found = feature_loss("infonce", 4.0, 0.7)(torch.tensor(S), torch.tensor(T))
    assert float(found) == pytest.approx(infonce_of(S, T, 0.7), rel=1e-9)
    s, t = torch.randn(2, 256, 1536, generator=torch.Generator().manual_seed(0))
    assert float(infonce(s, t)) == pytest.approx(math.log(256), abs=0.1)
    assert float(infonce(t, t)) < 0.02


def test_infonce_draws_a_view_to_its_own_target_alone() -> None:
    s = torch.tensor(S, requires_grad=True)
    infonce(s, torch.tensor(T)).backward()
    assert s.grad is not None
    with torch.no_grad():
        nearer = (
            functional.normalize(s - 0.1 * s.grad, dim=1) @ functional.normalize(torch.tensor(T), dim=1).T
        )
        change = nearer - functional.normalize(s, dim=1) @ functional.normalize(torch.tensor(T), dim=1).T
    assert (change.diagonal() > 0).all()
    assert (change.diagonal() > change.mean(dim=1)).all()


def test_log_sum_corr_sees_neither_scale_nor_mean_of_a_dimension() -> None:
    scale, shift = RNG.uniform(0.5, 2, 24), RNG.normal(size=24)
    plain = feature_loss("log-sum-corr", 2.0)(torch.tensor(S), torch.tensor(T))
    moved = feature_loss("log-sum-corr", 2.0)(torch.tensor(S), torch.tensor(T * scale + shift))
    assert float(plain) == pytest.approx(math.log(((correlation(S, T) - 1) ** 2).sum() + EPS), rel=1e-9)
    assert float(moved) == pytest.approx(float(plain), rel=1e-9)


def test_log_sum_corr_starts_near_the_log_of_the_dimensions_and_ends_at_that_of_eps() -> None:
    s, t = torch.randn(2, 1024, 1536, generator=torch.Generator().manual_seed(0))
    assert float(log_sum_corr(s, t)) == pytest.approx(math.log(1536), abs=0.02)
    assert float(log_sum_corr(s.double(), 3 * s.double() + 1)) == pytest.approx(math.log(EPS), abs=1e-4)


def test_log_sum_corr_counts_a_constant_dimension_as_uncorrelated() -> None:
    s, t = torch.tensor(S, requires_grad=True), torch.tensor(T)
    t[:, 0] = 1.0
    loss = log_sum_corr(s, t)
    loss.backward()
    rest = (np.abs(correlation(S[:, 1:], T[:, 1:]) - 1) ** 4).sum()
    assert float(loss.detach()) == pytest.approx(math.log(1 + rest + EPS), rel=1e-9)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


# Assignments to prototypes


SIMILARITY = RNG.uniform(-1, 1, (6, 5))
CENTRE = RNG.uniform(-0.2, 0.2, 5)


def softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(x)
    return e / e.sum(axis=1, keepdims=True)


def test_assignments_are_sharpened_and_centred() -> None:
    found = sharpened(torch.tensor(SIMILARITY), torch.tensor(CENTRE), 0.07).numpy()
    np.testing.assert_allclose(found, softmax((SIMILARITY - CENTRE) / 0.07), rtol=1e-9)
    plain = sharpened(torch.tensor(SIMILARITY), torch.zeros(5), 0.5).numpy()
    np.testing.assert_allclose(plain, softmax(SIMILARITY / 0.5), rtol=1e-9)
    assert (found.max(axis=1) > plain.max(axis=1)).all()


def test_sinkhorn_scales_columns_and_rows_in_turn() -> None:
    q = np.exp(SIMILARITY / 0.3)
    for _ in range(3):
        q = q / q.sum(axis=0, keepdims=True)
        q = q / q.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sinkhorn(torch.tensor(SIMILARITY), 0.3).numpy(), q, rtol=1e-9)
    balanced = sinkhorn(torch.tensor(SIMILARITY), 0.3, iterations=200).numpy()
    np.testing.assert_allclose(balanced.sum(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(balanced.sum(axis=0), len(balanced) / 5, rtol=1e-3)


def test_sinkhorn_does_not_overflow() -> None:
    found = sinkhorn(torch.tensor([[1.0, -1.0], [0.9, 1.0]]), 0.001)
    torch.testing.assert_close(found, torch.eye(2), atol=1e-6, rtol=0)


def test_assignment_is_the_cross_entropy() -> None:
    logits, targets = RNG.uniform(-1, 1, (6, 5)), softmax(RNG.normal(size=(6, 5)))
    expected = -(targets * np.log(softmax(logits / 0.1))).sum(axis=1).mean()
    found = assignment(torch.tensor(logits), torch.tensor(targets), 0.1)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_koleo_is_the_log_of_the_distance_to_the_nearest_other() -> None:
    x = unit(RNG.normal(size=(7, 4)))
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    expected = -np.log(distances.min(axis=1)).mean()
    found = koleo(torch.tensor(x * RNG.uniform(1, 9, (7, 1))))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_koleo_spreads_even_what_is_one() -> None:
    x = torch.ones(4, 3, requires_grad=True)
    loss = koleo(x + 1e-4 * torch.arange(12).reshape(4, 3))
    loss.backward()
    assert x.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dimo", "'dimo' is not one of log-sum, log-sum-corr, mse, l1"),
        ("log-sum:0", "the weight of log-sum is '0'; allowed is a number above 0"),
        ("log-sum:x", "the weight of log-sum is 'x'"),
        ("log-sum:inf", "the weight of log-sum is 'inf'"),
        ("log-sum:", "the weight of log-sum is ''"),
        ("dino,ibot,dino:2", "dino is given twice"),
        ("koleo", "koleo does not use the teacher"),
        ("", "'' is not one of"),
    ],
)
def test_losses_that_are_none(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        loss_spec.parse(text)


def test_sums_of_terms() -> None:
    assert loss_spec.parse(" log-sum:1 , ibot:0.5,koleo:1e-1") == {"log-sum": 1, "ibot": 0.5, "koleo": 0.1}
