"""The planned memory of a step is what its tensors take; what fits is said."""

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import cli
from pipeline.distill import memory
from pipeline.distill.memory import Live, MemoryPlan, of_step
from pipeline.distill.options import DistillOptions
from stores.errors import OptionError
from tests.tools.steps import DIM, PX, VIT, a_batch, a_trainer

BATCH = 12


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpointing": True},
        {"micro_batch": 4},
        {"dtype": "bfloat16"},
        {"checkpointing": True, "micro_batch": 6},
    ],
)
def test_the_plan_is_what_a_step_takes(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a real step, counted while they live."""
    monkeypatch.setattr(memory, "VIEWS_AT_ONCE", 1)
    planned = of_step(DistillOptions(student=VIT, batch_size=BATCH, **options), DIM)
    trainer = a_trainer(VIT, **options)
    views, targets = a_batch(BATCH)
    trainer.step(views, targets, 0.0, 0.0)  # the moments of the optimiser exist from here on
    trainer.optimizer.zero_grad(set_to_none=True)
    model, state = trainer.model, trainer.optimizer.state
    with Live() as live:
        live.add([*model.parameters(), *model.buffers(), views, targets.features])
        live.add(value for about in state.values() for value in about.values() if value.ndim)
        trainer.backward(views, targets, 0)
    assert planned["peak"] == pytest.approx(live.peak, rel=0.05)  # kernels of a CPU copy some weights
    assert planned["optimiser"] == 2 * planned["weights"] == 2 * planned["gradients"]
    assert planned["parameters"] == sum(p.numel() for p in model.student.parameters())


def test_a_validation_and_the_views_of_other_parts_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(batch_size: int, at_once: int) -> int:
        monkeypatch.setattr(memory, "VIEWS_AT_ONCE", at_once)
        return of_step(DistillOptions(student=VIT, batch_size=batch_size, micro_batch=2), DIM)["peak"]

    step = peak(4, 1)
    assert peak(4000, 1) - step == 3996 * (PX * PX * 3 + 4 * DIM)
    assert peak(4, 256) - step > 128 * PX * PX * 3 * 4  # images in float32, at least


def test_what_is_let_go_of_is_not_counted() -> None:
    with Live() as live:
        first = torch.zeros(1000) + 1
        view = first[:10]
        del first
        assert live.now == 4000  # the view holds it
        del view
        torch.zeros(10)
    assert (live.now, live.peak) == (0, 8000)


def test_the_cheapest_options_that_fit() -> None:
    peaks = {"": int(20e9), "--checkpointing": int(10.9e9), "--micro-batch 4": int(7e9)}
    plan = MemoryPlan("s", 1, 32, 8, "float32", {"weights": 1, "gradients": 1, "optimiser": 2}, peaks)
    assert [plan.fitting(size) for size in (7, 8, 12, 16, 24)] == [
        None,
        "--micro-batch 4",
        "--micro-batch 4",
        "--checkpointing",
        "",
    ]
    assert plan.to_json()["fits"]["24 GB"] == ""
    assert "8 GB      --micro-batch 4" in plan.lines()


def test_the_command() -> None:
    runner = CliRunner()
    said = runner.invoke(
        cli.g2l, ["plan", "--student", "timm:resnet10t", "--batch-size", "4", "--dim", "8", "--json"]
    )
    found = json.loads(said.stdout)
    assert found["dtype"] == "bfloat16"
    assert list(found["peak_bytes"]) == ["", "--checkpointing"]  # batch normalisation is not divided
    for words, text in (
        ([], "plan: give slides or a store, or --student"),
        (["--student", "tests.tools.tiny:student"], "its layers are not known without loading it"),
        (["--student", VIT, "--batch-size", "1"], "--batch-size 1: allowed is 2 or more"),
        (["--student", VIT, "--tokens", "8"], "--tokens: is not counted in the memory of a --student"),
        (
            ["--student", VIT, "--teacher", "x:y"],
            "--teacher x:y: its feature length is not known; give --dim",
        ),
    ):
        said = runner.invoke(cli.g2l, ["plan", *words])
        assert said.exit_code == 2
        assert text in said.stderr


def test_a_cnn_is_not_divided() -> None:
    with pytest.raises(OptionError, match="has batch normalisation of its own"):
        of_step(DistillOptions(student="timm:resnet10t", batch_size=4, micro_batch=2), 8)
    assert of_step(DistillOptions(student="timm:resnet10t", batch_size=4, checkpointing=True), 8)["peak"] > 0
