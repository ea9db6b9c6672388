"""Losses against float64 references written from their formulas."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.distill.losses import EPS, feature_loss, log_sum

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
    loss.backward()  # type: ignore[no-untyped-call]
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
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(math.log(EPS))
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


def unit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x / np.sqrt((x * x).sum(axis=1, keepdims=True))


D = S - T
REFERENCES = {
    "mse": (D**2).mean(),
    "l1": np.abs(D).mean(),
    "smooth-l1": np.where(np.abs(D) < 1, D**2 / 2, np.abs(D) - 0.5).mean(),
    "cosine": 1 - (unit(S) * unit(T)).sum(axis=1).mean(),
    "relational": ((unit(S) @ unit(S).T - unit(T) @ unit(T).T) ** 2).mean(),
    "log-sum": math.log((D**4).sum() + EPS),
}


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_every_loss_equals_its_formula(name: str) -> None:
    loss = feature_loss(name, 4.0)(torch.tensor(S), torch.tensor(T))
    assert float(loss) == pytest.approx(float(REFERENCES[name]), rel=1e-9)
