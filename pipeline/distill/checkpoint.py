"""Checkpoints of a run: everything that decides the next step, in one file. The last two are kept.

They contain no random state: the order of views and the random layers follow from the seed and the views consumed.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.distill.early_stop import EarlyStop
from pipeline.distill.trainer import Trainer
from pipeline.encoders.tensor_files import load_torch, save_torch
from stores.errors import DistillError
from stores.io.files import first_line, require_free
from stores.io.foreign import open_regular

_NAME = re.compile(r"step-(\d{8})\.pt")
KEPT = 2


def saved(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("*.pt") if _NAME.fullmatch(path.name))


def size(trainer: Trainer, keeps_best: bool) -> int:
    """Approximate bytes of a checkpoint: parameters, two moments of the optimiser for each, moving average, best."""
    model, ema = (_bytes(module) for module in (trainer.model, trainer.ema))
    return 3 * model + ema + (model + ema if keeps_best else 0)


def _bytes(module: torch.nn.Module | None) -> int:
    parameters = () if module is None else module.parameters()
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def save(
    run: Path, step: int, trainer: Trainer, stop: EarlyStop, facts: dict[str, Any], best: dict[str, Any]
) -> None:
    """Write the state after `step` steps.

    Parameters
    ----------
    facts
        Figures that the summary needs at the end.
    best
        Weights of an earlier step that may become the student; empty where none are kept.
    """
    state = {
        "step": step,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "early_stop": stop.state(),
        "facts": facts,
    }
    if best:
        state["best"] = best
    if trainer.ema is not None:
        state["ema"] = trainer.ema.state_dict()
    if trainer.scaler is not None:
        state["scaler"] = trainer.scaler.state_dict()
    require_free(run, size(trainer, bool(best)), f"checkpoint of step {step}")
    save_torch(run / "checkpoints" / f"step-{step:08d}.pt", state)
    prune(run)


def prune(run: Path) -> None:
    """Remove all checkpoints but the last `KEPT`; a run that was killed may have left one more."""
    for old in saved(run)[:-KEPT]:
        old.unlink()


def restore(path: Path, trainer: Trainer, stop: EarlyStop) -> tuple[dict[str, Any], dict[str, Any]]:
    """Restore the state of a checkpoint; returns the facts and the best weights.

    Raises
    ------
    DistillError
        When the file is damaged or of another model.
    """
    try:
        open_regular(path, sys.maxsize, inside=path.parents[1]).close()
        state: Any = load_torch(path, mapped=False)
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.ema is not None:
            trainer.ema.load_state_dict(state["ema"])
        if trainer.scaler is not None and "scaler" in state:  # earlier versions did not scale
            trainer.scaler.load_state_dict(state["scaler"])
        stop.restore(state["early_stop"])
        facts: dict[str, Any] = dict(state["facts"])
        best: dict[str, Any] = state.get("best", {})
    except torch.OutOfMemoryError:  # of the GPU: the file is as it should be
        raise
    except Exception as error:  # torch raises a dozen kinds of errors for damaged files
        raise DistillError(
            f"{path}: not a checkpoint of this run ({first_line(error)}); remove it to use the one before"
        ) from None
    return facts, best
