"""What a student starts from, weights or nothing, and the learning rate and warm-up that fit each."""

import dataclasses

from pipeline.distill.options import DistillOptions
from pipeline.encoders.encoder import Encoder
from pipeline.runtime.progress import Reporter

LR_OF_WEIGHTS, LR_FROM_SCRATCH = 1e-4, 2e-3
MAX_WARMUP_STEPS = 500


def has_learned(student: Encoder) -> bool | None:
    """Whether the weights come from a training; None where they do not show it.

    In an untrained network the scales of a normalisation layer are all the same, and so are its shifts and running
    statistics. The first step of a training ends that. So it does not matter how the student was named: a preset, a
    folder, a file of weights or a function of the user.
    """
    found = [
        tensor
        for module in student.backbone.modules()
        if "norm" in type(module).__name__.lower()
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if tensor.numel() > 1
    ]
    return any(bool((tensor != tensor.flatten()[0]).any()) for tensor in found) if found else None


def with_defaults(options: DistillOptions, student: Encoder, steps: int, report: Reporter) -> DistillOptions:
    """The options with a learning rate, a warm-up and a rule of stopping; says which start they fit.

    Parameters
    ----------
    options
        None where the user did not choose.
    steps : int
        Planned steps of the training.
    """
    learned = has_learned(student)
    if learned is None:
        learned = options.random_weights is None
    lr = LR_OF_WEIGHTS if learned else LR_FROM_SCRATCH
    warmup = 0 if learned else min(steps // 10, MAX_WARMUP_STEPS)
    chosen = dataclasses.replace(
        options,
        lr=lr if options.lr is None else options.lr,
        warmup_steps=warmup if options.warmup_steps is None else options.warmup_steps,
        early_stop=options.early_stop or "off",
    )
    open_ = [
        f"--{name.replace('_', '-')}" for name in ("lr", "warmup_steps") if getattr(options, name) is None
    ]
    hint = f" ({', '.join(open_)} to choose)" if open_ else ""
    kind = "weights" if learned else "scratch"
    report.note(f"from {kind}: lr {chosen.lr:g}, warm-up {chosen.warmup_steps} steps{hint}")
    return chosen
