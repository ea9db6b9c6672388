"""``--compile``: the student's passes of training go through ``torch.compile``.

The module itself stays as it is, so that names of weights, checkpoints, moving average and export are those of a run
without it, and a run may continue with or without. Validation is not compiled: it would be another program, in another
mode and for other sizes, which takes as long to make. Random layers draw what they draw without it.
"""

import os
import shutil

import torch
from torch import Tensor

from pipeline.distill.model import Distiller
from stores.errors import DistillError, OptionError
from stores.io.files import first_line

_BACKEND = "inductor"


def use_compile(model: Distiller, name: str) -> None:
    """Let the student compute through ``torch.compile`` in training. It is compiled at the first step.

    Parameters
    ----------
    name
        What the user calls the student.

    Raises
    ------
    OptionError
        When there is no C++ compiler, which the kernels of a CPU and what starts those of a GPU are made with.
    """
    given = os.environ.get("CXX")
    if not any(shutil.which(compiler) for compiler in ([given] if given else ["g++", "clang++", "cl"])):
        raise OptionError(
            f"--compile: needs a C++ compiler, and there is no {given or 'g++ or clang++'} on this machine; install "
            "one, or leave --compile out"
        )
    run = torch.compile(model.student_pass, backend=_BACKEND)

    def compiled(views: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # the optimiser of DDP cannot divide a program that computes again
        dynamo, inductor = torch._dynamo.config, torch._inductor.config
        try:
            with dynamo.patch(optimize_ddp=False), inductor.patch(fallback_random=True):
                return run(views)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise DistillError(
                f"--compile: {name} cannot be compiled here ({first_line(error)}); leave --compile out: the same "
                "command without it begins or continues the run"
            ) from error

    model.compiled = compiled
