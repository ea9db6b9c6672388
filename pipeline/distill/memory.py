"""``plan --student``: the memory of a training step, before one runs.

The step itself is computed, with the very code of `pipeline.distill.trainer`, on tensors that have a shape and no
memory (PyTorch's fake tensors). What would be allocated is counted while it lives, and the largest sum is the plan.
Where data decide how much is computed, it is the most: every teacher has a target for every view, and every view has
one of another tile of its place beside it. Not counted is what libraries take for themselves: scratch of kernels,
CUDA's context, gaps between blocks.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline.distill import loss_spec
from pipeline.distill.model import Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Ranks
from pipeline.distill.taught import Lessons
from pipeline.distill.trainer import make_trainer, of_each_teacher
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.hub import brief
from pipeline.encoders.load import without_memory
from pipeline.views.policy import VIEW_PX
from stores.errors import EncoderError, OptionError
from stores.io.progress import SILENT, Reporter
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
    dims: Sequence[int]
    """Numbers in a feature of each teacher."""
    dtype: str
    kept_bytes: Mapping[str, int]
    """Of ``weights``, ``gradients`` and ``optimiser``, heads included, and of a ``moving average``."""
    peaks: Mapping[str, int]
    """The largest sum of bytes during a step and a validation, by the options; empty text for none."""
    about: str = ""
    """The targets of a step, in words."""
    devices_gb: Sequence[float] = DEVICES_GB
    """The devices that are asked about."""

    def fitting(self, device_gb: float) -> str | None:
        """The options with which it fits into a device, the cheapest first; None when it does not."""
        room = device_gb * 1e9 * _USABLE
        return next((options for options, peak in self.peaks.items() if peak <= room), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        several = len(self.dims) > 1
        return {
            "student": self.student,
            "parameters": self.parameters,
            "batch_size": self.batch_size,
            **({"dims": list(self.dims)} if several else {"dim": self.dims[0]}),
            "dtype": self.dtype,
            **{f"{name.replace(' ', '_')}_bytes": value for name, value in self.kept_bytes.items()},
            "peak_bytes": dict(self.peaks),
            "fits": {f"{size:g} GB": self.fitting(size) for size in self.devices_gb},
        }

    def lines(self) -> list[str]:
        """The same as text."""
        kept = ", ".join(f"{name} {human_bytes(value)}" for name, value in self.kept_bytes.items())
        fixed = sum(self.kept_bytes.values()) - self.kept_bytes["gradients"]
        width = max(map(len, self.peaks)) + 2
        said = [
            f"student   {self.student}: {self.parameters / 1e6:.1f} million parameters, {self.dtype}",
            f"step      {self.batch_size} views, {self.about}",
            f"kept      {kept}",
        ]
        for options, peak in self.peaks.items():
            said.append(
                f"memory    {options or 'as it is':<{width}}{human_bytes(peak):>9}, of which activations and gradients "
                f"{human_bytes(peak - fixed)}"
            )
        for size in self.devices_gb:
            found = self.fitting(size)
            words = (found or "as it is") if found is not None else "no: a smaller --batch-size or student"
            said.append(f"{f'{size:g} GB':<10}{words}")
        return [*said, "          (a tenth of each device is left to CUDA and to gaps)"]


def plan_memory(
    options: DistillOptions,
    lessons: Lessons,
    devices_gb: Sequence[float] = DEVICES_GB,
    report: Reporter = SILENT,
) -> MemoryPlan:
    """Reckon the memory of a step with AdamW, for each combination of ``--checkpointing`` and ``--micro-batch``.

    Parameters
    ----------
    options
        Those of `pipeline.distill.options.OF_MEMORY` matter; ``dtype`` is ``float32``, ``bfloat16`` or ``float16``.

    Raises
    ------
    OptionError
        When the student cannot be built without its weights, or a batch is too small.
    """
    options.validate()
    peaks: dict[str, int] = {}
    found: dict[str, int] = {}
    combinations = _combinations(options.batch_size)
    report.start("plan", len(combinations))
    for checkpointing, part in combinations:
        chosen = replace(options, checkpointing=checkpointing, micro_batch=part)
        words = ["--checkpointing"] * checkpointing + [f"--micro-batch {part}"] * (part is not None)
        try:
            found = of_step(chosen, lessons)
            peaks[" ".join(words)] = found.pop("peak")
        except OptionError:
            if not words:
                raise  # else this student cannot do that
        report.advance(detail=" ".join(words))
    parameters = found.pop("parameters")
    dims = [teaching.dim for teaching in lessons.teachings]
    return MemoryPlan(
        options.student,
        parameters,
        options.batch_size,
        dims,
        options.dtype,
        found,
        peaks,
        str(lessons),
        devices_gb,
    )


def _combinations(batch_size: int) -> list[tuple[bool, int | None]]:
    parts = [batch_size // by for by in (2, 4, 8) if batch_size // by >= 1]
    return [(False, None), (True, None), *((again, part) for again in (False, True) for part in parts)]


def of_step(options: DistillOptions, lessons: Lessons) -> dict[str, int]:
    """``peak``, ``weights``, ``gradients``, ``optimiser`` and ``moving average`` in bytes, number of ``parameters``.

    Raises
    ------
    OptionError
        As `plan_memory`; also when the student cannot do what the options ask.
    """
    student = _built(options.student)
    crop_px = lessons.crop_px or (student.image_px if options.student_px is None else VIEW_PX)
    lessons = replace(lessons, crop_px=crop_px)
    if options.student_tokens == "per-teacher":  # now, since timm cannot build one with fake tensors
        student = of_each_teacher(student, len(lessons.teachings), options.student)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _counted(student, options, lessons)
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


def _counted(student: Encoder, options: DistillOptions, lessons: Lessons) -> dict[str, int]:
    student.to_empty(device="cpu")
    # a tensor without memory cannot be copied as the moving average is, which is as large as the student
    trainer = replace(make_trainer(student, lessons, replace(options, ema=None), _CPU), scaler=None)
    model = trainer.model
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    moments = [torch.empty_like(weight) for weight in trained for _ in range(2)]
    of_student = [*model.student.parameters(), *model.student.buffers()]
    average = [] if options.ema is None else [torch.empty_like(tensor) for tensor in of_student]
    part = options.micro_batch or options.batch_size
    # all parts are like the first two, but for what the loss compares of all views
    small = not any(teaching.tokens or teaching.attention for teaching in lessons.teachings)
    count = min(options.batch_size, 2 * part if small else options.batch_size)
    paired = any(loss_spec.PAIR in lesson.loss for lesson in model.lessons)
    views, targets = a_batch(lessons, count, paired)
    with _Most() as live:
        tensors = [views]
        targets.map(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
        live.now = (options.batch_size - count) * sum(tensor.nbytes for tensor in tensors) // count
        live.add([*weights, *model.buffers(), *average, *moments, *tensors])
        trainer.backward(views, targets, 0)
        shown, at = a_batch(lessons, part, paired)
        with torch.no_grad():
            model.eval().embed_for(shown, [one.positions for one in (at, *at.others)], at if paired else None)
    found = {
        "peak": live.peak,
        "weights": _bytes(weights),
        "gradients": _bytes(trained),
        "optimiser": _bytes(moments),
        "parameters": sum(parameter.numel() for parameter in model.student.parameters()),
    }
    return found | ({"moving average": _bytes(average)} if average else {})


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def a_batch(lessons: Lessons, count: int, paired: bool) -> tuple[Tensor, Targets]:
    """Views and targets of a step, all 0, as `pipeline.distill.model.Targets.of` has them."""
    side = lessons.crop_px
    every = []
    for teaching in lessons.teachings:
        tokens, looked = teaching.tokens, teaching.attention
        n, width = (0, 0) if tokens is None else (tokens.count, tokens.dim)
        places = torch.arange(n).expand(count, n).contiguous()
        attention = None if looked is None else torch.zeros(count, looked.grid**2)
        every.append(
            Targets(torch.zeros(count, teaching.dim), torch.zeros(count, n, width), places, attention)
        )
    targets = replace(every[0], others=tuple(every[1:]))
    if len(every) > 1:
        targets = replace(targets, present=torch.ones(count, len(every), dtype=torch.uint8))
    if paired:
        has, place = torch.ones(count, dtype=torch.uint8), torch.arange(count) // 2
        others = tuple(replace(other, has_beside=has, places=place) for other in targets.others)
        beside = torch.zeros(count, side, side, 3, dtype=torch.uint8)
        targets = replace(targets, others=others, beside=beside, has_beside=has, places=place)
    return torch.zeros(count, side, side, 3, dtype=torch.uint8), targets


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
        out = self.result(func, args, kwargs or {})
        self.add(found for found in tree_iter(out) if isinstance(found, Tensor))
        return out

    def result(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What an operation gives."""
        return func(*args, **kwargs)


class _Most(Live):
    """What data would decide is the most that it can be: all of a mask is set."""

    def result(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func is torch.ops.aten.nonzero.default:
            (mask,) = args
            return torch.empty(mask.numel(), mask.ndim, dtype=torch.int64)
        return super().result(func, args, kwargs)
