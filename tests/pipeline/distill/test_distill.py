"""Stage two: no teacher, exact resume, outputs, validation, wrong stores and options."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.loader import SAMPLE_BLOCKS, Batch
from pipeline.data.split import Split
from pipeline.data.statistics import statistics
from pipeline.distill import checkpoint, train
from pipeline.distill.heads import BN_EPS, standardise
from pipeline.distill.inputs import open_data
from pipeline.distill.losses import infonce
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.model import Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.result import Distilled
from pipeline.distill.trainer import make_trainer
from pipeline.distill.validate import validate
from pipeline.encoders.load import load_encoder
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.metrics.cka import cka, linear_cka
from pipeline.metrics.explained import explained_variance
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from stores import sampler
from stores.errors import DistillError, G2LError, OptionError, StoreError
from stores.format import features, recipe
from stores.format.index import drop_index
from stores.format.terms import Terms
from tests.tools.distill import ALONE, OPTIONS, VIT, first_of, made, same
from tests.tools.kill import distill_job, kill_at_random, start
from tests.tools.settings import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    train.distill(store, path, OPTIONS, False, Silent())
    return path


def test_a_run_of_an_earlier_version_keeps_its_held_out_views(
    run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--early-stop held-out`` decides by them."""
    asked: list[int | None] = []

    def open_data(
        store: Path, options: DistillOptions, threads: int, report: Silent, blocks: int | None
    ) -> None:
        asked.append(blocks)
        raise StoreError("enough")

    monkeypatch.setattr(train, "open_data", open_data)
    begun = json.loads((run / "options.json").read_text())
    assert begun.pop("sample") == "blocks-256" == f"blocks-{SAMPLE_BLOCKS}"
    (tmp_path / "old").mkdir()
    (tmp_path / "old/options.json").write_text(json.dumps(begun))
    for path in (tmp_path / "new", tmp_path / "old"):
        with pytest.raises(StoreError, match="enough"):
            train.distill(store, path, OPTIONS, False, Silent())
    assert asked == [SAMPLE_BLOCKS, None]


def test_the_run_folder(run: Path, store: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == summary["steps_planned"] == 24
    assert summary["views_seen"] == 24 * 8
    assert summary["loss_last"] < summary["loss_first"]
    assert 0 < summary["validation_share"] < 1
    started = [r["step"] for r in read_metrics(run / "metrics.jsonl") if "first_step_seconds" in r]
    assert started == [1]
    assert summary["cosine_after"] > summary["cosine_before"]
    assert 0 < summary["cka_before"] < summary["cka_after"] <= 1
    assert summary["explained_before"] < summary["explained_after"] < 1
    assert summary["cka_unbiased_before"] < summary["cka_unbiased_after"] <= 1
    said = "\n".join(Distilled(run, summary).lines())
    assert f"-> {summary['explained_after']:.1%}" in said
    beside = (
        f"loss {summary['val_loss_after']:.3f} (the mean of the targets: {summary['val_loss_constant']:.3f})"
    )
    assert f"held out: {beside}" in said
    assert summary["peak_rss_bytes"] > 50e6
    assert 0 <= summary["data_wait"] <= 1
    records = read_metrics(run / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 25))
    assert [r["step"] for r in records if r["kind"] == "val"] == [0, 10, 20, 24]
    assert {"loss", "lr", "weight_decay", "data_wait", "views_per_s"} <= records[1].keys()
    assert (run / "curves.png").stat().st_size > 5000
    assert len(checkpoint.saved(run)) == 2
    options = json.loads((run / "options.json").read_text())
    assert not {"qc_max", "qc_min"} & options["options"].keys()  # without limits, as before there were any
    assert options["options"]["student"] == VIT
    card = (run / "student/README.md").read_text()
    assert card.startswith("---\n")
    assert "tests.tools.tiny:teacher" in card


