"""The training curves of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stores.io.files import replacing

_AGREEMENT = {
    "explained": ("variance explained", "C2"),
    "cka": ("CKA", "C0"),
    "cka_unbiased": ("CKA, unbiased", "C9"),
    "cosine": ("cosine", "C1"),
    "cka_ema": ("CKA, moving average", "C4"),
}


def draw_curves(
    path: Path, steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]
) -> None:
    """Write a PNG of a training run: loss, learning rate and the validation figures over steps.

    The held-out loss before the first step stands apart: the heads are not trained yet. A figure that a record lacks,
    such as one of an earlier version, has no point there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, schedule, agreement = figure.subplots(1, 3)
    x = [record["step"] for record in steps]
    loss.plot(x, [record["loss"] for record in steps], lw=0.7, color="0.6", label="training, each step")

    def draw(axes: Any, label: str, name: str, of: Sequence[Mapping[str, Any]], **style: Any) -> None:
        known = [record for record in of if name in record]
        if known:
            axes.plot([r["step"] for r in known], [r[name] for r in known], label=label, **style)

    before, trained = [r for r in validations if r["step"] == 0], [r for r in validations if r["step"] > 0]
    draw(loss, "held out", "loss", trained, marker="o", ms=3, color="C3")
    draw(loss, "held out, before training", "loss", before, marker="X", ms=7, ls="", color="C3")
    draw(loss, "held out, mean of the targets", "loss_constant", validations, ls=":", color="0.2")
    for name, (label, colour) in _AGREEMENT.items():
        draw(agreement, label, name, validations, marker="o", ms=3, color=colour)
    if not validations:
        agreement.set_axis_off()
        agreement.text(0.5, 0.5, "no held-out views", ha="center", transform=agreement.transAxes)
    several = any("teachers" in record for record in validations)
    whose = "held out, mean over the teachers" if several else "agreement with the teacher, held out"
    schedule.plot(x, [record["lr"] for record in steps], color="C2")
    for axes, title in (
        (loss, "loss"),
        (schedule, "learning rate"),
        (agreement, whose),
    ):
        axes.set(title=title, xlabel="step")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(edgecolor="none", fontsize=8)  # its ground hides a line behind it
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
