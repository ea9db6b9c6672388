"""Stage two, ``distill``: trains a student and writes a run folder. The same command continues an interrupted run.

``options.json``      the options, and the digest of the store's recipe
``metrics.jsonl``     a line for each step and each validation
``log.jsonl``         what happened, see `pipeline.runtime.log`
``checkpoints/``      the last two
``student/``          the result: safetensors and config that timm opens, and a model card
``student-ema/``      its moving average, with --ema
``projector.safetensors``, ``heads.safetensors``, ``nested.safetensors``, ``summary.json``, ``curves.png``
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.data import window as windows
from pipeline.data.balance import described
from pipeline.data.join import JoinedSplit
from pipeline.data.loader import SAMPLE, SAMPLE_BLOCKS, Batch, LoaderOptions
from pipeline.distill import checkpoint, out_of_memory
from pipeline.distill import ranks as ranks_of
from pipeline.distill.curves import draw_curves
from pipeline.distill.early_stop import EarlyStop, make_early_stop
from pipeline.distill.inputs import Data, open_data
from pipeline.distill.metrics_log import MetricsLog, read_metrics
from pipeline.distill.model import Distiller, Targets
from pipeline.distill.model_card import model_card
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Ranks
from pipeline.distill.schedule import cosine_annealing
from pipeline.distill.start import with_defaults
from pipeline.distill.trainer import Trainer, make_trainer, require_view_size, seen_px
from pipeline.distill.validate import identities, limits, validate
from pipeline.distill.weighted import WeightedStore
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.export import export_encoder
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import PRESETS
from pipeline.runtime import devices
from pipeline.runtime.interrupt import Interrupted, Stop, stop_on_signal
from pipeline.runtime.log import RunLog
from pipeline.runtime.options import to_json, word_of_today
from pipeline.runtime.progress import Reporter, Silent
from pipeline.runtime.resume import BEGUN, read_begun, require_same_options
from pipeline.runtime.version import g2l_version
from pipeline.runtime.work import threads_of
from stores import sampler
from stores.errors import OptionError
from stores.format.splits import REMEDY
from stores.io import files
from stores.io.files import require_free
from stores.io.location import StoreLike
from stores.io.lock import only_writer
from stores.io.text import counted, one_line
from stores.store import Store

# these do not change the student; all other options must stay the same when a run continues
_FREE = frozenset(
    [
        "slides",
        "device",
        "threads",
        "readers",
        "val_every",
        "val_views",
        "checkpoint_every",
        "check_views",
        "tensorboard",
        "checkpointing",
        "micro_batch",
        "compile",
    ]
)
_OF_HELD_OUT = frozenset(["val_every", "val_views"])
"""With ``--early-stop held-out`` these decide when training ends."""
_NOT_SAID = frozenset(["qc_max", "qc_min"])
"""Options that a run does not record where they are not given: runs of earlier versions do not have them."""
_AS_BEGUN = ("window", "lr", "warmup_steps", "early_stop")
"""Where nothing is given, a run that continues has what it began with."""

_GONE = {"head": "prototypes", "assign": "none", "early_stop": "cumulative"}
"""Choices that earlier versions had. A run that was begun with one can be read, but not continued."""


def distill(
    store: Store | StoreLike | Sequence[WeightedStore],
    run: Path,
    options: DistillOptions,
    resume: bool,
    report: Reporter,
) -> dict[str, Any]:
    """Train a student against a store, or several; returns the contents of ``summary.json``.

    Under ``torchrun`` every process calls this. Only the first one reports, writes, and returns a summary; the others
    return an empty one.

    Parameters
    ----------
    resume : bool
        Fail unless a checkpoint exists. Without it, a run continues if it can, and begins otherwise.
    """
    began = time.monotonic()
    options.validate()
    if resume and not checkpoint.saved(run):
        raise OptionError(f"--resume: {run} has no checkpoint; leave --resume out to begin")
    fresh = not (run / BEGUN).exists()
    options = _as_begun(run, options)
    with ranks_of.join(options.device) as ranks, contextlib.ExitStack() as stack:
        if not ranks.leads:
            report = Silent()
        swept = stack.enter_context(only_writer(run)).swept if ranks.leads else 0
        complete = ranks.from_leader((run / "summary.json").exists())
        if complete:
            report.note(f"{run} is complete; use another --out to train again")
            return files.read_object(run / "summary.json", inside=run) if ranks.leads else {}
        if ranks.leads:
            report = stack.enter_context(RunLog(report, run / files.RUN_LOG))
            if swept:
                report.note(f"removed {counted(swept, 'unfinished file')} of an interrupted run")
        threads = threads_of(options.threads, ranks.local_world)
        data = open_data(store, options, threads, report, _sample_blocks(run))
        _require_same_store(run, data)
        options = _with_window(options, data, ranks, report)
        _require_view_size(options, data)
        steps = _planned_steps(options, data, ranks)
        _require_validations(options, data, steps)
        student = load_student(options)  # after all checks of the store: this may download gigabytes
        options = with_defaults(options, student, steps, report if fresh else Silent())
        with out_of_memory.explained(options, student):
            trainer = make_trainer(student, data, options, ranks)
        if ranks.leads:  # what is refused leaves no run behind
            _begin_run(run, options, data)
        if options.student_tokens == "per-teacher":
            of = trainer.model.student
            report.note(
                f"{of.class_tokens} class tokens, one for each store: an embedding of {of.dim:,} numbers"
            )
        if ranks.leads:
            _require_room(run, trainer, options.early_stop == "held-out")
        name = devices.dtype_name(trainer.dtype)
        several = (
            f", {ranks.world} processes, batch statistics {options.batch_stats}" if ranks.world > 1 else ""
        )
        report.note(f"student {options.student} on {trainer.device}, {name}{several}")
        if options.balance != "none":
            report.note(described(data.train.groups(options.balance), options.balance))
        if student.preset.warning:
            report.note(f"warning: {options.student}: {student.preset.warning}")
        with out_of_memory.explained(options, trainer.model.student):
            facts = _train(run, data, trainer, options, threads, report, began)
        return _finish(run, data, trainer, facts) if ranks.leads else {}


def _as_begun(run: Path, options: DistillOptions) -> DistillOptions:
    """The options, with what the run chose when it began; OptionError when they are not those of the run."""
    path = run / BEGUN
    if not path.exists():
        return options
    old = read_begun(run)
    balance = str(old.get("options", {}).get("balance", DistillOptions.balance))
    stream = sampler.STREAMS.get(balance, sampler.STREAM)
    if old.get("stream") != stream:
        raise OptionError(
            f"--out {run}: begun with the order of views {old.get('stream')}, this version has {stream}; "
            "use another --out"
        )
    for name, value in _GONE.items():
        if old.get("options", {}).get(name) == value:
            raise OptionError(
                f"--out {run}: begun with --{name.replace('_', '-')} {value}, which this version does not have; "
                "use another --out"
            )
    begun = old.get("options", {})
    asked = {name: begun.get(name) for name in _AS_BEGUN if getattr(options, name) is None}
    words = {name: word_of_today(DistillOptions, name, value) for name, value in asked.items()}
    options = dataclasses.replace(options, **words)
    require_same_options(run, options, _FREE - _OF_HELD_OUT if options.early_stop == "held-out" else _FREE)
    return options


def _sample_blocks(run: Path) -> int | None:
    """Blocks that views are held out of: of any number in a run that an earlier version began, so that they stay."""
    path = run / BEGUN
    return None if path.exists() and read_begun(run).get("sample") != SAMPLE else SAMPLE_BLOCKS


def _with_window(options: DistillOptions, data: Data, ranks: Ranks, report: Reporter) -> DistillOptions:
    """The options with a window: that of the user or of the run that continues, or one that fits into the memory."""
    if options.window is not None:
        return options
    views = _planned_steps(options, data, ranks) * options.batch_size * ranks.world
    sizes = windows.choices(options.batch_size, ranks.world, views)
    about = data.train.n_views, data.view_bytes
    # of all machines, if they are like this one
    free = devices.free_memory() * ranks.world / ranks.local_world
    lacking = ranks.sum(*(not fits for fits in windows.fitting(sizes, *about, free)))
    chosen = next((size for size, n in zip(sizes, lacking, strict=True) if not n), sizes[-1])
    report.note(windows.said(chosen, sizes[0], *about, free))
    return dataclasses.replace(options, window=chosen)


def _planned_steps(options: DistillOptions, data: Data, ranks: Ranks) -> int:
    views_per_step = options.batch_size * ranks.world
    return options.steps or max(1, math.ceil(options.epochs * data.train.n_views / views_per_step))


def _require_validations(options: DistillOptions, data: Data, steps: int) -> None:
    """Raise OptionError when ``--early-stop held-out`` could never stop this run."""
    if options.early_stop != "held-out":
        return
    if data.held_out is None:
        raise OptionError(
            "--early-stop held-out: the split val has fewer than two views, so there is nothing to judge by; use "
            f"--early-stop off, or {REMEDY}"
        )
    needed, found = 2 * options.patience, steps // options.val_every
    if found < needed:
        raise OptionError(
            f"--early-stop held-out: needs {needed} validations (twice --patience {options.patience}), and "
            f"{steps} steps have {found}; use --val-every {max(1, steps // (2 * needed))}, a smaller --patience, or "
            "--early-stop off"
        )


def _require_same_store(run: Path, data: Data) -> None:
    """Raise OptionError when the run was begun on a store with another recipe, or on other views of several."""
    if not (run / BEGUN).exists():
        return
    begun = read_begun(run)
    old, digest = str(begun.get("store_recipe")), data.train.recipe.digest()
    if old != digest:
        raise OptionError(
            f"--out {run}: trained on a store with recipe {old[:12]}, this one has {digest[:12]}"
        )
    now = _of_stores(data)
    if begun.get("stores", []) != now.get("stores", []):
        raise OptionError(
            f"--out {run}: begun with {_said(begun.get('stores'))}, this is {_said(now.get('stores'))}; give the same "
            "stores with the same weights in the same order, or another --out"
        )
    if begun.get("views") != now.get("views"):
        raise OptionError(
            f"--out {run}: begun on other views: a store has more or fewer of them now; use another --out"
        )


def _of_stores(data: Data) -> dict[str, Any]:
    """What ``options.json`` keeps of several stores, and of the views that they have; nothing of one."""
    return {"stores": data.stores, "views": data.train.digest} if isinstance(data.train, JoinedSplit) else {}


def _said(listed: Any) -> str:
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed) or not listed:
        return "one store"
    parts = (
        f"{one.get('name')} (recipe {str(one.get('recipe'))[:12]}, weight {one.get('weight')})"
        for one in listed
    )
    return one_line(", ".join(parts), 1000)


def _require_view_size(options: DistillOptions, data: Data) -> None:
    """Raise OptionError when a preset takes views of another size; other students are asked once they are built."""
    student = options.student
    seen_px(options, data.crop_px)
    if student in PRESETS and not PRESETS[student].kwargs.get("dynamic_img_size"):
        require_view_size(options, PRESETS[student].image_px, data)


def _begin_run(run: Path, options: DistillOptions, data: Data) -> None:
    path = run / BEGUN
    if path.exists():
        return
    if not files.is_unused(run):
        raise OptionError(f"--out {run}: the folder is not empty and not a run; choose another")
    digest = data.train.recipe.digest()
    said = {name: value for name, value in to_json(options).items() if value or name not in _NOT_SAID}
    begun = {"options": said, "store_recipe": digest, "stream": sampler.STREAMS[options.balance]}
    files.write_json(path, begun | {"sample": SAMPLE} | _of_stores(data))


def _require_room(run: Path, trainer: Trainer, keeps_best: bool) -> None:
    """Raise DiskFull unless there is space for the kept checkpoints, one more, and the student."""
    size = checkpoint.size(trainer, keeps_best)
    kept = sum(path.stat().st_size for path in checkpoint.saved(run))
    require_free(
        run, (checkpoint.KEPT + 1) * size + size // 3 - kept, f"--out {run}: checkpoints and student"
    )


def load_student(options: DistillOptions) -> Encoder:
    """The encoder that ``--student`` names. Stage two never loads a teacher."""
    return load_encoder(
        options.student,
        weights=options.weights,
        random_weights=options.random_weights,
        pooling=options.pooling,
    )


@dataclass(slots=True)
class Course:
    """A running training; `facts` are the figures that checkpoints keep."""

    run: Path
    data: Data
    trainer: Trainer
    options: DistillOptions
    stop_early: EarlyStop
    facts: dict[str, Any]
    log: MetricsLog | None
    begun: float | None = None
    """When this process began, until its first step is over; on the clock of `time.monotonic`."""
    best: dict[str, Any] = field(default_factory=dict)
    """With ``--early-stop held-out``: weights at the validation with the highest CKA so far."""
    n_slides: int = 0
    """Slides of the training split, where several processes count those of a step."""

    @property
    def over(self) -> bool:
        planned = self.facts["steps_planned"] * self.facts["views_per_step"]
        return bool(self.facts["stopped_early"] or self.facts["views_seen"] >= planned)

    @property
    def loss_views(self) -> int:
        """Views over which the loss of a step is normalised and computed."""
        shared = self.options.batch_stats == "sync"
        return self.options.batch_size * (self.trainer.ranks.world if shared else 1)

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(kind, step, figures)

    def validate(self, step: int) -> None:
        """Compare with the teacher on held-out views, if there are any, in the first process."""
        t, data = self.trainer, self.data
        if data.held_out is None or not t.ranks.leads:
            return
        began = time.monotonic()
        at_once = self.options.micro_batch or self.options.batch_size
        found = validate(t.model, data.held_out, self.loss_views, t.device, t.averaged, data.fit, at_once)
        result = found.figures()
        self.facts["val_seconds"] = self.facts.get("val_seconds", 0.0) + time.monotonic() - began
        self.facts.setdefault("before", result)
        self.facts["after"] = result
        self.write("val", step, result)
        if step and self.stop_early.judges_validations:
            self._judge(step, result)

    def _judge(self, step: int, result: dict[str, Any]) -> None:
        """Keep the weights if they are the best so far, and decide whether to stop."""
        t = self.trainer
        if "best" not in self.facts or result["cka"] > self.facts["best"]["cka"]:
            self.facts |= {"best": result, "best_step": step}
            modules = {"model": t.model} | ({} if t.ema is None else {"ema": t.ema})
            self.best = {
                name: {
                    key: tensor.detach().to("cpu", copy=True) for key, tensor in module.state_dict().items()
                }
                for name, module in modules.items()
            }
        stop = self.stop_early.after_validation(result["cka"])
        self.facts["stopped_early"] = stop and not self.over

    def agree_to_stop(self) -> None:
        """After a validation, which only the first process makes: all processes stop, or none."""
        if self.stop_early.judges_validations:
            stopped = self.trainer.ranks.from_leader(self.facts["stopped_early"])
            self.facts["stopped_early"] = bool(stopped)

    def take_best(self) -> None:
        """Return to the weights that were best on held-out views, where the rule of stopping keeps them."""
        if self.best:
            self.trainer.model.load_state_dict(self.best["model"])
            if self.trainer.ema is not None:
                self.trainer.ema.load_state_dict(self.best["ema"])
            self.facts["after"] = self.facts["best"]

    def step(self, step: int, batch: Batch, waited: float, began: float) -> str:
        """Train on a batch and record its figures; returns a few words for the progress bar."""
        position = self.facts["views_seen"]
        at, steps = position / self.facts["views_per_step"], self.facts["steps_planned"]
        assert self.options.lr is not None  # see `pipeline.distill.start.with_defaults`
        lr = cosine_annealing(self.options.lr, at, steps, self.options.warmup_steps or 0)
        weight_decay = cosine_annealing(self.options.weight_decay, at, steps)
        views, targets = torch.from_numpy(batch.views), Targets.stored(batch)
        only_heads = at < self.options.freeze_steps
        scale = self.trainer.loss_scale
        terms = self.trainer.step(views, targets, lr, weight_decay, position, only_heads)
        loss = terms.pop("loss")
        seconds = time.monotonic() - began
        n_views = self.options.batch_size * self.trainer.ranks.world
        self.facts |= {
            "steps": step,
            "views_seen": position + n_views,
            "loss_first": self.facts.get("loss_first", loss),
            "loss_last": loss,
            "seconds": self.facts["seconds"] + seconds,
            "wait_seconds": self.facts["wait_seconds"] + waited,
            "stopped_early": self.stop_early.after_step(loss),
        }
        slides = self._slides(batch)
        self.facts["slides"] = self.facts.get("slides", 0) + slides
        self.facts["slides_steps"] = self.facts.get("slides_steps", 0) + 1
        figures = {
            "loss": loss,
            "lr": lr,
            "weight_decay": weight_decay,
            "epoch": batch.epoch,
            "slides": slides,
        }
        if scale is not None:
            skipped = (self.trainer.loss_scale or 0.0) < scale
            self.facts["skipped_steps"] = self.facts.get("skipped_steps", 0) + skipped
            figures |= {"loss_scale": scale, "skipped_steps": self.facts["skipped_steps"]}
        if len(terms) > 1:
            figures |= {f"loss_{name}": value for name, value in terms.items()}
        memory = devices.peak_memory(self.trainer.device)
        speed = {"views_per_s": n_views / seconds, "data_wait": waited / seconds, **memory}
        speed["processes"] = self.trainer.ranks.world
        if self.begun is not None:
            speed["first_step_seconds"], self.begun = time.monotonic() - self.begun, None
        self.write("train", step, figures | speed)
        words = f"loss {loss:.3f}, {n_views / seconds:.0f} views/s, data wait {waited / seconds:.0%}"
        if self.facts.get("skipped_steps"):
            words += f", {counted(self.facts['skipped_steps'], 'step')} skipped (float16 overflow)"
        held_out = self.facts.get("after", {})
        if "explained" in held_out:
            words += f", held out {held_out['explained']:.1%} explained, CKA {held_out['cka']:.3f}"
        device = memory.get("peak_device_bytes")
        return words if device is None else f"{words}, {device / 1e9:.1f} GB on the GPU"

    def _slides(self, batch: Batch) -> int:
        """Slides in the batch of all processes."""
        ranks = self.trainer.ranks
        if ranks.world == 1:
            return len(np.unique(batch.slide))
        there = np.bincount(batch.slide, minlength=self.n_slides) > 0
        return sum(n > 0 for n in ranks.sum(*there.tolist()))

    def run_on(self, stream: Iterator[Batch], stop: Stop, report: Reporter) -> None:
        """Train to the last step, or to where a rule or a signal ends it."""
        options = self.options
        while not self.over:
            step = self.facts["steps"] + 1
            began = time.monotonic()
            batch, waited, stopping = _next_batch(stream, self.trainer.ranks, stop)
            report.advance(detail=self.step(step, batch, waited, began))
            if self.over or step % options.val_every == 0:
                self.validate(step)
                self.agree_to_stop()
            if self.over or stopping or step % options.checkpoint_every == 0:
                self.save(step)
            if stopping and not self.over:
                planned = self.facts["steps_planned"]
                raise Interrupted(f"stopped after step {step} of {planned}, checkpoint written")

    def save(self, step: int) -> None:
        """Write a checkpoint, in the first process."""
        t = self.trainer
        if t.ranks.leads:
            if self.log is not None:
                self.log.flush()
            checkpoint.save(self.run, step, t, self.stop_early, self.facts, self.best)


def _train(
    run: Path,
    data: Data,
    trainer: Trainer,
    options: DistillOptions,
    threads: int,
    report: Reporter,
    began: float,
) -> dict[str, Any]:
    """Train from the newest checkpoint, or from the start, to the last step; returns the figures."""
    ranks = trainer.ranks
    epoch_views = data.train.n_views
    views_per_step = options.batch_size * ranks.world
    planned = _planned_steps(options, data, ranks)
    facts: dict[str, Any] = {"steps_planned": planned, "views_per_step": views_per_step}
    facts |= {"epoch_views": epoch_views, "steps": 0, "views_seen": 0, "stopped_early": False}
    facts |= {"seconds": 0.0, "wait_seconds": 0.0}
    stop_early = make_early_stop(options.early_stop or "off", options.patience, options.min_gain)
    best: dict[str, Any] = {}
    saved = checkpoint.saved(run)
    if ranks.from_leader(bool(saved)):
        facts, best = checkpoint.restore(saved[-1], trainer, stop_early)
        if ranks.leads:
            checkpoint.prune(run)
        report.note(f"continues after step {facts['steps']} of {facts['steps_planned']}")
    log = MetricsLog(run, facts["steps"], options.tensorboard) if ranks.leads else None
    course = Course(run, data, trainer, options, stop_early, facts, log, began, best, data.train.n_slides)
    if data.held_out is not None:
        dims = trainer.model.student.dim, *(teaching.dim for teaching in data.teachings)
        for line in limits(len(data.held_out.views), course.loss_views, *dims):
            report.note(line)
    if facts["steps"] == 0:
        course.validate(0)
    assert options.window is not None  # see `_with_window`
    loader_options = LoaderOptions(
        options.batch_size,
        options.window,
        options.views_per_read,
        options.seed,
        options.check_views,
        threads,
        ranks.rank,
        ranks.world,
        data.train.readers_are_processes(options.readers, ranks.device.type != "cpu"),
        balance=options.balance,
    )
    loader = data.train.loader(
        loader_options, facts["views_seen"], data.teaching.tokens, data.teaching.attention
    )
    report.start("distill", facts["steps_planned"], facts["steps"])
    with contextlib.ExitStack() as stack:
        if log is not None:
            stack.enter_context(contextlib.closing(log))
        stream = iter(stack.enter_context(loader))
        stop = stack.enter_context(stop_on_signal(ranks.world > 1))
        course.run_on(stream, stop, report)
    course.take_best()
    return course.facts


def _next_batch(stream: Iterator[Batch], ranks: Ranks, stop: Stop) -> tuple[Batch, float, bool]:
    """The next batch, the seconds waited for it, and whether any process was asked to stop.

    When one process fails, all end, since the others would wait for it forever.
    """
    began = time.monotonic()
    batch, error = None, None
    try:
        batch = next(stream)
    except Exception as caught:
        error = caught
    waited = time.monotonic() - began
    failed, stopping, waits = ranks.sum(error is not None, stop.requested, waited)
    if error is not None:
        raise error
    if failed or batch is None:
        raise Interrupted("another process of this training failed; its message says why")
    return batch, waits / ranks.world, bool(stopping)


def _of_prefixes(model: Distiller, after: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The last held-out figures of each prefix that was trained, and of the whole embedding, by length."""
    names = ("explained", "cka", "cka_unbiased", "cosine")
    found = {
        length: {name: after[f"{name}_{length}"] for name in names if f"{name}_{length}" in after}
        for length in model.nested
    }
    return found | {str(model.student.dim): {name: after[name] for name in names if name in after}}


