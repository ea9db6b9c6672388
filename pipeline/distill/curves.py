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

    def points(name: str, of: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
        known = [record for record in of if name in record]
        return [record["step"] for record in known], [record[name] for record in known]

    before, trained = [r for r in validations if r["step"] == 0], [r for r in validations if r["step"] > 0]
    for axes, label, (at, values), style in (
        (loss, "held out", points("loss", trained), {"marker": "o", "color": "C3"}),
        (loss, "held out, before training", points("loss", before), {"marker": "x", "ls": "", "color": "C3"}),
        (
            loss,
            "held out, mean of the targets",
            points("loss_constant", validations),
            {"ls": ":", "color": "0.2"},
        ),
        *(
            (agreement, label, points(name, validations), {"marker": "o", "color": colour})
            for name, (label, colour) in _AGREEMENT.items()
        ),
    ):
        if at:
            axes.plot(at, values, label=label, ms=3, **style)
    schedule.plot(x, [record["lr"] for record in steps], color="C2")
    for axes, title in (
        (loss, "loss"),
        (schedule, "learning rate"),
        (agreement, "agreement with the teacher, held out"),
    ):
        axes.set(title=title, xlabel="step")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
