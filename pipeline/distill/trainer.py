"""One optimiser step: forward, loss, backward, update, in one process or in step with others."""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.distill import micro
from pipeline.distill.compiled import use_compile
from pipeline.distill.inputs import Taught
from pipeline.distill.layers import freeze, parameter_groups, set_drop_path
from pipeline.distill.model import Distiller, Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Gather, Ranks
from pipeline.distill.recompute import statistics_kept, use_checkpointing
from pipeline.distill.several import build, drawn
from pipeline.encoders.class_tokens import with_class_tokens
from pipeline.encoders.encoder import Encoder, other_size
from pipeline.runtime import devices
from stores.errors import DistillError, EncoderError, OptionError

_LEAST_SCALE = 2.0**-16
"""Of the loss in float16: it begins with 2^16, and each overflow halves it."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """The parts of a running training."""

    model: Distiller
    parallel: nn.Module
    """`model`, its gradients averaged over processes."""
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    dtype: torch.dtype
    seed: int
    ema: AveragedModel | None = None
    """The moving average of the student."""
    clip_grad: float | None = None
    teacher_drop: float = 0.0
    micro_batch: int | None = None
    """Views of a part of a step; None where it is not divided."""
    scaler: torch.amp.GradScaler | None = None
    """Scales the loss where the student computes in float16."""

    @property
    def averaged(self) -> Encoder | None:
        """The moving average as an encoder, where there is one."""
        return None if self.ema is None else cast(Encoder, self.ema.module)

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    def step(
        self,
        views: Tensor,
        targets: Targets,
        lr: float,
        weight_decay: float,
        position: int = 0,
        only_heads: bool = False,
    ) -> dict[str, float]:
        """One optimiser step on the batch of this process; returns the mean ``loss`` and terms over all processes.

        Parameters
        ----------
        views : uint8 (B, H, W, 3)
        position : int
            Views that the training has consumed before; it seeds random layers (dropout).
        only_heads : bool
            Leave the student's weights as they are, see ``--freeze-steps``.

        Raises
        ------
        DistillError
            When the loss is not finite. The weights stay as they were.
        """
        for group in self.optimizer.param_groups:
            rests = only_heads and group.get("of_student", False)  # groups of older checkpoints say less
            group["lr"] = 0.0 if rests else lr * group.get("lr_scale", 1.0)
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        if self.teacher_drop and targets.present is not None:
            targets = replace(targets, let_go=self._let_go(position, *targets.present.shape))
        # first: gradients and activations are not in memory together
        self.optimizer.zero_grad(set_to_none=True)
        seed = _step_seed(self.seed, position, self.ranks.rank)
        loss, found = self.backward(self._sent(views), targets.map(self._sent).widened(), seed)
        figures = (float(value) for value in (loss, *found.values()))
        means = [value / self.ranks.world for value in self.ranks.sum(*figures)]
        if not math.isfinite(means[0]):
            other = "" if self.dtype == torch.float32 else ", or try --dtype float32"
            raise DistillError(f"the loss is {means[0]}: lower --lr{other}; checkpoints are kept")
        if self._update() and self.ema is not None:
            self.ema.update_parameters(self.model.student)
        return dict(zip(("loss", *found), means, strict=True))

    def backward(self, views: Tensor, targets: Targets, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the gradients of a step; returns the loss and each of its terms, detached."""
        scaled = self._scaled
        if self.micro_batch is not None and self.micro_batch < len(views):
            found = micro.add_gradients(self.model, views, targets, self.micro_batch, seed, scaled)
        else:
            torch.manual_seed(seed)
            loss, terms = self.parallel(views, targets)
            with statistics_kept(self.model.student):
                scaled(loss).backward()
            found = loss.detach(), terms
        if self.micro_batch is not None:
            self.ranks.average(self.model)
        return found

    def _update(self) -> bool:
        """Move the weights along the gradients; whether they moved: a step whose gradients overflow is left out."""
        scaler, before = self.scaler, self.loss_scale
        if self.clip_grad is not None:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        if scaler is None or before is None:
            self.optimizer.step()
            return True
        scaler.step(self.optimizer)
        scaler.update()
        moved = scaler.get_scale() >= before
        if not moved and scaler.get_scale() < _LEAST_SCALE:
            raise DistillError(
                "the gradients overflow float16 however the loss is scaled: try --dtype float32, or lower --lr; "
                "checkpoints are kept"
            )
        return moved

    @property
    def loss_scale(self) -> float | None:
        """What the loss is multiplied by before its gradient is taken, where the student computes in float16."""
        return None if self.scaler is None else float(self.scaler.get_scale())

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _let_go(self, position: int, n_views: int, n_teachers: int) -> Tensor:
        """What ``--teacher-drop`` draws for the views of this process, which has every `world`-th of the stream."""
        world = self.ranks.world
        of_all = drawn(self.seed, position, n_views * world, n_teachers, self.teacher_drop)
        return of_all[self.ranks.rank :: world].contiguous()

    def _sent(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _step_seed(seed: int, position: int, rank: int) -> int:
    text = f"{seed} {position} {rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"g2l-step").digest(), "big") >> 1


def require_view_size(options: DistillOptions, image_px: int, data: Taught, otherwise: str = "") -> None:
    """Raise OptionError unless a student takes what it will see of the views of the store."""
    crop_px = data.crop_px
    side = seen_px(options, crop_px)
    if image_px != side:
        has = f"the store has {crop_px} px" if side == crop_px else f"--student-px is {side}"
        raise OptionError(f"--student {options.student}: takes {image_px} px, {has}{otherwise}")


def seen_px(options: DistillOptions, crop_px: int) -> int:
    """Side of what the student sees of views of `crop_px`; OptionError unless squares of pixels fill the view."""
    side = options.student_px or crop_px
    if crop_px % side:
        smaller = [crop_px // by for by in range(1, 9) if crop_px % by == 0]
        raise OptionError(
            f"--student-px {side}: squares of whole pixels are averaged: allowed are divisors of {crop_px}, the side "
            f"of the views, such as {', '.join(map(str, smaller))}"
        )
    return side


def of_each_teacher(student: Encoder, n_teachers: int, name: str) -> Encoder:
    """A student with a class token for each teacher; OptionError when it cannot have them."""
    try:
        return with_class_tokens(student, n_teachers)
    except EncoderError as error:
        raise OptionError(f"--student-tokens per-teacher: --student {name}: {error}") from error


def make_trainer(student: Encoder, data: Taught, options: DistillOptions, ranks: Ranks) -> Trainer:
    """The student on its device with a projector and an optimiser."""
    dtype, _ = devices.choose_dtype(options.dtype, ranks.device)
    crop_px = data.crop_px
    side = seen_px(options, crop_px)
    if student.shrink == 1 or side == crop_px:
        if student.takes(side):
            student = student.for_views(side)
        require_view_size(options, student.image_px, data, other_size(student.resizable, side))
        student = student.shrinking(crop_px // side)
    elif (student.image_px, student.shrink) != (crop_px, crop_px // side):
        raise OptionError(
            f"--student {options.student}: averages squares of {student.shrink} px of views of {student.image_px} px "
            "already; leave --student-px out"
        )
    if options.student_tokens == "per-teacher":
        student = of_each_teacher(student, len(data.teachings), options.student)
    if options.drop_path:
        set_drop_path(student, options.drop_path)
    if options.freeze_layers:
        freeze(student, options.freeze_layers)
    sync = options.batch_stats == "sync" and ranks.world > 1
    model = build(student, data.teachings, options, dtype, Gather.apply if sync else None)
    if ranks.device.type != "cpu":  # where it was built; tensors without memory cannot be moved at all
        model = model.to(ranks.device)
    model.train()
    if options.channels_last:
        model.student.use_channels_last()
    if options.checkpointing:
        use_checkpointing(model.student)
    if options.micro_batch is not None:
        micro.make_divisible(model.student, f"--micro-batch {options.micro_batch}")
    if options.compile:
        use_compile(model, options.student)
    groups = parameter_groups(model, options.weight_decay, options.layer_decay, options.freeze_steps > 0)
    # a GPU updates all parameters in one kernel; on a CPU the plain loop gives the same bytes as earlier versions
    optimizer = torch.optim.AdamW(groups, fused=ranks.device.type == "cuda")
    ema = None
    if options.ema is not None:
        ema = AveragedModel(model.student, multi_avg_fn=get_ema_multi_avg_fn(options.ema))
    return Trainer(
        model,
        ranks.wrap(model, options.micro_batch is not None),
        optimizer,
        ranks,
        dtype,
        options.seed,
        ema,
        options.clip_grad,
        options.teacher_drop,
        options.micro_batch,
        torch.amp.GradScaler(ranks.device.type) if dtype == torch.float16 else None,
    )
