"""A step in parts is the undivided step, to float32 rounding; a step that computes again is the step, to the bit."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.distill import train
from pipeline.distill.model import Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes.files import Space
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from stores.format.recipe import Attention, Tokens
from tests.tools.distill import OPTIONS, losses, same, without_end
from tests.tools.ranks import run_several
from tests.tools.steps import DIM, VIT, a_batch, a_teaching, a_trainer, gradients

BATCH = 10
RNG = np.random.default_rng(0)
UNIT = RNG.normal(size=(5, DIM)).astype(np.float32)
SPACE = Space(
    np.zeros(DIM, np.float32),
    np.ones(DIM, np.float32),
    UNIT / np.linalg.norm(UNIT, axis=1, keepdims=True),
    np.zeros(5, np.float32),
)
RICH = a_teaching(
    tokens=Tokens(6, 4, DIM, "none"),
    spaces={"features": SPACE, "tokens": SPACE},
    attention=Attention(4, "none"),
)
TWO = (
    a_teaching(name="a", loss={"log-sum": 1.0, "token-cosine": 1.0}, tokens=Tokens(6, 4, DIM, "none")),
    a_teaching(name="b", loss={"infonce": 1.0, "attention": 0.5}, attention=Attention(4, "none"), weight=0.5),
)
CASES: dict[str, tuple[tuple[Teaching, ...], dict[str, Any]]] = {
    "whole batch": ((), {"loss": "log-sum,log-sum-corr,infonce,relational,koleo:0.1"}),
    "nested": ((), {"nested": "8,16", "teacher_norm": "store"}),
    "stochastic depth": ((), {"drop_path": 0.5}),
    "its own stochastic depth": ((), {"student": f"{VIT}&drop_path_rate=0.5"}),
    "tokens": ((RICH,), {"loss": "dino,ibot,token-cosine,attention", "prototypes": Path()}),
    "several teachers": (TWO, {"loss": "a=log-sum,token-cosine,b=infonce,attention:0.5", "drop_path": 0.3}),
    "class tokens": (TWO, {"student_tokens": "per-teacher"}),
}


def gradients_of(
    teachings: tuple[Teaching, ...], student: str = VIT, **options: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    trainer = a_trainer(student, *teachings, **{"head_hidden": 16, "head_bottleneck": 8, **options})
    loss, _ = trainer.backward(*a_batch(BATCH, max(len(teachings), 1), tokens=6 if teachings else 0), seed=3)
    return float(loss), gradients(trainer)


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_parts_has_the_gradient_of_the_step(case: str) -> None:
    teachings, options = CASES[case]
    loss, expected = gradients_of(teachings, **options)
    for size in (4, 7):
        in_parts, found = gradients_of(teachings, micro_batch=size, **options)
        assert in_parts == pytest.approx(loss, rel=1e-6)
        assert found.keys() == expected.keys()
        whole = torch.cat([gradient.flatten() for gradient in expected.values()])
        parts = torch.cat([found[name].flatten() for name in expected])
        assert float((parts - whole).norm() / whole.norm()) < 1e-5
    alone, _ = gradients_of(teachings, micro_batch=BATCH, **options)
    assert alone == loss


@pytest.mark.parametrize("case", CASES)
def test_computing_again_changes_no_bit(case: str) -> None:
    teachings, options = CASES[case]
    loss, expected = gradients_of(teachings, **options)
    again, found = gradients_of(teachings, checkpointing=True, **options)
    assert again == loss
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    both, found = gradients_of(teachings, micro_batch=4, **options)
    again, same_parts = gradients_of(teachings, micro_batch=4, checkpointing=True, **options)
    assert again == both
    assert all(torch.equal(same_parts[name], gradient) for name, gradient in found.items())


def _noted(sizes: dict[int, torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    return sizes.setdefault(tensor.data_ptr(), tensor)


def test_computing_again_keeps_less() -> None:
    kept = {}
    for again in (False, True):
        trainer = a_trainer(f"{VIT}&depth=6", checkpointing=again)
        sizes: dict[int, torch.Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            partial(_noted, sizes),
            lambda tensor: tensor,
        ):
            trainer.model(*a_batch(BATCH))
        kept[again] = sum(tensor.nbytes for tensor in sizes.values())
    assert kept[True] < kept[False] / 2


def test_statistics_of_a_cnn_are_learned_once() -> None:
    states = []
    for again in (False, True):
        trainer = a_trainer("timm:resnet10t", checkpointing=again)
        for position in range(2):
            trainer.step(*a_batch(BATCH), 1e-2, 0.0, position)
        states.append(trainer.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert states[0]["student.backbone.bn1.num_batches_tracked"] == 2


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(OptionError, match=r"--micro-batch 4: resnet10t has batch normalisation of its own"):
        a_trainer("timm:resnet10t", micro_batch=4)
    a_trainer("timm:resnet10t", micro_batch=4, freeze_layers=5)  # frozen, it has no statistics to learn
    with pytest.raises(
        OptionError, match=r"--checkpointing: tests.tools.tiny:student_of_32_px cannot compute"
    ):
        a_trainer("tests.tools.tiny:student_of_32_px", checkpointing=True)
    with pytest.raises(OptionError, match=r"--micro-batch 0: allowed is 1 or more"):
        DistillOptions(student=VIT, micro_batch=0).validate()


@pytest.mark.slow
def test_a_run_goes_on_with_other_memory(store: Path, tmp_path: Path) -> None:
    """Begun undivided, continued in parts and computing again: the steps of one run, to rounding; then to the bit."""
    options = replace(OPTIONS, steps=6, checkpoint_every=3, drop_path=0.2, val_every=6)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.distill(store, whole, options, False, Silent())
    less = replace(options, micro_batch=3, checkpointing=True)
    train.distill(store, parts, less, False, Silent())
    for run, begun in ((whole, tmp_path / "begun"), (parts, tmp_path / "again")):
        without_end(shutil.copytree(run, begun))
        train.distill(store, begun, less, True, Silent())
        assert [loss for _, loss in losses(begun)] == pytest.approx(
            [loss for _, loss in losses(whole)], rel=1e-5
        )
    assert same(parts, tmp_path / "again")


@pytest.mark.torchrun
@pytest.mark.slow
def test_two_processes_in_parts_are_one_undivided(store: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=3, threads=1, val_every=3)
    train.distill(store, tmp_path / "one", replace(options, batch_size=16), False, Silent())
    run_several(store, tmp_path / "two", replace(options, micro_batch=3, checkpointing=True), 2)
    one, two = ([loss for _, loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
