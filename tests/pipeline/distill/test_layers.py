"""Stochastic depth, frozen layers, rates by layer, and what decays."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline.distill import ranks
from pipeline.distill.inputs import Data
from pipeline.distill.layers import numbered
from pipeline.distill.model import Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.trainer import Trainer, make_trainer
from pipeline.encoders.load import load_encoder
from stores.errors import OptionError

VIT = "timm:vit_tiny_patch16_224?img_size=32&embed_dim=24&depth=3&num_heads=2&reg_tokens=1&init_values=0.1"
VIEWS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
TARGETS = Targets(
    torch.randn(6, 8, generator=torch.Generator().manual_seed(0)),
    torch.zeros(6, 0, 1),
    torch.zeros(6, 0).long(),
)


def made(student: str = VIT, **options: Any) -> Trainer:
    teaching = Teaching(8, np.zeros(8), np.ones(8))
    data = SimpleNamespace(crop_px=32, teachings=[teaching])
    encoder = load_encoder(student, random_weights=0)
    chosen = DistillOptions(student=student, random_weights=0, **options)
    with ranks.join("cpu") as alone:
        return make_trainer(encoder, cast(Data, data), chosen, alone)


def step(trainer: Trainer, **given: Any) -> dict[str, bool]:
    """Whether a step of training moved each parameter."""
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.step(VIEWS, TARGETS, 1e-2, 0.05, **given)
    return {name: not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters()}


def test_what_decays() -> None:
    trainer = made()
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for value in group["params"]:
            name = names[id(value)].removeprefix("student.backbone.")
            kept = name.endswith(".bias") or "norm" in name or "gamma" in name
            assert group["decays"] != kept, name
    assert "student.backbone.pos_embed" in names.values()


def test_layer_decay_is_a_factor_from_layer_to_layer() -> None:
    trainer = made(layer_decay=0.5)
    scale = {
        id(value): group["lr_scale"] for group in trainer.optimizer.param_groups for value in group["params"]
    }
    found = {name: scale[id(value)] for name, value in trainer.model.named_parameters()}
    assert found["projector.linear.weight"] == 1
    assert found["student.backbone.norm.weight"] == 1
    for number in range(3):
        assert found[f"student.backbone.blocks.{number}.attn.qkv.weight"] == 0.5 ** (2 - number)
    assert found["student.backbone.patch_embed.proj.weight"] == found["student.backbone.cls_token"] == 0.5**3
    trainer.step(VIEWS, TARGETS, 1e-2, 0.0)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-2 * 0.5**n for n in range(4)}


@pytest.mark.parametrize(("layers", "blocks"), [(1, 0), (3, 2)])
def test_frozen_layers_stay(layers: int, blocks: int) -> None:
    moved = step(made(freeze_layers=layers))
    assert not moved["student.backbone.patch_embed.proj.weight"]
    for number in range(3):
        assert moved[f"student.backbone.blocks.{number}.mlp.fc1.weight"] == (number >= blocks)
    assert moved["projector.linear.weight"]


def test_frozen_batch_normalisation_learns_no_statistics() -> None:
    trainer = made("test_efficientnet", freeze_layers=2)
    before = {name: value.clone() for name, value in trainer.model.student.named_buffers()}
    step(trainer)
    moved = {
        name for name, value in trainer.model.student.named_buffers() if not torch.equal(value, before[name])
    }
    layer = numbered(trainer.model.student, "")
    trained = {name.removeprefix("backbone.").rpartition(".")[0] for name in moved}
    assert trained
    assert all(layer[f"{name}.weight"] >= 2 for name in trained)


def test_only_heads_learn_at_first() -> None:
    trainer = made(freeze_steps=5)
    moved = step(trainer, only_heads=True)
    assert moved.pop("projector.linear.weight")
    assert not any(moved[name] for name in moved if name.startswith("student."))
    assert step(trainer)["student.backbone.cls_token"]


def test_a_long_gradient_is_shortened() -> None:
    trainer = made(clip_grad=1e-3)
    step(trainer)
    norms = [value.grad.norm() for value in trainer.model.parameters() if value.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("student", [VIT, "test_resnet", "mobilenetv3_small_050", "test_convnext"])
def test_drop_path_leaves_out_branches_of_single_views(student: str) -> None:
    trainer = made(student, drop_path=0.9)
    encoder = trainer.model.student
    same = VIEWS[:1].expand(6, -1, -1, -1)
    with torch.no_grad():
        torch.manual_seed(0)
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.eval().weight)  # timm begins with branches of zero
        assert len(encoder(same).unique(dim=0)) > 1
        assert len(encoder.eval()(same).unique(dim=0)) == 1


def test_what_a_student_does_not_have_is_refused() -> None:
    for given, said in (
        ({"drop_path": 0.1}, "--drop-path 0.1: .* has no residual branches"),
        ({"layer_decay": 0.5}, "--layer-decay 0.5: .* does not say which layers it has"),
        ({"freeze_layers": 1}, "--freeze-layers 1: .* does not say which layers it has"),
    ):
        with pytest.raises(OptionError, match=said):
            made("tests.pipeline.distill.test_layers:plain", **given)
    with pytest.raises(OptionError, match=r"--drop-path 0.1: test_efficientnet has no residual branches"):
        made("test_efficientnet", drop_path=0.1)
    with pytest.raises(OptionError, match=r"--freeze-layers 9: .* has 4, its stem included"):
        made(freeze_layers=9)


def plain() -> Any:
    """A student of no library."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    return model, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "image_px": 32}
