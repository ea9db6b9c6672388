"""One optimiser step: forward, loss, backward, update, in one process or in step with others."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline import devices
from pipeline.distill.data import Data
from pipeline.distill.losses import make_loss
from pipeline.distill.model import Distiller, TargetNorm, build
from pipeline.distill.ranks import Gather, Ranks
from pipeline.encoders import Encoder
from pipeline.options import DistillOptions
from pipeline.torchvision_cpu import make_importable
from stores.errors import DistillError, OptionError


@dataclass(frozen=True, slots=True)
class Trainer:
    """The parts of a running training."""

    model: Distiller
    parallel: nn.Module
    """`model`, its gradients averaged over processes."""
    targets: TargetNorm
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    dtype: torch.dtype
    sync: bool
    """Whether loss and batch normalisation see the batches of all processes as one."""
    seed: int

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    def step(
        self, views: Tensor, targets: Tensor, lr: float, weight_decay: float, position: int = 0
    ) -> float:
        """One optimiser step on this process's batch; returns the loss, over all processes.

        Parameters
        ----------
        views : uint8 (B, H, W, 3)
        targets : float32 (B, d_t), raw
        position : int
            Views that the training has consumed before; random layers (dropout) are seeded by it.

        Raises
        ------
        DistillError
            When the loss is not finite; nothing is updated then.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        torch.manual_seed(_step_seed(self.seed, position, self.ranks.rank))
        projected = self.parallel(self._sent(views))
        targets = self._sent(targets)
        if self.sync:
            with torch.no_grad():
                targets = Gather.apply(targets)
        loss = self.loss(projected, self.targets(targets))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        value = self.ranks.sum(float(loss.detach()))[0] / self.ranks.world
        if not math.isfinite(value):
            raise DistillError(
                f"the loss is {value}: lower --lr, or try --dtype float32; checkpoints are kept"
            )
        self.optimizer.step()
        return value

    def _sent(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _step_seed(seed: int, position: int, rank: int) -> int:
    text = f"{seed} {position} {rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"g2l-step").digest(), "big") >> 1


def make_trainer(student: Encoder, data: Data, options: DistillOptions, ranks: Ranks) -> Trainer:
    """The student on its device with a projector and an optimiser."""
    dtype, _ = devices.choose_dtype(options.dtype, ranks.device)
    if student.image_px != data.policy.crop_px:
        raise OptionError(
            f"--student {options.student}: takes {student.image_px} px, the store has {data.policy.crop_px} px"
        )
    sync = options.batch_stats == "sync" and ranks.world > 1
    model = build(student, data.teacher.dim, options.seed, dtype, Gather.apply if sync else None)
    model = model.to(ranks.device).train()
    make_importable()
    from timm.optim import param_groups_weight_decay

    groups = param_groups_weight_decay(model, options.weight_decay)
    for group in groups:
        group["decays"] = group["weight_decay"] > 0
    # on a GPU one kernel updates all parameters; on a CPU the plain loop, whose bytes runs are held against
    optimizer = torch.optim.AdamW(groups, lr=options.lr, fused=ranks.device.type == "cuda")
    targets = TargetNorm(options.teacher_norm, data.mean, data.variance).to(ranks.device)
    loss = make_loss(options.loss, options.alpha)
    return Trainer(model, ranks.wrap(model), targets, loss, optimizer, ranks, dtype, sync, options.seed)