def test_the_student_opens_in_timm_and_here(run: Path) -> None:
    make_importable()
    import timm

    ours = load_encoder(str(run / "student"))
    theirs = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8))
    mean, std = torch.tensor(ours.mean), torch.tensor(ours.std)
    images = ((batch.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(ours(batch), theirs(images), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_same_inputs_same_bytes(run: Path, store: Path, tmp_path: Path) -> None:
    train.distill(store, tmp_path / "r", replace(OPTIONS, threads=1, check_views="all"), False, Silent())
    assert same(run, tmp_path / "r")


@pytest.mark.slow
def test_another_seed_is_another_student(run: Path, store: Path, tmp_path: Path) -> None:
    train.distill(store, tmp_path / "r", replace(OPTIONS, seed=1), False, Silent())
    assert not same(run, tmp_path / "r")


def test_a_complete_run_is_left_alone(run: Path, store: Path) -> None:
    before = (run / "summary.json").read_bytes()
    assert train.distill(store, run, OPTIONS, True, Silent()) == json.loads(before)
    assert (run / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"), [("head", "prototypes"), ("assign", "none"), ("early_stop", "cumulative")]
)
def test_a_run_with_a_choice_that_is_gone_is_not_continued(
    run: Path, store: Path, tmp_path: Path, name: str, value: str
) -> None:
    begun = json.loads((run / "options.json").read_text())
    begun["options"] |= {"head": "dino", name: value}
    (tmp_path / "options.json").write_text(json.dumps(begun))
    said = f"begun with --{name.replace('_', '-')} {value}, which this version does not have"
    with pytest.raises(OptionError, match=said):
        train.distill(store, tmp_path, OPTIONS, False, Silent())
    assert [file.name for file in tmp_path.iterdir()] == ["options.json"]


@pytest.mark.kill
def test_killed_at_any_moment_and_started_again_is_bit_identical(
    run: Path, store: Path, tmp_path: Path
) -> None:
    """SIGKILL at 24 moments of four runs; the student and the losses are those of an undisturbed run."""
    quick: dict[str, Any] = {"checkpoint_every": 1, "check_views": "none", "val_views": 2, "val_every": 1000}
    options, killed, steps = replace(OPTIONS, **quick), 0, set()
    for number in range(4):
        path = tmp_path / f"r{number}"

        def whole_so_far(path: Path = path) -> None:
            for file in checkpoint.saved(path):
                steps.add((path.name, torch.load(file, weights_only=True)["step"]))

        def newest(path: Path = path) -> list[Path]:
            return checkpoint.saved(path)[-1:]

        job, watched = (store, path, options), path / "checkpoints"
        killed += kill_at_random(distill_job, job, 6, number, watched, 0.03, whole_so_far, newest, 3)
        train.distill(store, path, options, False, Silent())
        assert same(run, path)
        assert losses(path) == losses(run)
        assert not list(path.rglob("*.partial"))
    assert killed >= 20
    assert len(steps) > 20  # they went on from each other's checkpoints


def losses(run: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_writes_a_checkpoint_first(run: Path, store: Path, tmp_path: Path, number: int) -> None:
    path, options = tmp_path / "r", replace(OPTIONS, checkpoint_every=1000)
    process = start(distill_job, (store, path, options))
    while process.is_alive() and len(read_metrics(path / "metrics.jsonl")) < 6:
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 1
    (saved,) = checkpoint.saved(path)
    assert 0 < int(saved.stem.removeprefix("step-")) < 24
    train.distill(store, path, options, True, Silent())
    assert same(run, path)


@pytest.mark.slow
def test_random_layers_go_on_as_they_were(store: Path, tmp_path: Path) -> None:
    """Dropout: its random numbers follow from the seed and the views consumed, not from how the run came about."""
    options = replace(OPTIONS, student=f"{VIT}&proj_drop_rate=0.3", steps=12, checkpoint_every=6)
    whole = tmp_path / "whole"
    train.distill(store, whole, options, False, Silent())
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / "summary.json").unlink()
    (cut / "checkpoints/step-00000012.pt").unlink()
    torch.manual_seed(99)
    train.distill(store, cut, options, True, Silent())
    assert same(whole, cut)
    train.distill(store, tmp_path / "none", replace(options, student=VIT), False, Silent())
    assert not same(whole, tmp_path / "none")


@pytest.mark.kill
def test_ctrl_c_on_the_command_line(run: Path, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "r"
    command = [sys.executable, "cli.py", "distill", "--store", str(store), "--out", str(path)]
    for name in ("student", "random_weights", "steps", "batch_size", "lr", "val_every", "threads", "window"):
        command += [f"--{name.replace('_', '-')}", str(getattr(OPTIONS, name))]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    while process.poll() is None and len(read_metrics(path / "metrics.jsonl")) < 6:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "checkpoint written; start the same command again to continue" in said
    assert len(checkpoint.saved(path)) == 1


@pytest.mark.slow
def test_teacher_is_never_loaded(store: Path, tmp_path: Path) -> None:
    """With the store as the only source, in a process where building the teacher raises."""
    script = f"""
import sys
from pathlib import Path
import tests.tools.tiny, pipeline.encoders.load as encoders

def forbidden(*args, **kwargs):
    raise AssertionError("a teacher was built")

tests.tools.tiny.teacher = forbidden
build, load = encoders._build, encoders.load_encoder
def guarded(spec, **kwargs):
    assert spec == {VIT!r}, spec
    return load(spec, **kwargs)
encoders.load_encoder = guarded
from pipeline.distill.train import distill
from pipeline.distill.options import DistillOptions
from pipeline.runtime.progress import Silent
options = DistillOptions(student={VIT!r}, random_weights=0, steps=2, batch_size=4, threads=1)
summary = distill(Path({str(store)!r}), Path({str(tmp_path / "r")!r}), options, False, Silent())
assert summary["peak_rss_bytes"] > 0
loaded = [name for name in sys.modules if name in ("pipeline.extract", "pipeline.inference", "pipeline.tile")]
assert not loaded, loaded
print("trained")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "trained", done.stderr


def test_a_store_needs_no_options_folder(store: Path, tmp_path: Path) -> None:
    """It informs; a merged or foreign store may lack it."""
    path = Path(shutil.copytree(store, tmp_path / "s", ignore=shutil.ignore_patterns("options", "pictures")))
    (terms,) = open_data(path, OPTIONS, 2, Silent()).teacher_terms
    assert terms == Terms("tests.tools.tiny:teacher")


def test_no_import_of_what_loads_a_teacher() -> None:
    for room in ("distill", "data"):
        for path in (ROOT / "pipeline" / room).rglob("*.py"):
            assert "pipeline.extract" not in path.read_text()
            assert "pipeline.inference" not in path.read_text()


def test_features_of_rebuilt_views_equal_the_stored_ones(store: Path) -> None:
    """The two stages are consistent: cosine of at least 0.9999 for every view."""
    data = open_data(store, OPTIONS, 2, Silent())
    teacher = load_encoder("tests.tools.tiny:teacher", random_weights=0)
    for seed in range(3):
        batch = data.train.sample(seed, 50, 2)
        with torch.inference_mode():
            features_now = teacher(torch.from_numpy(batch.views))
        cosine = torch.nn.functional.cosine_similarity(features_now, torch.from_numpy(batch.targets).float())
        assert float(cosine.min()) >= 0.9999


def test_statistics_are_those_of_the_training_targets(store: Path) -> None:
    units = sampler.find_units(store, "train", None)
    mean, variance = statistics(store, units)
    stored = np.concatenate(
        [
            features.open_features(store, u.commit.slide_id).read_block(s, u.commit.block)
            for u in units
            for s in u.seeds
        ]
    ).astype(np.float64)
    np.testing.assert_allclose(mean, stored.mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(variance, stored.var(axis=0), rtol=1e-6, atol=1e-9)


def test_validation_figures(store: Path) -> None:
    data = open_data(store, OPTIONS, 2, Silent())
    trainer = make_trainer(train.load_student(OPTIONS), data, OPTIONS, ALONE)
    assert data.held_out is not None
    device = torch.device("cpu")
    result = validate(trainer.model, data.held_out, 8, device, fit=data.fit)
    trainer.model.student.eval()
    with torch.inference_mode():
        embedding = trainer.model.student(torch.from_numpy(data.held_out.views))
        assert trainer.model.projector is not None
        projected = standardise(trainer.model.projector.linear(embedding))
    raw = torch.from_numpy(data.held_out.targets).float()
    assert result.cka == pytest.approx(linear_cka(embedding.numpy(), raw.numpy()), rel=1e-4)
    targets = standardise(raw)
    cosine = torch.nn.functional.cosine_similarity(projected, targets).mean()
    assert result.cosine == pytest.approx(float(cosine), rel=1e-4, abs=1e-6)
    assert result.cka_unbiased == cka(embedding.numpy(), raw.numpy()).unbiased
    assert data.fit is not None
    with torch.inference_mode():
        fit = trainer.model.student(torch.from_numpy(data.fit.views))
    known = fit.numpy(), data.fit.targets.astype(np.float32)
    expected = explained_variance(*known, embedding.numpy(), raw.numpy())
    assert result.explained == pytest.approx(expected, abs=1e-4)
    again = validate(trainer.model, data.held_out, 8, device, fit=data.fit)
    assert result == again  # changes no running statistics


def some(batch: Batch, rows: Any) -> Batch:
    """Some of the views of a batch."""
    arrays = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{n: a[rows] for n, a in arrays.items() if isinstance(a, np.ndarray) and len(a)})


@pytest.mark.parametrize("norm", ["batch", "store"])
@pytest.mark.parametrize("loss", ["log-sum", "mse:2,cosine"])
def test_the_held_out_loss_is_as_in_training(store: Path, loss: str, norm: str) -> None:
    """The same batch gives the same loss in a step and in a validation, however many views there are."""
    options = replace(OPTIONS, loss=loss, teacher_norm=norm, check_views="none")
    data = open_data(store, options, 2, Silent())
    model = make_trainer(train.load_student(options), data, options, ALONE).model
    assert data.held_out is not None
    step, targets = first_of(data.held_out, 16)
    with torch.no_grad():
        expected = float(model.train()(step, targets)[0])
    held_out = some(data.held_out, np.arange(16))
    found = validate(model, held_out, 16, ALONE.device)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert model.training
    order = np.random.default_rng(0).permutation(16)
    with torch.no_grad():
        halves = [
            float(model.train()(step[part], targets.rows(torch.from_numpy(part)))[0])
            for part in (order[:7], order[7:14])
        ]
    assert validate(model, held_out, 7, ALONE.device).loss == pytest.approx(np.mean(halves), rel=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_loss_of_the_mean_of_the_targets(store: Path, norm: str) -> None:
    options = replace(OPTIONS, loss="mse", teacher_norm=norm, check_views="none")
    data = open_data(store, options, 2, Silent())
    model = make_trainer(train.load_student(options), data, options, ALONE).model
    assert data.held_out is not None
    held_out = some(data.held_out, np.arange(16))
    raw = held_out.targets.astype(np.float64)
    standardised = raw.var(axis=0) / (raw.var(axis=0) + BN_EPS)
    expected = standardised if norm == "batch" else np.square(raw - data.teaching.mean)
    found = validate(model, held_out, 16, ALONE.device)
    assert found.loss_constant == pytest.approx(expected.mean(), rel=1e-4)


def test_fewer_held_out_views_than_a_batch(store: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", []

    class Listening(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    options = replace(OPTIONS, steps=1, batch_size=7, val_views=6, check_views="none", val_every=1)
    summary = train.distill(store, run, options, False, Listening())
    assert any("no held-out loss: 6 held-out views are fewer than the 7 of a step" in line for line in said)
    assert any("6 samples are fewer than" in line for line in said)
    assert summary["val_loss_after"] is None
    assert summary["cka_unbiased_after"] is not None
    assert summary["explained_after"] is not None
    assert all("loss" not in r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "val")
    assert not any("loss" in line for line in Distilled(run, summary).lines()[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["log-sum", "log-sum-corr", "mse", "l1", "smooth-l1", "cosine", "relational", "infonce"]
)
@pytest.mark.parametrize("norm", ["batch", "store", "none"])
def test_every_loss_goes_down(store: Path, loss: str, norm: str) -> None:
    options = replace(OPTIONS, loss=loss, teacher_norm=norm)
    data = open_data(store, replace(options, check_views="none"), 2, Silent())
    trainer = make_trainer(train.load_student(options), data, options, ALONE)
    assert data.held_out is not None
    batch, targets = first_of(data.held_out, 16)
    losses = [trainer.step(batch, targets, 3e-3, 0.0)["loss"] for _ in range(12)]
    assert losses[-1] < losses[0]


@torch.no_grad()
def test_infonce_takes_the_temperature_of_the_options(store: Path) -> None:
    trainer, batch = made(store, replace(OPTIONS, loss="infonce", infonce_temp=0.7))
    model = trainer.model.eval()
    views, targets = first_of(batch, 8)
    student = model.embed(views, targets.positions)
    expected = infonce(model.projected(student.features), model.target_norm(targets.features), 0.7)
    torch.testing.assert_close(model.compare(student, targets)[0], expected)


def test_weight_decay_spares_biases_and_norms(store: Path) -> None:
    data = open_data(store, replace(OPTIONS, check_views="none"), 2, Silent())
    trainer = make_trainer(train.load_student(OPTIONS), data, OPTIONS, ALONE)
    assert data.held_out is not None
    trainer.step(*first_of(data.held_out, 4), 0.25, 0.125)
    for group in trainer.optimizer.param_groups:
        assert group["lr"] == 0.25
        assert group["weight_decay"] == (0.125 if group["params"][0].ndim > 1 else 0.0)


def test_a_loss_that_is_not_finite_stops_the_run(store: Path) -> None:
    data = open_data(store, replace(OPTIONS, check_views="none"), 2, Silent())
    trainer = make_trainer(train.load_student(OPTIONS), data, OPTIONS, ALONE)
    views = torch.zeros(4, 224, 224, 3, dtype=torch.uint8)
    none = torch.empty(4, 0, 0), torch.empty(4, 0, dtype=torch.int64)
    targets = Targets(torch.full((4, 24), float("nan")), *none)
    with pytest.raises(DistillError, match="the loss is nan: lower --lr"):
        trainer.step(views, targets, 1e-3, 0.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lr": 1e-3}, "--lr 0.001: .* was begun with 0.003"),
        ({"steps": 25}, "--steps 25: .* was begun with 24"),
        (
            {"student": "tests.tools.tiny:student"},
            "--student tests.tools.tiny:student: .* was begun with timm:",
        ),
    ],
)
def test_a_run_has_one_set_of_options(run: Path, store: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        train.distill(store, run, replace(OPTIONS, **change), False, Silent())


@pytest.mark.slow
def test_a_cnn_student_takes_the_views_of_the_store_and_opens_again(store: Path, tmp_path: Path) -> None:
    """Its usual size is 106 px, and its blocks lie in stages."""
    options = replace(OPTIONS, student="tinynet_e", steps=1, val_every=1, val_views=2, batch_size=4)
    train.distill(store, tmp_path / "r", options, False, Silent())
    student = load_encoder(str(tmp_path / "r/student"))
    assert (load_encoder(options.student, random_weights=0).image_px, student.image_px) == (106, 224)


def attempt(store: Path, run: Path, **changes: Any) -> str:
    with pytest.raises(G2LError) as caught:
        train.distill(store, run, replace(OPTIONS, **changes), bool(changes.pop("resume", False)), Silent())
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_uses_are_one_line(store: Path, tmp_path: Path) -> None:
    assert "seed 3 is needed; run extract-teacher --seeds 7, or distill with --seeds 3" in attempt(
        store, tmp_path / "r", seeds=7
    )
    assert "not a store" in attempt(tmp_path / "none", tmp_path / "r")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    assert "not empty and not a run" in attempt(store, tmp_path / "full")
    with pytest.raises(OptionError, match=r"--resume: .* has no checkpoint"):
        train.distill(store, tmp_path / "r", OPTIONS, True, Silent())
    assert "--batch-size 1: allowed is 2 or more" in attempt(store, tmp_path / "r", batch_size=1)
    assert "no such file or folder" in attempt(
        store, tmp_path / "r", weights=tmp_path / "w.safetensors", random_weights=None
    )
    assert not (tmp_path / "r").exists()


def test_a_run_belongs_to_one_store(run: Path, store: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "s"))
    stored = recipe.load(other)
    recipe.save(other, replace(stored, patch=replace(stored.patch, min_tissue=0.25)))
    unfinished = Path(shutil.copytree(run, tmp_path / "r"))
    (unfinished / "summary.json").unlink()
    with pytest.raises(OptionError, match="trained on a store with recipe"):
        train.distill(other, unfinished, OPTIONS, False, Silent())


def test_a_store_without_features_or_training_views(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    for slide in "ab":
        shutil.rmtree(path / "manifest/views" / slide)
    drop_index(path)
    with pytest.raises(StoreError, match="no committed views in the split 'train'"):
        open_data(path, OPTIONS, 2, Silent())


def test_the_store_is_looked_at_before_weights_are_loaded(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights may be gigabytes to download; what is wrong with the store is said first."""

    def forbidden(*args: object, **values: object) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(train, "load_encoder", forbidden)
    tiles = tmp_path / "tiles"
    tile([slides], tiles, tile_options, Silent())
    run, preset = tmp_path / "r", {"student": "h-optimus-0", "random_weights": None}
    assert "has no teacher features yet; run `g2l extract-teacher`" in attempt(tiles, run, **preset)
    smaller = Path(shutil.copytree(store, tmp_path / "smaller"))
    stored = recipe.load(smaller)
    assert stored.policy is not None
    assert stored.teacher is not None
    teacher = replace(stored.teacher, image_px=196)
    recipe.save(smaller, replace(stored, teacher=teacher, policy={**stored.policy, "crop_px": 196}))
    unchecked = {**preset, "check_views": "none", "val_views": 2}
    monkeypatch.setattr(Split, "sample", lambda *_: None)
    assert "--student h-optimus-0: takes 224 px, the store has 196 px" in attempt(smaller, run, **unchecked)
    assert "ibot needs patch tokens" in attempt(store, run, **preset, loss="ibot", prototypes=tmp_path)
    assert "no finished prototypes there" in attempt(store, run, **preset, loss="dino", prototypes=tmp_path)
    assert "seed 3 is needed" in attempt(store, run, **preset, seeds=7)
    assert not run.exists() or not (run / "options.json").exists()
    with pytest.raises(AssertionError, match="an encoder was loaded"):
        train.distill(store, run, OPTIONS, False, Silent())


def test_a_checkpoint_that_a_kill_left_is_removed(run: Path, store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(run, tmp_path / "r"))
    (path / "summary.json").unlink()
    kept = checkpoint.saved(path)
    shutil.copy(kept[0], kept[0].with_name("step-00000001.pt"))
    train.distill(store, path, OPTIONS, True, Silent())
    assert [p.name for p in checkpoint.saved(path)] == [p.name for p in kept]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(run: Path, store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(run, tmp_path / "r"))
    (path / "summary.json").unlink()
    newest = checkpoint.saved(path)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(
        DistillError,
        match=r"step-00000024\.pt: not a checkpoint of this run .* remove it to use the one before",
    ):
        train.distill(store, path, OPTIONS, False, Silent())
    newest.unlink()
    train.distill(store, path, OPTIONS, False, Silent())
    assert same(run, path)


def test_a_finished_run_is_swept(run: Path, store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(run, tmp_path / "run"))
    partials = [path / ".summary.json.1.partial", path / "student" / ".tmpRgZc5m"]
    for partial in partials:
        partial.touch()
    train.distill(store, path, OPTIONS, True, Silent())
    assert not any(partial.exists() for partial in partials)