def _finish(run: Path, data: Data, trainer: Trainer, facts: dict[str, Any]) -> dict[str, Any]:
    """Export the student, then write the summary: its presence means that the run is complete."""
    before, after = facts.get("before", {}), facts.get("after", {})
    summary = {
        "g2l_version": g2l_version(),
        "steps": facts["steps"],
        "steps_planned": facts["steps_planned"],
        "stopped_early": facts["stopped_early"],
        **({"best_step": facts["best_step"]} if "best_step" in facts else {}),
        **({"skipped_steps": facts["skipped_steps"]} if "skipped_steps" in facts else {}),
        "views": facts["epoch_views"],
        "views_seen": facts["views_seen"],
        "loss_first": facts["loss_first"],
        "loss_last": facts["loss_last"],
        **{f"{name}_before": before.get(name) for name in ("explained", "cka", "cka_unbiased", "cosine")},
        **{f"{name}_after": after.get(name) for name in ("explained", "cka", "cka_unbiased", "cosine")},
        **({"cka_ema_after": after["cka_ema"]} if "cka_ema" in after else {}),
        "val_loss_before": before.get("loss"),
        "val_loss_after": after.get("loss"),
        "val_loss_constant": after.get("loss_constant"),
        **({"slides_per_step": facts["slides"] / facts["slides_steps"]} if "slides" in facts else {}),
        "views_per_s": facts["views_seen"] / facts["seconds"],
        "data_wait": facts["wait_seconds"] / facts["seconds"],
        "validation_share": facts.get("val_seconds", 0.0)
        / (facts["seconds"] + facts.get("val_seconds", 0.0)),
        "seconds": facts["seconds"],
        **devices.peak_memory(trainer.device),
        **_of_teachers(data, before, after),
    }
    model, recipe = trainer.model, data.train.recipe
    if model.nested:
        summary["nested"] = _of_prefixes(model, after)
    if model.per_teacher:
        summary["class_tokens"] = model.names
    extra = {
        "distilled_from": " + ".join(recipe.teacher.name for recipe in data.recipes),
        "teacher_weights_sha256": recipe.teacher.weights_sha256,
        "store_recipe": recipe.digest(),
        "patch_mpp": recipe.patch.mpp,
        **({"nested": summary["nested"]} if model.nested else {}),
    }
    if "teachers" in summary:
        extra["teachers"] = [
            {key: about[key] for key in ("teacher", "teacher_weights_sha256", "store_recipe", "weight")}
            | ({"class_token": number} if model.per_teacher else {})
            for number, about in enumerate(summary["teachers"].values())
        ]
    for folder, student in (("student", model.student), ("student-ema", trainer.averaged)):
        if student is None:
            continue
        export_encoder(student.cpu(), run / folder, extra, data.teacher_terms)
        text = model_card(student, data.recipes, data.teacher_terms, summary, folder != "student")
        files.write_text(run / folder / "README.md", text)
    for name in ("projector", "heads", "nested"):
        tensors: dict[str, torch.Tensor] = {}
        for store, lesson in zip(model.names, model.lessons, strict=True):
            module = getattr(lesson, name)
            prefix = f"{store}." if len(model.lessons) > 1 else ""
            tensors |= {} if module is None else module.state_dict(prefix=prefix)
        if tensors:
            with files.replacing(run / f"{name}.safetensors") as partial:
                save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, partial)
    records = read_metrics(run / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "train"]
    draw_curves(run / "curves.png", steps, [record for record in records if record["kind"] == "val"])
    files.write_json(run / "summary.json", summary)
    return summary


def _of_teachers(data: Data, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Which views were held out; of several teachers, this and the figures of each, by the name of its store."""
    held_out: list[dict[str, Any]] = [{} for _ in data.teachings]
    if data.held_out is not None:
        held_out = [{"held_out": views} for views in identities(data.held_out)]
    if not isinstance(data.train, JoinedSplit):
        return held_out[0]
    found = {}
    for number, (teaching, recipe) in enumerate(zip(data.teachings, data.recipes, strict=True)):
        figures: dict[str, Any] = {}
        for when, of in (("before", before), ("after", after)):
            of_it = of.get("teachers", {}).get(teaching.name, {})
            figures |= {f"{name}_{when}": value for name, value in of_it.items()}
        found[teaching.name] = {
            "teacher": recipe.teacher.name,
            "teacher_weights_sha256": recipe.teacher.weights_sha256,
            "store_recipe": recipe.digest(),
            "weight": teaching.weight,
            "views": data.train.views_of(number),
            **held_out[number],
            **figures,
        }
    return {"teachers": found}
