"""The kind of start is read from the weights, and decides what was not chosen."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from pipeline.distill import train
from pipeline.distill.options import DistillOptions
from pipeline.distill.start import has_learned, with_defaults
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from tests.tools.distill import OPTIONS, VIT, same


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("name", [VIT, "test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_a_student_has_learned_once_it_took_a_step(name: str) -> None:
    """Whatever its name says, and however few steps it took."""
    student = load_encoder(name, random_weights=0)
    assert has_learned(student) is False
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    side = student.image_px
    student.train()(torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)).square().sum().backward()
    optimizer.step()
    assert has_learned(student) is True


def of_module(backbone: nn.Module) -> Encoder:
    encoder: Any = nn.Module()
    encoder.backbone = backbone
    return cast(Encoder, encoder)


def test_defaults_by_the_kind_of_start() -> None:
    scratch, learned, mute = nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(2, 2)
    nn.init.normal_(learned.bias)
    cases = [
        (
            scratch,
            {},
            (2e-3, 30),
            "from scratch: lr 0.002, warm-up 30 steps (--lr, --warmup-steps to choose)",
        ),
        (learned, {"random_weights": 0}, (1e-4, 0), "from weights: lr 0.0001, warm-up 0 steps"),
        (mute, {"random_weights": 0}, (2e-3, 30), "from scratch"),
        (mute, {}, (1e-4, 0), "from weights"),
        (scratch, {"lr": 1e-3}, (1e-3, 30), "lr 0.001, warm-up 30 steps (--warmup-steps to choose)"),
        (scratch, {"lr": 1e-3, "warmup_steps": 0}, (1e-3, 0), "from scratch: lr 0.001, warm-up 0 steps"),
    ]
    for backbone, given, expected, said in cases:
        notes = Notes()
        found = with_defaults(
            DistillOptions(student="s", **cast(Any, given)), of_module(backbone), 300, notes
        )
        assert (found.lr, found.warmup_steps) == expected
        assert found.early_stop == "off"
        assert said in notes.said[0]
    assert (
        with_defaults(DistillOptions(student="s"), of_module(scratch), 90_000, Silent()).warmup_steps == 500
    )


def test_a_run_keeps_what_it_began_with(store: Path, tmp_path: Path) -> None:
    """Also one of an earlier version, which had another default of each and another word for a rule."""
    run = tmp_path / "r"
    short = replace(OPTIONS, steps=2, batch_size=4, lr=None, val_views=2, check_views="none")
    train.distill(store, run, short, False, Silent())
    begun = json.loads((run / "options.json").read_text())
    chosen = {name: begun["options"][name] for name in ("lr", "warmup_steps", "early_stop")}
    assert chosen == {"lr": 2e-3, "warmup_steps": 0, "early_stop": "off"}
    for name in (
        "drop_path",
        "clip_grad",
        "layer_decay",
        "freeze_layers",
        "freeze_steps",
        "patience",
        "min_gain",
    ):
        del begun["options"][name]
    begun["options"] |= {"lr": 1e-4, "early_stop": "in-a-row"}
    (run / "options.json").write_text(json.dumps(begun))
    continued = train._as_begun(run, short)
    assert (continued.lr, continued.warmup_steps, continued.early_stop) == (1e-4, 0, "g2l")
    with pytest.raises(OptionError, match=r"--early-stop off: .* was begun with in-a-row"):
        train._as_begun(run, replace(short, early_stop="off"))
    with pytest.raises(OptionError, match=r"--lr 0.002: .* was begun with 0.0001"):
        train._as_begun(run, replace(short, lr=2e-3))
    assert train._as_begun(run, replace(short, early_stop="g2l", val_every=7)).val_every == 7
    begun["options"]["early_stop"] = "held-out"
    (run / "options.json").write_text(json.dumps(begun))
    with pytest.raises(OptionError, match=r"--val-every 7: .* was begun with 10"):
        train._as_begun(run, replace(short, val_every=7))


def test_the_best_weights_and_the_rule_outlive_a_kill(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that stops at its second validation; the first was better."""
    held_out: dict[str, Any] = {"early_stop": "held-out", "patience": 1, "val_every": 1, "min_gain": 1.0}
    options = replace(
        OPTIONS, **held_out, batch_size=4, checkpoint_every=1, check_views="none", freeze_steps=1
    )
    measured, falling = train.validate, iter([0.5, 0.4, 0.3, 0.3])  # before, two steps, the second one again
    monkeypatch.setattr(train, "validate", lambda *asked: replace(measured(*asked), cka=next(falling)))
    whole = tmp_path / "whole"
    summary = train.distill(store, whole, options, False, Silent())
    assert (summary["steps"], summary["stopped_early"]) == (2, True)
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / "summary.json").unlink()
    (cut / "checkpoints/step-00000002.pt").unlink()
    again = train.distill(store, cut, options, True, Silent())
    assert again["best_step"] == summary["best_step"] == 1
    assert again["cka_after"] == summary["cka_after"]
    assert same(whole, cut)
    with pytest.raises(OptionError, match=r"needs 20 validations .* 24 steps have 2; use --val-every 1"):
        train.distill(store, tmp_path / "r", replace(OPTIONS, early_stop="held-out"), False, Silent())
