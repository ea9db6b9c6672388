"""The training curves of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stores.io.files import replacing


def draw_curves(
    path: Path, steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]
) -> None:
    """Write a PNG of a training run: loss, learning rate and the validation figures over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, schedule, agreement = figure.subplots(1, 3)
    x = [record["step"] for record in steps]
    loss.plot(x, [record["loss"] for record in steps], lw=0.7, color="0.6", label="training, each step")
    if validations:
        at = [record["step"] for record in validations]
        loss.plot(at, [record["loss"] for record in validations], "o-", ms=3, color="C3", label="held out")
        for name, colour in (("cka", "C0"), ("cosine", "C1"), ("cka_ema", "C4")):
            if all(name in record for record in validations):
                agreement.plot(at, [r[name] for r in validations], "o-", ms=3, color=colour, label=name)
    schedule.plot(x, [record["lr"] for record in steps], color="C2")
    for axes, title in (
        (loss, "loss"),
        (schedule, "learning rate"),
        (agreement, "agreement with the teacher"),
    ):
        axes.set(title=title, xlabel="step")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
