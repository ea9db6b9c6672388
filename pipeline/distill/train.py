"""Stage two, ``distill``: options in, a run folder out. Start the same command again and it goes on.

``options.json``      what was asked, and the digest of the store's recipe
``metrics.jsonl``     a line per step and per validation
``checkpoints/``      the last two
``student/``          the result: safetensors and config that timm opens, and a model card
``projector.safetensors``, ``summary.json``, ``curves.png``
"""

import contextlib
import importlib.metadata
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline import devices, pictures
from pipeline import options as opts
from pipeline.distill import card, checkpoint
from pipeline.distill.data import Data, open_data
from pipeline.distill.loader import Batch, LoaderOptions, ViewLoader
from pipeline.distill.log import MetricsLog, read_metrics
from pipeline.distill.losses import make_loss
from pipeline.distill.model import Distiller, TargetNorm, build
from pipeline.distill.schedule import EarlyStop, cosine_annealing
from pipeline.distill.validate import validate
from pipeline.encoders import Encoder, load_encoder
from pipeline.export import export_encoder
from pipeline.interrupt import Interrupted, stop_on_signal
from pipeline.progress import Reporter
from pipeline.torchvision_cpu import make_importable
from stores import files
from stores.errors import DistillError, OptionError
from stores.location import StoreLike

# these change nothing in the student; all other options must be the same when a run goes on
_FREE = frozenset(
    [
        "slides",
        "device",
        "threads",
        "val_every",
        "val_views",
        "checkpoint_every",
        "check_views",
        "tensorboard",
    ]
)


