"""Checkpoints of a run: all that decides the next step, in one file, written atomically; the last two are kept."""

import re
from pathlib import Path
from typing import Any

import torch

from pipeline.distill.schedule import EarlyStop
from stores.errors import DistillError
from stores.files import first_line, replacing

_NAME = re.compile(r"step-(\d{8})\.pt")
_KEPT = 2


def saved(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("*.pt") if _NAME.fullmatch(path.name))


def save(
    run: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    stop: EarlyStop,
    facts: dict[str, Any],
) -> None:
    """Write the state after `step` steps. `facts` are plain figures that the summary needs at the end."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "early_stop": stop.state(),
        "facts": facts,
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with replacing(run / "checkpoints" / f"step-{step:08d}.pt") as partial:
        torch.save(state, partial)
    for old in saved(run)[:-_KEPT]:
        old.unlink()


def restore(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, stop: EarlyStop
) -> tuple[int, dict[str, Any]]:
    """Put everything back as it was; returns the number of steps done and the facts.

    Raises
    ------
    DistillError
        When the file is damaged or of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # torch raises a dozen kinds for damaged files
        raise DistillError(
            f"{path}: not a checkpoint of this run ({first_line(error)}); remove it to use the one before"
        ) from None
    stop.restore(state["early_stop"])
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return state["step"], state["facts"]
