"""``plan --student``: the memory of a training step, before one runs.

The step itself is computed, with the very code of `pipeline.distill.trainer`, on tensors that have a shape and no
memory (PyTorch's fake tensors). What would be allocated is counted while it lives, and the largest sum is the plan. Not
counted is what libraries take for themselves: scratch of kernels, CUDA's context, gaps between blocks.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline.distill import micro
from pipeline.distill.model import Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Ranks
from pipeline.distill.recompute import use_checkpointing
from pipeline.distill.several import build
from pipeline.distill.trainer import Trainer
from pipeline.distill.validate import VIEWS_AT_ONCE
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.hub import brief
from pipeline.encoders.load import without_memory
from pipeline.runtime import devices
from stores.errors import EncoderError, OptionError
from stores.io.text import human_bytes

DEVICES_GB = (8, 12, 16, 24)
_USABLE = 0.9
"""Of the memory of a device; the rest is for CUDA and for gaps. An assumption, not a measurement."""
_CPU = Ranks(0, 1, 1, torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a training step of a student needs."""

    student: str
    parameters: int
    """How many the student has."""
    batch_size: int
    dim: int
    """Numbers in a feature of the teacher."""
    dtype: str
    kept_bytes: Mapping[str, int]
    """Of ``weights``, ``gradients`` and ``optimiser``, projector included."""
    peaks: Mapping[str, int]
    """The largest sum of bytes during a step and a validation, by the options; empty text for none."""

    def fitting(self, device_gb: float) -> str | None:
        """The options with which it fits into a device, the cheapest first; None when it does not."""
        room = device_gb * 1e9 * _USABLE
        return next((options for options, peak in self.peaks.items() if peak <= room), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "student": self.student,
            "parameters": self.parameters,
            "batch_size": self.batch_size,
            "dim": self.dim,
            "dtype": self.dtype,
            **{f"{name}_bytes": value for name, value in self.kept_bytes.items()},
            "peak_bytes": dict(self.peaks),
            "fits": {f"{size} GB": self.fitting(size) for size in DEVICES_GB},
        }

    def lines(self) -> list[str]:
        """The same as text."""
        kept = ", ".join(f"{name} {human_bytes(value)}" for name, value in self.kept_bytes.items())
        fixed = self.kept_bytes["weights"] + self.kept_bytes["optimiser"]
        width = max(map(len, self.peaks)) + 2
        said = [
            f"student   {self.student}: {self.parameters / 1e6:.1f} million parameters, {self.dtype}",
            f"step      {self.batch_size} views, {self.dim} numbers of the teacher",
            f"kept      {kept}",
        ]
        for options, peak in self.peaks.items():
            said.append(
                f"memory    {options or 'as it is':<{width}}{human_bytes(peak):>9}, of which activations and gradients "
                f"{human_bytes(peak - fixed)}"
            )
        for size in DEVICES_GB:
            found = self.fitting(size)
            words = (found or "as it is") if found is not None else "no: a smaller --batch-size or student"
            said.append(f"{f'{size} GB':<10}{words}")
        return [*said, "          (a tenth of each device is left to CUDA and to gaps)"]


def plan_memory(student: str, batch_size: int, dim: int, dtype: str) -> MemoryPlan:
    """Reckon the memory of a step with one teacher, the loss log-sum and AdamW, for each combination of options.

    Parameters
    ----------
    dim : int
        Numbers in a feature of the teacher.
    dtype : str
        ``float32``, ``bfloat16`` or ``float16``.

    Raises
    ------
    OptionError
        When the student cannot be built without its weights, or a batch is too small.
    """
    options = DistillOptions(student=student, batch_size=batch_size, dtype=dtype)
    options.validate()
    peaks: dict[str, int] = {}
    found: dict[str, int] = {}
    for checkpointing, part in _combinations(batch_size):
        chosen = replace(options, checkpointing=checkpointing, micro_batch=part)
        try:
            found = of_step(chosen, dim)
        except OptionError:
            if not (checkpointing or part):
                raise
            continue  # this student cannot do that
        words = ["--checkpointing"] * checkpointing + [f"--micro-batch {part}"] * (part is not None)
        peaks[" ".join(words)] = found.pop("peak")
    parameters = found.pop("parameters")
    return MemoryPlan(student, parameters, batch_size, dim, dtype, found, peaks)


def _combinations(batch_size: int) -> list[tuple[bool, int | None]]:
    parts = [batch_size // by for by in (2, 4, 8) if batch_size // by >= 1]
    return [(False, None), (True, None), *((again, part) for again in (False, True) for part in parts)]


def of_step(options: DistillOptions, dim: int) -> dict[str, int]:
    """``peak``, ``weights``, ``gradients`` and ``optimiser`` in bytes, and the number of ``parameters``.

    Raises
    ------
    OptionError
        As `plan_memory`; also when the student cannot do what the options ask.
    """
    student = _built(options.student)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _counted(student, options, dim)
    except (RuntimeError, NotImplementedError) as error:
        raise OptionError(
            f"--student {options.student}: its step cannot be computed without memory ({brief(error)}); run distill "
            "with --steps 2 and look at peak_device_bytes in metrics.jsonl"
        ) from error


def _built(name: str) -> Encoder:
    try:
        student = without_memory(name)
    except EncoderError as error:
        raise OptionError(f"--student {name}: {error}") from None
    if student is None:
        raise OptionError(
            f"--student {name}: its layers are not known without loading it; give a name of `g2l models` or of timm"
        )
    return student


def _counted(student: Encoder, options: DistillOptions, dim: int) -> dict[str, int]:
    student.to_empty(device="cpu")
    dtype, _ = devices.choose_dtype(options.dtype, _CPU.device)
    model = build(student, [Teaching(dim, np.zeros(dim), np.ones(dim))], options, dtype).train()
    if options.checkpointing:
        use_checkpointing(student)
    if options.micro_batch is not None:
        micro.make_divisible(student, f"--micro-batch {options.micro_batch}")
    trainer = Trainer(model, model, None, _CPU, dtype, 0, micro_batch=options.micro_batch)  # type: ignore[arg-type]
    weights = list(model.parameters())
    moments = [torch.empty_like(weight) for weight in weights for _ in range(2)]
    # all parts are like the first two
    count = min(options.batch_size, 2 * (options.micro_batch or options.batch_size))
    views, targets = _a_batch(student, count, dim)
    with Live() as live:
        live.now = (options.batch_size - count) * (views[0].nbytes + 4 * dim)
        live.add([*weights, *model.buffers(), *moments, views, targets.features])
        trainer.backward(views, targets, 0)
        shown, at = _a_batch(student, VIEWS_AT_ONCE, dim)
        with torch.no_grad():
            model.eval().embed_for(shown, [at.positions])
    size = sum(weight.nbytes for weight in weights)
    return {
        "peak": live.peak,
        "weights": size,
        "gradients": sum(weight.nbytes for weight in weights if weight.requires_grad),
        "optimiser": sum(moment.nbytes for moment in moments),
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }


def _a_batch(student: Encoder, count: int, dim: int) -> tuple[Tensor, Targets]:
    side = student.image_px
    views = torch.empty(count, side, side, 3, dtype=torch.uint8)
    return views, Targets(torch.empty(count, dim), torch.empty(count, 0, 0), torch.empty(count, 0).long())


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, as long as something holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count the memory of tensors, each only once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.add(found for found in tree_iter(out) if isinstance(found, Tensor))
        return out
