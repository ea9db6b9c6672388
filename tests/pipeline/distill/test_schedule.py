"""Cosine annealing and early stopping."""

import itertools
import json

import numpy as np
import pytest
import torch

from pipeline.distill.schedule import EarlyStop, cosine_annealing


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


def steps_until_stop(mode: str, losses: list[float]) -> int | None:
    stop = EarlyStop(mode)
    return next((i for i, loss in enumerate(losses, start=1) if stop.update(loss)), None)


def test_stops_after_more_than_ten_in_a_row() -> None:
    flat = [1.0] * 100
    assert steps_until_stop("in-a-row", [*flat, *[2.0] * 11]) == 111
    assert steps_until_stop("in-a-row", [*flat, *[2.0] * 10, 0.5, *[2.0] * 10]) is None
    assert steps_until_stop("off", [*flat, *[2.0] * 50]) is None


def test_waits_for_a_full_window() -> None:
    assert steps_until_stop("in-a-row", [float(i) for i in range(100)]) is None


def test_noise_alone_does_not_stop_a_run() -> None:
    rng = np.random.default_rng(0)
    assert [steps_until_stop("in-a-row", rng.normal(size=300).tolist()) for _ in range(20)].count(None) >= 15


def test_state_survives_json() -> None:
    losses = [1.0] * 100 + [2.0] * 5
    whole, first, second = EarlyStop("in-a-row"), EarlyStop("in-a-row"), EarlyStop("in-a-row")
    for loss in losses:
        whole.update(loss)
        first.update(loss)
    second.restore(json.loads(json.dumps(first.state())))
    for _ in range(5):
        assert not second.update(2.0)
        assert not whole.update(2.0)
    assert second.update(2.0)
    assert whole.update(2.0)
