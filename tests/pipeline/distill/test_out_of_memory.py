"""Out of memory: one line with what helps, and a run that continues from its checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.distill import checkpoint, out_of_memory, train
from pipeline.distill.options import DistillOptions
from pipeline.distill.trainer import Trainer
from pipeline.encoders.load import load_encoder
from pipeline.runtime.progress import Silent
from stores.errors import DistillError
from tests.tools.distill import OPTIONS
from tests.tools.steps import VIT

ERRORS: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError,
    lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_the_line_names_what_helps(error: Callable[[], Exception]) -> None:
    options = DistillOptions(student=VIT, batch_size=32)
    student = load_encoder(VIT, random_weights=0)
    said = r"try --checkpointing or --micro-batch 16"
    with pytest.raises(DistillError, match=said) as caught, out_of_memory.explained(options, student):
        raise error()
    assert ("on the GPU" in str(caught.value)) == (error is ERRORS[0])
    less = replace(options, checkpointing=True, micro_batch=8)
    with (
        pytest.raises(DistillError, match=r"try --micro-batch 4[ (]"),
        out_of_memory.explained(less, student),
    ):
        raise error()


def test_nothing_is_named_that_the_student_cannot_do() -> None:
    cnn, options = "timm:resnet10t", DistillOptions(student="timm:resnet10t", batch_size=32)
    short = torch.OutOfMemoryError("CUDA out of memory")
    for chosen, said in (
        (options, r"try --checkpointing \(`g2l plan"),
        (
            replace(options, checkpointing=True),
            r"try another device, or a smaller --batch-size in another --out \(",
        ),
    ):
        student = load_encoder(cnn, random_weights=0)
        with pytest.raises(DistillError, match=said), out_of_memory.explained(chosen, student):
            raise short


def test_building_the_trainer_is_explained_and_leaves_no_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "make_trainer", short_of_memory)
    with pytest.raises(DistillError, match="out of memory on the GPU: try --checkpointing"):
        train.distill(store, tmp_path / "run", replace(OPTIONS, check_views="none"), False, Silent())
    assert not (tmp_path / "run" / "options.json").exists()


def test_other_errors_are_not_touched() -> None:
    student = load_encoder(VIT, random_weights=0)
    options = DistillOptions(student=VIT)
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory.explained(options, student):
        raise RuntimeError("shapes do not fit")


def short_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.slow
def test_a_run_out_of_memory_continues(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, steps=6, checkpoint_every=2, val_every=6)
    step, calls = Trainer.step, 0

    def short(self: Trainer, *args: Any, **given: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *args, **given)

    monkeypatch.setattr(Trainer, "step", short)
    with pytest.raises(
        DistillError, match=r"out of memory on the GPU: try --checkpointing or --micro-batch 4"
    ):
        train.distill(store, tmp_path / "run", options, False, Silent())
    assert checkpoint.saved(tmp_path / "run")[-1].name == "step-00000002.pt"
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "load_state_dict", short_of_memory)
        with pytest.raises(DistillError, match="out of memory on the GPU: try"):
            train.distill(store, tmp_path / "run", options, True, Silent())
    summary = train.distill(store, tmp_path / "run", replace(options, micro_batch=4), True, Silent())
    assert summary["steps"] == 6
