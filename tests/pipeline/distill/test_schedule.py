"""Cosine annealing."""

import itertools

import pytest
import torch

from pipeline.distill.schedule import cosine_annealing


def test_annealing_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert cosine_annealing(0.3, step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_warm_up_then_annealing() -> None:
    values = [cosine_annealing(1.0, step, 20, warmup_steps=4) for step in range(20)]
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b for a, b in itertools.pairwise(values[4:]))
    assert 0 < values[-1] < 0.02
