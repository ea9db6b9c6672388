"""``--channels-last`` changes the layout in memory, and by rounding the student: gradients, runs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.distill import train
from pipeline.encoders.load import load_encoder
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from tests.tools.distill import OPTIONS, losses, same, without_end
from tests.tools.steps import a_batch, a_trainer, gradients

CNN = "timm:mobilenetv3_small_050"


def test_gradients_are_the_same_to_rounding() -> None:
    found, passed = {}, []
    for last in (False, True):
        trainer = a_trainer(CNN, channels_last=last)
        first = next(m for m in trainer.model.student.modules() if isinstance(m, torch.nn.Conv2d))
        first.register_forward_pre_hook(
            lambda _, given: passed.append(given[0].is_contiguous(memory_format=torch.channels_last))
        )
        trainer.step(*a_batch(6), 1e-3, 0.05, 0)
        found[last] = gradients(trainer)
    assert passed == [False, True]
    assert found[False].keys() == found[True].keys()
    for name, gradient in found[False].items():
        torch.testing.assert_close(found[True][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_and_the_student_opens(store: Path, tmp_path: Path) -> None:
    options = replace(
        OPTIONS, student=CNN, steps=6, checkpoint_every=3, val_every=6, channels_last=True, ema=0.5
    )
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    train.distill(store, whole, options, False, Silent())
    without_end(shutil.copytree(whole, begun))
    with pytest.raises(OptionError, match=r"--channels-last: not given, and .* was begun with it"):
        train.distill(store, begun, replace(options, channels_last=False), True, Silent())
    train.distill(store, begun, options, True, Silent())
    assert losses(begun) == losses(whole)
    assert same(begun, whole)
    views = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    assert load_encoder(str(whole / "student"))(views).isfinite().all()
