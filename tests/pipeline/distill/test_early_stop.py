"""Rules of stopping: what sets each off, over the steps, epochs and validations of real trainings."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline.data.loader import Batch
from pipeline.distill import train
from pipeline.distill.early_stop import EarlyStop, G2LStop, HeldOutStop, make_early_stop
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Ranks
from pipeline.distill.validate import Validation
from pipeline.runtime.progress import Silent
from stores import sampler


def steps_until_stop(rule: EarlyStop, losses: list[float]) -> int | None:
    return next((i for i, loss in enumerate(losses, start=1) if rule.after_step(loss)), None)


def test_g2l_stops_after_more_than_ten_in_a_row() -> None:
    flat = [1.0] * 100
    assert steps_until_stop(G2LStop(), [*flat, *[2.0] * 11]) == 111
    assert steps_until_stop(G2LStop(), [*flat, *[2.0] * 10, 0.5, *[2.0] * 10]) is None
    assert steps_until_stop(make_early_stop("off", 10, 0.0), [*flat, *[2.0] * 50]) is None


def test_g2l_waits_for_a_full_window() -> None:
    assert steps_until_stop(G2LStop(), [float(i) for i in range(100)]) is None


def test_noise_alone_sets_g2l_off_after_a_few_thousand_steps() -> None:
    """A loss that only fluctuates; docs/how-to/distill.md quotes the median of more such runs."""
    rng = np.random.default_rng(0)
    steps = [steps_until_stop(G2LStop(), rng.normal(size=40_000).tolist()) for _ in range(40)]
    assert None not in steps
    assert 1500 < float(np.median([step for step in steps if step])) < 6000


def test_state_survives_json() -> None:
    losses = [1.0] * 100 + [2.0] * 5
    whole, first, second = G2LStop(), G2LStop(), G2LStop()
    for loss in losses:
        whole.after_step(loss)
        first.after_step(loss)
    second.restore(json.loads(json.dumps(first.state())))
    for _ in range(5):
        assert not second.after_step(2.0)
        assert not whole.after_step(2.0)
    assert second.after_step(2.0)
    assert whole.after_step(2.0)
    make_early_stop("off", 10, 0.0).restore(first.state())  # what versions before this rule wrote


def test_held_out_compares_means() -> None:
    def stopped_at(figures: list[float], patience: int, gain: float) -> int | None:
        rule: EarlyStop = HeldOutStop(patience, gain)
        for number, figure in enumerate(figures, start=1):
            if number % 3 == 0:  # a run that continues
                state = json.loads(json.dumps(rule.state()))
                rule = HeldOutStop(patience, gain)
                rule.restore(state)
            if rule.after_validation(figure):
                return number
        return None

    rising = [0.5 + 0.01 * i for i in range(40)]
    assert stopped_at(rising, 3, 0.0) is None
    assert stopped_at(rising, 3, 0.05) == 6  # three validations gain 0.03
    assert stopped_at([0.5] * 10, 3, 0.0) == 6
    assert stopped_at([*rising[:20], *[rising[19]] * 20], 3, 0.0) == 25
    assert stopped_at([0.5, math.nan, *[0.5] * 6], 3, 0.0) == 6


VIEWS = [(0, 900), (1, 1024), (2, 380)]
"""Blocks and readable rows of three made slides; with four seeds an epoch has 9,216 views."""


def stream_of_batches(seed: int, batch_size: int) -> Iterator[Batch]:
    """Batches in the order of the sampler, without pixels."""
    commit: Any = SimpleNamespace(slide_id="s", block=0)
    units = [sampler.Segment(commit, (0, 1, 2, 3), np.arange(rows, dtype=np.int32)) for _, rows in VIEWS]
    nothing: Any = np.zeros((batch_size, 0))
    count = 0
    for window in sampler.Stream(units, seed, 2048).windows():
        count += window.n_views
        while count >= batch_size:
            count -= batch_size
            yield Batch(window.epoch, nothing, nothing, nothing, nothing)


def run_to_the_end(
    curve: Callable[[int, float], float], steps: int, monkeypatch: pytest.MonkeyPatch, run: Path
) -> dict[str, Any]:
    """The loop of `distill` over the sampler's batches, its schedule and its validations; no network.

    Parameters
    ----------
    curve
        Held-out CKA by step and share of the learning rate that is left.
    """
    share = [1.0]
    rng = np.random.default_rng(0)

    def step(views: object, targets: object, lr: float, *rest: object) -> dict[str, float]:
        share[0] = lr / 1e-4
        return {"loss": 1.0}

    def validation(*asked: object) -> Validation:
        at = course.facts["steps"]
        return Validation(1.0, None, None, None, curve(at, share[0]) + rng.normal() * 0.002 * share[0], None)

    options = DistillOptions(
        student="s", steps=steps, early_stop="held-out", lr=1e-4, checkpoint_every=1 << 30
    )
    trainer: Any = SimpleNamespace(
        model=torch.nn.Linear(1, 1), averaged=None, ema=None, step=step, loss_scale=None,
        ranks=Ranks(0, 1, 1, torch.device("cpu")), device=torch.device("cpu"),
    )  # fmt: skip
    facts: dict[str, Any] = {"steps_planned": steps, "views_per_step": 32, "steps": 0, "views_seen": 0}
    facts |= {"stopped_early": False, "seconds": 0.0, "wait_seconds": 0.0}
    rule = make_early_stop("held-out", options.patience, options.min_gain)
    data: Any = SimpleNamespace(held_out=True, fit=None)
    course = train.Course(run, data, trainer, options, rule, facts, None)
    monkeypatch.setattr(train, "validate", validation)
    monkeypatch.setattr(train.Targets, "of", lambda batch: None)
    monkeypatch.setattr(train.devices, "peak_memory", lambda device: {})
    monkeypatch.setattr(train.checkpoint, "save", lambda *state: None)
    course.run_on(stream_of_batches(0, 32), cast(Any, SimpleNamespace(requested=False)), Silent())
    assert course.facts["views_seen"] == course.facts["steps"] * 32
    return course.facts


def fast(step: int, left: float) -> float:
    """Rises for some 6,000 steps, then no more."""
    return 0.9 - 0.4 * math.exp(-step / 1500)


def falling(step: int, left: float) -> float:
    """Rises, then overfits."""
    return fast(step, left) - 1e-6 * step


def slow(step: int, left: float) -> float:
    """A power law: between 50,000 and 100,000 steps it gains 0.013."""
    return 0.95 - 0.45 / math.sqrt(1 + step / 500)


def annealed(step: int, left: float) -> float:
    """Nearly flat for long at a high learning rate; the last of it comes as the rate falls."""
    return 0.95 - 0.3 * (1 + step / 500) ** -0.7 - 0.05 * left


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        (slow, 10_000),
        (annealed, 10_000),
        (annealed, 30_000),
        pytest.param(slow, 100_000, marks=pytest.mark.long),
    ],
)
def test_a_curve_that_rises_is_never_stopped(
    curve: Callable[[int, float], float], steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = run_to_the_end(curve, steps, monkeypatch, tmp_path)
    assert (facts["steps"], facts["stopped_early"]) == (steps, False)
    assert facts["best_step"] > 0.8 * steps


@pytest.mark.parametrize("steps", [20_000, 100_000])
def test_a_plateau_is_stopped(steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = run_to_the_end(fast, steps, monkeypatch, tmp_path)
    assert facts["stopped_early"]
    assert 12_000 <= facts["steps"] < 25_000
    worse = run_to_the_end(falling, steps, monkeypatch, tmp_path)
    assert worse["stopped_early"]
    assert worse["best_step"] < worse["steps"]
    assert worse["best"]["cka"] >= worse["after"]["cka"]


def test_every_word_has_its_rule() -> None:
    found = [type(make_early_stop(name, 10, 0.0)) for name in ("off", "g2l", "held-out")]
    assert found == [EarlyStop, G2LStop, HeldOutStop]
    assert [rule.judges_validations for rule in found] == [False, False, True]


def test_the_stream_of_this_test_is_that_of_the_sampler() -> None:
    """Three epochs: every epoch has all its views, and a batch may lie in two."""
    epoch_views = 4 * sum(rows for _, rows in VIEWS)
    batches = list(itertools.islice(stream_of_batches(0, 32), 3 * epoch_views // 32))
    assert sorted({batch.epoch for batch in batches}) == [0, 1, 2]