@dataclass(frozen=True, slots=True)
class Trainer:
    """The parts of a running training."""

    model: Distiller
    targets: TargetNorm
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device
    dtype: torch.dtype

    def step(self, views: Tensor, targets: Tensor, lr: float, weight_decay: float) -> float:
        """One optimiser step on a batch; returns its loss.

        Parameters
        ----------
        views : uint8 (B, H, W, 3)
        targets : float32 (B, d_t), raw
        """
        if self.device.type == "cuda":
            views, targets = views.pin_memory(), targets.pin_memory()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            embedding = self.model.student(views.to(self.device, non_blocking=True))
        projected = self.model.projector(embedding.float())
        loss = self.loss(projected, self.targets(targets.to(self.device, non_blocking=True)))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DistillError(
                f"the loss is {value}: lower --lr, or try --dtype float32; checkpoints are kept"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return value


def distill(
    store: StoreLike, run: Path, options: opts.DistillOptions, resume: bool, report: Reporter
) -> dict[str, Any]:
    """Train a student against a store; returns the summary that also stands in ``summary.json``.

    Parameters
    ----------
    resume : bool
        Insist that there is something to go on from. Without it a run goes on when there is, else begins.
    """
    options.validate()
    if resume and not checkpoint.saved(run):
        raise OptionError(f"--resume: {run} has no checkpoint; leave --resume out to begin")
    if (run / "options.json").exists():
        _require_same_options(run, options)
    if (run / "summary.json").exists():
        report.note(f"{run} is complete; use another --out to train again")
        return files.read_json(run / "summary.json")
    threads = options.threads or os.cpu_count() or 1
    student = load_student(options)
    data = open_data(store, options, threads, report)
    _begin_run(run, options, data.recipe.digest())
    trainer = make_trainer(student, data, options)
    report.note(f"student {options.student} on {trainer.device}, {devices.dtype_name(trainer.dtype)}")
    facts = _train(run, data, trainer, options, threads, report)
    return _finish(run, data, trainer, facts)


def _begin_run(run: Path, options: opts.DistillOptions, digest: str) -> None:
    path = run / "options.json"
    if path.exists():
        old = files.read_json(path)["store_recipe"]
        if old != digest:
            raise OptionError(
                f"--out {run}: trained on a store with recipe {old[:12]}, this one has {digest[:12]}"
            )
        return
    if run.exists() and any(run.iterdir()):
        raise OptionError(f"--out {run}: the folder is not empty and not a run; choose another")
    files.write_json(path, {"options": opts.to_json(options), "store_recipe": digest})


def _require_same_options(run: Path, options: opts.DistillOptions) -> None:
    old = files.read_json(run / "options.json").get("options", {})
    for name, value in opts.to_json(options).items():
        if name not in _FREE and old.get(name) != value:
            flag = name.replace("_", "-")
            raise OptionError(
                f"--{flag} {value}: {run} was begun with {old.get(name)}; use that, or another --out"
            )


def load_student(options: opts.DistillOptions) -> Encoder:
    """The encoder that ``--student`` names. No teacher is loaded here or anywhere in stage two."""
    return load_encoder(options.student, weights=options.weights, random_weights=options.random_weights)


def make_trainer(student: Encoder, data: Data, options: opts.DistillOptions) -> Trainer:
    """The student on its device with a projector and an optimiser."""
    device = devices.choose_device(options.device)
    dtype, _ = devices.choose_dtype(options.dtype, device)
    if student.image_px != data.policy.crop_px:
        raise OptionError(
            f"--student {options.student}: takes {student.image_px} px, the store has {data.policy.crop_px} px"
        )
    torch.manual_seed(options.seed)
    model = build(student, data.teacher.dim, options.seed).to(device).train()
    make_importable()
    from timm.optim import param_groups_weight_decay

    groups = param_groups_weight_decay(model, options.weight_decay)
    for group in groups:
        group["decays"] = group["weight_decay"] > 0
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    targets = TargetNorm(options.teacher_norm, data.mean, data.variance).to(device)
    return Trainer(model, targets, make_loss(options.loss, options.alpha), optimizer, device, dtype)


@dataclass(slots=True)
class Course:
    """A training under way; `facts` are the figures that outlive an interruption in the checkpoint."""

    run: Path
    data: Data
    trainer: Trainer
    options: opts.DistillOptions
    steps: int
    stop_early: EarlyStop
    facts: dict[str, Any]
    log: MetricsLog

    def validate(self, step: int) -> None:
        """Compare with the teacher on held-out views, if there are any."""
        if self.data.held_out is None:
            return
        t = self.trainer
        size = self.options.batch_size
        result = asdict(validate(t.model, t.targets, t.loss, self.data.held_out, size, t.device, t.dtype))
        self.facts.setdefault("before", result)
        self.facts["after"] = result
        self.log.write("val", step, result)

    def step(self, step: int, stream: Iterator[Batch]) -> str:
        """Train on the next batch and keep account of it; returns a few words for the progress bar."""
        began = time.monotonic()
        batch = next(stream)
        waited = time.monotonic() - began
        lr = cosine_annealing(self.options.lr, step - 1, self.steps, self.options.warmup_steps)
        weight_decay = cosine_annealing(self.options.weight_decay, step - 1, self.steps)
        targets = torch.from_numpy(batch.targets).float()
        loss = self.trainer.step(torch.from_numpy(batch.views), targets, lr, weight_decay)
        seconds = time.monotonic() - began
        self.facts |= {
            "steps": step,
            "views_seen": step * self.options.batch_size,
            "loss_first": self.facts.get("loss_first", loss),
            "loss_last": loss,
            "seconds": self.facts["seconds"] + seconds,
            "wait_seconds": self.facts["wait_seconds"] + waited,
            "stopped_early": self.stop_early.update(loss),
        }
        figures = {"loss": loss, "lr": lr, "weight_decay": weight_decay, "epoch": batch.epoch}
        speed = {"views_per_s": self.options.batch_size / seconds, "data_wait": waited / seconds}
        self.log.write("train", step, figures | speed)
        return f"loss {loss:.3f}, data wait {waited / seconds:.0%}"

    def save(self, step: int) -> None:
        """Write a checkpoint."""
        t = self.trainer
        checkpoint.save(self.run, step, t.model, t.optimizer, self.stop_early, self.facts)


def _train(
    run: Path, data: Data, trainer: Trainer, options: opts.DistillOptions, threads: int, report: Reporter
) -> dict[str, Any]:
    """Train from the newest checkpoint, or from the start, to the last step; returns the figures."""
    epoch_views = sum(unit.n_views for unit in data.train)
    steps = options.steps or max(1, math.ceil(options.epochs * epoch_views / options.batch_size))
    done = 0
    facts: dict[str, Any] = {"steps_planned": steps, "epoch_views": epoch_views}
    facts |= {"seconds": 0.0, "wait_seconds": 0.0, "stopped_early": False}
    stop_early = EarlyStop(options.early_stop)
    if checkpoint.saved(run):
        newest = checkpoint.saved(run)[-1]
        done, facts = checkpoint.restore(newest, trainer.model, trainer.optimizer, stop_early)
        report.note(f"goes on after step {done} of {steps}")
    log = MetricsLog(run, done, options.tensorboard)
    course = Course(run, data, trainer, options, steps, stop_early, facts, log)
    if done == 0:
        course.validate(0)
    loader_options = LoaderOptions(
        options.batch_size, options.window, options.views_per_read, options.seed, options.check_views, threads
    )
    start = done * options.batch_size
    loader = ViewLoader(data.store, data.train, data.sources, data.policy, loader_options, start)
    report.start("distill", steps, done)
    with contextlib.closing(log), loader, stop_on_signal() as stop:
        stream = iter(loader)
        for step in range(done + 1, steps + 1):
            if course.facts["stopped_early"]:
                break
            report.advance(detail=course.step(step, stream))
            last = step == steps or course.facts["stopped_early"]
            if last or step % options.val_every == 0:
                course.validate(step)
            if last or stop.requested or step % options.checkpoint_every == 0:
                course.save(step)
            if stop.requested and not last:
                raise Interrupted(f"stopped after step {step} of {steps}, checkpoint written")
    return course.facts


def _finish(run: Path, data: Data, trainer: Trainer, facts: dict[str, Any]) -> dict[str, Any]:
    """Export the student and write the summary, last: its presence says that the run is complete."""
    before, after = facts.get("before", {}), facts.get("after", {})
    summary = {
        "g2l_version": importlib.metadata.version("g2l"),
        "steps": facts["steps"],
        "steps_planned": facts["steps_planned"],
        "stopped_early": facts["stopped_early"],
        "views": facts["epoch_views"],
        "views_seen": facts["views_seen"],
        "loss_first": facts["loss_first"],
        "loss_last": facts["loss_last"],
        **{f"{name}_before": before.get(name) for name in ("cosine", "cka")},
        **{f"{name}_after": after.get(name) for name in ("cosine", "cka")},
        "val_loss_before": before.get("loss"),
        "val_loss_after": after.get("loss"),
        "views_per_s": facts["views_seen"] / facts["seconds"],
        "data_wait": facts["wait_seconds"] / facts["seconds"],
        "seconds": facts["seconds"],
        **devices.peak_memory(trainer.device),
    }
    student, projector = trainer.model.student, trainer.model.projector
    extra = {
        "distilled_from": data.teacher.name,
        "teacher_weights_sha256": data.teacher.weights_sha256,
        "store_recipe": data.recipe.digest(),
        "patch_mpp": data.recipe.patch.mpp,
    }
    export_encoder(student.cpu(), run / "student", extra)
    text = card.model_card(student, data.recipe, data.teacher_licence, summary)
    files.write_text(run / "student" / "README.md", text)
    with files.replacing(run / "projector.safetensors") as partial:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in projector.state_dict().items()}, partial
        )
    records = read_metrics(run / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "train"]
    pictures.draw_curves(run / "curves.png", steps, [record for record in records if record["kind"] == "val"])
    files.write_json(run / "summary.json", summary)
    return summary
