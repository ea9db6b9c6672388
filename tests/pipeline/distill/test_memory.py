"""The planned memory of a step is what its tensors take; what fits is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import cli
import pipeline as g2l_api
from pipeline.distill.memory import Live, MemoryPlan, a_batch, of_step
from pipeline.distill.options import DistillOptions
from pipeline.distill.taught import Lessons
from pipeline.distill.trainer import Trainer, make_trainer
from pipeline.encoders.load import load_encoder
from stores.errors import OptionError
from stores.format.recipe import Attention, Tokens
from tests.tools.distill import ALONE
from tests.tools.steps import DIM, PX, VIT, a_teaching

BATCH = 12
ONE = Lessons([a_teaching()])
RICH: dict[str, tuple[Lessons, dict[str, Any]]] = {
    "tokens and attention": (
        Lessons([a_teaching(tokens=Tokens(6, 4, DIM, "none"), attention=Attention(4, "none"))]),
        {"loss": "log-sum,token-cosine,attention"},
    ),
    "three teachers": (
        Lessons([a_teaching(name=name, loss={"log-sum": 1.0, "infonce": 0.1}) for name in "abc"]),
        {"student_tokens": "per-teacher"},
    ),
    "pairs": (ONE, {"loss": "log-sum,pair:0.1"}),
    "pairs in parts": (ONE, {"loss": "log-sum,pair:0.1", "micro_batch": 3}),
    "moving average and frozen layers": (ONE, {"ema": 0.9, "freeze_layers": 2}),
    "half the resolution": (Lessons([a_teaching()], 2 * PX), {"student_px": PX}),
}


def taken(options: dict[str, Any], lessons: Lessons) -> tuple[Trainer, int]:
    """What trains, and the bytes of the tensors of a real step, counted while they live."""
    lessons = replace(lessons, crop_px=lessons.crop_px or PX)
    chosen = DistillOptions(student=VIT, random_weights=0, **options)
    trainer = make_trainer(load_encoder(VIT, random_weights=0), lessons, chosen, ALONE)
    views, targets = a_batch(lessons, BATCH, "pair" in chosen.loss)
    targets = targets.map(lambda tensor: tensor.uniform_() if tensor.is_floating_point() else tensor)
    trainer.step(views, targets, 0.0, 0.0)  # the moments of the optimiser exist from here on
    trainer.optimizer.zero_grad(set_to_none=True)
    model, state = trainer.model, trainer.optimizer.state
    given: list[torch.Tensor] = [views]
    targets.map(lambda tensor: given.append(tensor) or tensor)  # type: ignore[func-returns-value]
    with Live() as live:
        live.add([*model.parameters(), *model.buffers(), *given])
        live.add([] if trainer.ema is None else trainer.ema.state_dict().values())
        live.add(value for about in state.values() for value in about.values() if value.ndim)
        trainer.backward(views, targets, 0)
    return trainer, live.peak


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
def test_the_plan_is_what_a_step_takes(options: dict[str, Any]) -> None:
    planned = of_step(DistillOptions(student=VIT, batch_size=BATCH, **options), ONE)
    trainer, peak = taken(options, ONE)
    assert planned["peak"] == pytest.approx(peak, rel=0.05)  # kernels of a CPU copy some weights
    assert planned["optimiser"] == 2 * planned["weights"] == 2 * planned["gradients"]
    assert planned["parameters"] == sum(p.numel() for p in trainer.model.student.parameters())


@pytest.mark.parametrize("case", RICH)
def test_so_is_that_of_more_than_features_of_one_teacher(case: str) -> None:
    lessons, options = RICH[case]
    planned = of_step(DistillOptions(student=VIT, batch_size=BATCH, **options), lessons)
    trainer, peak = taken(options, lessons)
    assert planned["peak"] == pytest.approx(peak, rel=0.05)
    trained = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    assert (planned["gradients"], planned["optimiser"]) == (trained, 2 * trained)
    if trainer.ema is not None:
        assert planned["moving average"] == pytest.approx(planned["weights"], rel=0.05)


def test_a_validation_and_the_views_of_other_parts_are_planned() -> None:
    def peak(batch_size: int, part: int) -> int:
        options = DistillOptions(student=VIT, batch_size=batch_size, micro_batch=part, freeze_layers=3)
        return of_step(options, ONE)["peak"]

    assert peak(4000, 2) - peak(4, 2) == 3996 * (PX * PX * 3 + 4 * DIM)


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
    plan = MemoryPlan("s", 1, 32, [8], "float32", {"weights": 1, "gradients": 1, "optimiser": 2}, peaks)
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
        (["--student", VIT, "--pixels"], "--pixels: is not counted in the memory of a --student"),
        (["--student", VIT, "--tokens", "8"], "--tokens 8: --loss log-sum uses none; add token-cosine to it"),
        (["--student", VIT, "--loss", "token-cosine"], "token-cosine needs patch tokens; give --tokens N"),
        (["--student", VIT, "--loss", "attention"], "attention needs that of the teacher; give --attention"),
        (["--student", VIT, "--attention"], "--attention: needs --teacher, whose grid"),
        (
            ["--student", VIT, "--teacher", "uni2-h", "--attention"],
            "--attention: --loss log-sum does not use it; add attention to it",
        ),
        (["--student", VIT, "--loss", "dino", "--prototypes", "x"], "--prototypes x: are those of a store"),
        (["--student", VIT, "--device-memory", "8TB"], "--device-memory 8TB: allowed is a size such as 8GB"),
        (["--student", VIT, "--store", "x", "--dim", "8"], "--dim: the --store says what its teacher is"),
        (["x", "--ema", "0.9"], "--ema: is for the memory of a --student; leave it out"),
        (["x", "--device-memory", "8GB"], "--device-memory: is for the memory of a --student; leave it out"),
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
        of_step(DistillOptions(student="timm:resnet10t", batch_size=4, micro_batch=2), ONE)
    assert (
        of_step(DistillOptions(student="timm:resnet10t", batch_size=4, checkpointing=True), ONE)["peak"] > 0
    )


def test_stores_say_what_their_teachers_are(token_store: Path, store: Path) -> None:
    given: dict[str, Any] = {"batch_size": 2, "loss": "a=log-sum,token-cosine,b=log-sum", "ema": 0.9}
    student = "timm:vit_tiny_patch16_224?patch_size=28&depth=1&embed_dim=24&num_heads=3"
    with pytest.raises(OptionError, match="a is no store of this run"):
        g2l_api.plan_student(student, store=[token_store, store], **given)
    given["loss"] = "1=log-sum,token-cosine,2=log-sum"
    found = g2l_api.plan_student(student, store=[token_store, (store, 0.5)], device_memory="2GB", **given)
    assert "step      2 views, 24 + 24 numbers of 2 teachers, 5 patch tokens" in found.lines()
    assert found.to_json()["fits"] == {"2 GB": ""}
    assert found.kept_bytes["moving average"] > 0
    named = [
        {"teacher": "vit_tiny_patch16_224", "dim": 24, "tokens": 5},
        {"teacher": "h-optimus-0", "dim": 24},
    ]
    given["loss"] = "vit_tiny_patch16_224=log-sum,token-cosine,h-optimus-0=log-sum"
    alike = g2l_api.plan_student(student, teachers=named, **given)
    # its tokens are longer
    assert alike.kept_bytes["weights"] - found.kept_bytes["weights"] == 4 * (192 - 24) * 25
