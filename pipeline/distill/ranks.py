"""The processes of one training, as ``torchrun`` starts them; a single process is the case of world 1.

DistributedDataParallel averages gradients, over nccl on GPUs and gloo on CPUs. At each step the processes also agree
whether one must stop or has failed. This goes over gloo, which does not wait for the GPU.
"""

import contextlib
import datetime
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.runtime import devices
from pipeline.runtime.interrupt import ending_with_parent
from stores.errors import DistillError, OptionError

# rank 0 validates and exports alone; the others wait this long for it
_PATIENCE = datetime.timedelta(hours=4)
_LOST = re.compile(r"gloo/transport|Connection (closed|reset) by peer")
"""What gloo says, in a plain RuntimeError, when a process at the other end is gone."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the training."""

    rank: int
    world: int
    local_world: int
    """Processes on this machine."""
    device: torch.device
    control: Any = None
    """The gloo group for small messages."""

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes."""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return [float(number) for number in total]

    def from_leader(self, number: int) -> int:
        """A number that rank 0 knows."""
        return int(self.sum(number if self.leads else 0)[0])

    def wrap(self, model: nn.Module, in_parts: bool = False) -> nn.Module:
        """`model` with gradients averaged over processes; all start from the weights of rank 0.

        Parameters
        ----------
        in_parts : bool
            A step is divided, and `average` does it.
        """
        if self.world == 1:
            return model
        if in_parts:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.detach(), 0)
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        # a static graph lets a student have parameters that its features do not depend on
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, static_graph=True)

    def average(self, model: nn.Module) -> None:
        """Average the gradients over processes, as `DistributedDataParallel` does for a step of one backward pass."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for gradient in gradients:
            gradient.div_(self.world)
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()


@contextlib.contextmanager
def join(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, if it did. They stop when it is gone.

    Parameters
    ----------
    device : str
        ``--device``. With several processes, ``auto`` and ``cuda`` are the GPU with the local rank of this process.

    Raises
    ------
    OptionError
        When a device is named that several processes cannot share.
    DistillError
        When another process of the training ends before this one.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(0, 1, 1, devices.choose_device(device))
        return
    local = int(environment.get("LOCAL_RANK", "0"))
    local_world = int(environment.get("LOCAL_WORLD_SIZE", str(world)))
    chosen = devices.choose_device(device)
    if chosen.type == "mps":
        chosen = torch.device("cpu")
    if chosen.type == "cuda":
        if chosen.index is not None:
            raise OptionError(
                f"--device {device}: each of {world} processes needs its own GPU; use --device cuda"
            )
        if local_world > torch.cuda.device_count():
            raise OptionError(
                f"{local_world} processes on this machine, {torch.cuda.device_count()} GPUs: start one process per GPU"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE, device_id=chosen if backend == "nccl" else None)
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        with ending_with_parent():
            yield Ranks(dist.get_rank(), world, local_world, chosen, control)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        raise DistillError(
            f"process {dist.get_rank() + 1} of {world}: another process of this training has ended, and its message "
            "says why; give the same command again"
        ) from None
    finally:
        dist.destroy_process_group()


class Gather(torch.autograd.Function):
    """The rows of all processes, in the order of the stream: (B, d) to (world * B, d).

    Every process computes the same loss from them, so the gradient of a row is `world` times the gradient in this
    process. `DistributedDataParallel` divides by `world` when it averages.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        world = dist.get_world_size()
        parts = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(parts, rows.contiguous())
        # consecutive views of the stream belong to consecutive ranks
        return torch.stack(parts, dim=1).reshape(world * len(rows), *rows.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        world, rank = dist.get_world_size(), dist.get_rank()
        return gradient[rank::world] * world
