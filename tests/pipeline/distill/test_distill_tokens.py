"""H0-mini's way: tokens and prototypes in stage two, sums of terms, the moving average, poolings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.distill import checkpoint, train
from pipeline.distill.heads import standardise
from pipeline.distill.inputs import open_data
from pipeline.distill.losses import assignment, cosine
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.model import Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes import fit
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.distill.trainer import make_trainer
from pipeline.distill.validate import validate
from pipeline.encoders.load import load_encoder
from pipeline.runtime.progress import Silent
from stores.errors import EncoderError, G2LError, OptionError, StoreError
from tests.tools.distill import ALONE, OPTIONS, STUDENT, first_of, made
from tests.tools.ranks import run_several
from tests.tools.stores import TOKENS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(token_store: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillOptions:
    folder = tmp_path_factory.mktemp("prototypes") / "p"
    fit.fit(token_store, folder, PrototypeOptions(k=12, window=64, threads=2), Silent())
    return replace(
        OPTIONS,
        student=STUDENT,
        loss="dino+ibot",
        prototypes=folder,
        head_hidden=32,
        head_bottleneck=16,
        steps=12,
        val_every=6,
        checkpoint_every=6,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "dino"},
        {"loss": "ibot"},
        {"loss": "dino+ibot", "assign": "sinkhorn"},
        {"loss": "dino,ibot:0.5"},
        {"loss": "token-cosine", "teacher_norm": "none"},
        {"loss": "log-sum:1,ibot:0.5,koleo:0.1"},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_every_sum_of_terms_goes_down(
    token_store: Path, options: DistillOptions, change: dict[str, Any]
) -> None:
    trainer, held_out = made(token_store, replace(options, **change))
    found = [trainer.step(*first_of(held_out, 16), 3e-3, 0.0) for _ in range(15)]
    assert found[-1]["loss"] < found[0]["loss"]
    weights = trainer.model.loss
    assert list(found[0]) == ["loss", *weights]
    total = sum(weight * found[0][name] for name, weight in weights.items())
    assert found[0]["loss"] == pytest.approx(total, rel=1e-5)
    (term, *_) = weights
    assert found[-1][term] < found[0][term]


@torch.no_grad()
def test_the_students_tokens_are_those_at_the_teachers_places(
    token_store: Path, options: DistillOptions
) -> None:
    trainer, held_out = made(token_store, options)
    views, targets = first_of(held_out, 6)
    student: Any = trainer.model.student.eval()
    found = trainer.model.embed(views, targets.positions)
    every = student.backbone.forward_features(student.normalized(views))
    assert every.shape == (6, 1 + 2 + 64, 24)
    assert found.tokens is not None
    for i in range(6):
        torch.testing.assert_close(found.tokens[i], every[i, 3:][targets.positions[i]])
    torch.testing.assert_close(found.features, student(views))


@torch.no_grad()
def test_a_student_of_another_grid_meets_few_tokens_on_their_places(
    token_store: Path, options: DistillOptions
) -> None:
    """14x14 tokens of 16 px, and a store that keeps 5 of the 8x8 tokens of 28 px: averages over squares of 28 px."""
    other = replace(options, student=STUDENT.replace("patch_size=28", "patch_size=16"))
    trainer, held_out = made(token_store, other)
    views, targets = first_of(held_out, 3)
    student: Any = trainer.model.student.eval()
    every = student.backbone.forward_features(student.normalized(views))[:, 3:]
    pixels = every.reshape(3, 14, 14, 24).repeat_interleave(16, 1).repeat_interleave(16, 2)
    means = pixels.reshape(3, 8, 28, 8, 28, 24).mean(dim=(2, 4)).flatten(1, 2)
    found = trainer.model.embed(views, targets.positions).tokens
    assert found is not None
    for i in range(3):
        torch.testing.assert_close(found[i], means[i][targets.positions[i]])
    loss, _ = trainer.model.compare(trainer.model.embed(views, targets.positions), targets)
    assert torch.isfinite(loss)


def test_a_student_of_another_grid_meets_the_mean_of_whole_tokens(
    token_store: Path, options: DistillOptions
) -> None:
    """A store that keeps all 8x8 tokens: each of the student's 4x4 has the mean of four as its target."""
    data = open_data(token_store, replace(options, check_views="none"), 2, Silent())
    about = replace(TOKENS, count=64, grid=8, dim=24)
    teaching = replace(data.teaching, tokens=about)
    chosen = replace(options, student=STUDENT.replace("patch_size=28", "patch_size=56"), loss="token-cosine")
    data = replace(data, teachings=(teaching,))
    model = make_trainer(train.load_student(chosen), data, chosen, ALONE).model
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(6, 64, 24, generator=generator)
    places = torch.arange(64).expand(6, 64)
    views = torch.randint(0, 256, (6, 224, 224, 3), dtype=torch.uint8, generator=generator)
    targets = Targets(torch.zeros(6, 24), tokens, places)
    student = model.embed(views, places)
    assert student.tokens is not None
    assert student.tokens.shape == (6, 16, 24)
    found = model.terms(student, targets, [])["token-cosine"]
    fourths = tokens.reshape(6, 4, 2, 4, 2, 24).mean(dim=(2, 4)).reshape(96, 24)
    projected: Any = model.heads["token-cosine"]
    expected = cosine(standardise(projected.linear(student.tokens.flatten(0, 1))), standardise(fourths))
    torch.testing.assert_close(found, expected)


