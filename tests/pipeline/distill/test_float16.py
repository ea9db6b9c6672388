"""Float16 with a scaled loss: small gradients stay, steps that overflow are counted, training follows float32."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.distill import train
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.model import Targets
from pipeline.distill.trainer import Trainer
from pipeline.runtime.progress import Silent
from stores.errors import DistillError
from tests.tools.distill import OPTIONS, same, without_end
from tests.tools.steps import VIT, a_batch, a_trainer, gradients

SMALL = f"{VIT}&init_values=0.1"
"""Residual branches begin with a factor of 0.1, and so do their gradients."""
BATCH = 8


def in_branches(trainer: Trainer, scale: float) -> torch.Tensor:
    """The gradients of layers in residual branches, divided by a scale."""
    found = gradients(trainer)
    return torch.cat([g.double().flatten() / scale for name, g in found.items() if "mlp.fc1.weight" in name])


def test_small_gradients_are_kept() -> None:
    views, targets = a_batch(BATCH)
    exact = a_trainer(SMALL, loss="mse:1e-5")
    exact.backward(views, targets, 0)
    expected = in_branches(exact, 1)
    lost, alike = {}, {}
    for scale in (1.0, 4096.0):
        trainer = a_trainer(SMALL, loss="mse:1e-5", dtype="float16")
        loss, _ = trainer.model(views, targets)
        (loss * scale).backward()
        found = in_branches(trainer, scale)
        lost[scale] = float((found[expected != 0] == 0).double().mean())
        alike[scale] = float(torch.nn.functional.cosine_similarity(found, expected, dim=0))
    assert lost[1.0] > 0.3
    assert lost[4096.0] < 0.001
    assert alike[4096.0] > 0.999 > 0.8 > alike[1.0]


def moved(trainer: Trainer, views: torch.Tensor, targets: Targets, steps: int) -> tuple[list[float], int]:
    """The loss of each step that moved the weights, and how many did not."""
    curve: list[float] = []
    skipped = 0
    while len(curve) < steps:
        scale = trainer.loss_scale
        before = [value.clone() for value in trainer.model.parameters()]
        loss = trainer.step(views, targets, 3e-3, 0.0, len(curve))["loss"]
        after = list(trainer.model.parameters())
        moves = scale is None or (trainer.loss_scale or 0) >= scale
        assert moves != all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        assert all(bool(value.isfinite().all()) for value in after)
        if moves:
            curve.append(loss)
        skipped += not moves
    return curve, skipped


@pytest.mark.parametrize(
    "options", [{"ema": 0.5}, {"teacher_norm": "none", "clip_grad": 1.0, "micro_batch": 3}]
)
def test_training_follows_float32(options: dict[str, Any]) -> None:
    """A target that is far out makes gradients that overflow at first: such a step moves nothing, and is counted."""
    views, targets = a_batch(BATCH)
    targets = replace(targets, features=targets.features * torch.tensor([[1.0]] * 7 + [[1000.0]]))
    exact, _ = moved(a_trainer(VIT, **options), views, targets, 5)
    trainer = a_trainer(VIT, dtype="float16", **options)
    found, skipped = moved(trainer, views, targets, 5)
    assert found == pytest.approx(exact, rel=0.02)
    assert trainer.loss_scale == 2.0 ** (16 - skipped)
    if trainer.ema is not None:
        assert skipped
        assert int(trainer.ema.n_averaged) == 5


def test_gradients_that_always_overflow_end_the_run() -> None:
    views, targets = a_batch(BATCH)
    with pytest.raises(
        DistillError, match=r"overflow float16 however the loss is scaled: try --dtype float32"
    ):
        moved(a_trainer(VIT, loss="mse:1e20", dtype="float16"), views, targets, 1)


@pytest.mark.slow
def test_a_resumed_run_knows_its_scale(store: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=16, checkpoint_every=12, dtype="float16", loss="mse:10", val_every=16)
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    train.distill(store, whole, options, False, Silent())
    without_end(shutil.copytree(whole, begun))
    summary = train.distill(store, begun, options, True, Silent())
    assert same(whole, begun)
    records = [r for r in read_metrics(begun / "metrics.jsonl") if r["kind"] == "train"]
    assert records[0]["loss_scale"] == 65536
    assert records[-1]["loss_scale"] < 65536
    assert summary["skipped_steps"] < 12
    assert summary["skipped_steps"] == records[-1]["skipped_steps"] > 0