def test_figures_of_a_validation(token_store: Path, options: DistillOptions) -> None:
    trainer, held_out = made(token_store, options)
    found = validate(trainer.model, held_out, 8, torch.device("cpu"))
    assert found.cosine is None
    assert found.loss_constant is None  # of prototypes a constant says nothing
    assert found.cka_ema is None
    model, losses = trainer.model.eval(), []
    with torch.no_grad():
        order = np.random.default_rng(0).permutation(len(held_out.views))
        for start in range(0, len(order) // 8 * 8, 8):
            rows = order[start : start + 8]
            features = torch.from_numpy(held_out.targets[rows]).float()
            tokens = torch.from_numpy(held_out.tokens[rows]).float().flatten(0, 1)
            views, positions = (
                torch.from_numpy(held_out.views[rows]),
                torch.from_numpy(held_out.positions[rows]),
            )
            student = model.embed(views, positions.long())
            assert student.tokens is not None
            dino = assignment(model.heads["dino"](student.features), model.assigners["dino"](features), 0.1)
            flat = student.tokens.flatten(0, 1)
            losses.append(dino + assignment(model.heads["ibot"](flat), model.assigners["ibot"](tokens), 0.1))
    assert found.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert validate(model, held_out, 8, torch.device("cpu")) == found  # changes nothing


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name in ("student/model", "student-ema/model", "heads"):
        found |= {f"{name}.{key}": value for key, value in load_file(run / f"{name}.safetensors").items()}
    return found


def test_a_run_goes_on_to_the_bit_with_heads_and_moving_average(
    token_store: Path, options: DistillOptions, tmp_path: Path
) -> None:
    options = replace(options, ema=0.9, loss="dino+ibot,token-cosine")
    whole = tmp_path / "whole"
    summary = train.distill(token_store, whole, options, False, Silent())
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / "summary.json").unlink()
    (cut / "checkpoints/step-00000012.pt").unlink()
    for folder in ("student", "student-ema"):
        shutil.rmtree(cut / folder)
    (cut / "heads.safetensors").unlink()
    torch.manual_seed(99)
    train.distill(token_store, cut, options, True, Silent())
    one, two = weights(whole), weights(cut)
    assert one.keys() == two.keys()
    assert {name.split(".")[1] for name in one if name.startswith("heads")} == {
        "dino",
        "ibot",
        "token-cosine",
    }
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (whole / "projector.safetensors").exists()
    lines = read_metrics(whole / "metrics.jsonl")
    trained = next(line for line in lines if line["kind"] == "train")
    assert {"loss", "loss_dino", "loss_ibot", "loss_token-cosine"} <= trained.keys()
    last = next(line for line in reversed(lines) if line["kind"] == "val")
    assert last["cka_ema"] == summary["cka_ema_after"]
    assert last["cka_ema"] != last["cka"]
    averaged = load_encoder(str(whole / "student-ema"))
    assert averaged.dim == 24
    assert "The moving average of a student" in (whole / "student-ema" / "README.md").read_text()
    assert "The moving average of a student" not in (whole / "student" / "README.md").read_text()


def test_the_moving_average_is_one(token_store: Path, options: DistillOptions) -> None:
    trainer, held_out = made(token_store, replace(options, ema=0.9))
    expected: dict[str, torch.Tensor] = {}
    for _ in range(4):
        trainer.step(*first_of(held_out, 8), 3e-3, 0.0)
        for name, value in trainer.model.student.named_parameters():
            old = expected.get(name, value)
            expected[name] = (0.9 * old + 0.1 * value).detach().clone()
    averaged = trainer.averaged
    assert averaged is not None
    for name, value in averaged.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


def test_a_run_of_an_older_version_goes_on(
    token_store: Path, options: DistillOptions, tmp_path: Path
) -> None:
    """Its options.json lacks what came later; each of that had its default."""
    plain = DistillOptions(
        student=STUDENT, random_weights=1, steps=4, batch_size=8, checkpoint_every=2, window=64, threads=2
    )
    run = tmp_path / "run"
    train.distill(token_store, run, plain, False, Silent())
    (run / "summary.json").unlink()
    checkpoint.saved(run)[-1].unlink()
    begun = json.loads((run / "options.json").read_text())
    for name in ("assign", "ema", "student_temp", "pooling", "prototypes", "head_hidden"):
        del begun["options"][name]
    (run / "options.json").write_text(json.dumps(begun))
    with pytest.raises(
        OptionError, match=r"--ema 0\.9: .* was begun without it; leave it out, or another --out"
    ):
        train.distill(token_store, run, replace(plain, ema=0.9), True, Silent())
    assert train.distill(token_store, run, plain, True, Silent())["steps"] == 4


@pytest.mark.parametrize(("pooling", "dim"), [("cls", 24), ("cls+mean", 48)])
def test_a_student_of_either_pooling(
    token_store: Path, options: DistillOptions, tmp_path: Path, pooling: str, dim: int
) -> None:
    run = tmp_path / "run"
    chosen = replace(options, pooling=pooling, steps=2, loss="log-sum,dino,ibot")
    train.distill(token_store, run, chosen, False, Silent())
    student = load_encoder(str(run / "student"))
    assert (student.pooling, student.dim) == (pooling, dim)
    views = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        model: Any = student.backbone
        tokens = model.forward_features(student.normalized(views))
        expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(dim=1)], dim=1)[:, :dim]  # no register in it
        torch.testing.assert_close(student(views), expected)
        other = load_encoder(str(run / "student"), pooling="cls")
        torch.testing.assert_close(other(views), tokens[:, 0])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"prototypes": None},
            OptionError,
            r"--loss dino\+ibot: dino needs --prototypes; `g2l prototypes` makes",
        ),
        ({"ema": 1.0}, OptionError, "--ema 1.0: allowed is above 0, below 1"),
        ({"teacher_temp": 0.0}, OptionError, "--teacher-temp 0.0: allowed is above 0"),
        ({"head_hidden": 0}, OptionError, "--head-hidden 0: allowed is 1 or more"),
        ({"loss": "dinos"}, OptionError, "--loss dinos: 'dinos' is not one of"),
        ({"student": "tests.tools.tiny:student"}, EncoderError, "has no square grid of patch tokens"),
        ({"student": "tests.tools.tiny:student", "pooling": "cls"}, EncoderError, "has no square grid"),
    ],
)
def test_wrong_uses(
    token_store: Path,
    options: DistillOptions,
    tmp_path: Path,
    change: dict[str, Any],
    error: type[G2LError],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        train.distill(token_store, tmp_path / "run", replace(options, **change), False, Silent())


def test_a_store_without_tokens(store: Path, options: DistillOptions, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"ibot needs patch tokens, and .* has none; run extract-teacher --tokens"
    ):
        train.distill(store, tmp_path / "a", options, False, Silent())
    with pytest.raises(OptionError, match="fitted on a store with recipe"):
        train.distill(store, tmp_path / "b", replace(options, loss="dino"), False, Silent())


@pytest.mark.torchrun
def test_two_processes_balance_over_the_batches_of_both(
    token_store: Path, options: DistillOptions, tmp_path: Path
) -> None:
    """Sinkhorn, KoLeo, InfoNCE and normalisation see one batch: the losses of one process with twice as much.

    KoLeo takes the log of distances near 0.005 between features of norm 1, which magnifies rounding: hence its weight.
    """
    chosen = replace(
        options, loss="dino,ibot,token-cosine,infonce,koleo:1e-6", assign="sinkhorn", steps=5, threads=1
    )
    train.distill(token_store, tmp_path / "one", replace(chosen, batch_size=16), False, Silent())
    run_several(token_store, tmp_path / "two", chosen, 2)
    one, two = (
        [line for line in read_metrics(tmp_path / run / "metrics.jsonl") if line["kind"] == "train"]
        for run in ("one", "two")
    )
    assert len(one) == 5
    for wanted, got in zip(one, two, strict=True):
        for name in ("loss", "loss_dino", "loss_ibot", "loss_token-cosine", "loss_infonce"):
            assert got[name] == pytest.approx(wanted[name], rel=2e-4), name
    assert two[0]["loss_koleo"] == pytest.approx(one[0]["loss_koleo"], rel=1e-3)
