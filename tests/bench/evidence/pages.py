"""The tables and pictures of the evidence, from the results of runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from stores.io.files import replacing, write_text
from tests.bench.evidence.figures import Runs, compare, difference, ranged, text, values
from tests.bench.evidence.runs import Arm
from tests.bench.evidence.tissue import SETS

Results = Mapping[Arm, Runs]
NAMES = [of.name for of in SETS]


def gap_table(results: Results, teacher: Runs, losses: Sequence[str], steps: Sequence[int]) -> str:
    """How near a student comes to the teacher: one row for each student, loss and length."""
    lines = [
        row(
            ["student", "loss", "steps", "CKA", "CKA, unbiased", "cosine", *(f"{n} 5-NN" for n in NAMES)]
            + [f"{n} linear" for n in NAMES]
        ),
        rule(6 + 2 * len(NAMES)),
    ]
    own = [
        text(compare(teacher, teacher, teacher, name, what).accuracy)
        for what in ("knn", "linear")
        for name in NAMES
    ]
    lines.append(row(["*teacher*", "", "", "1", "1", "1", *own]))
    for student in ("cnn", "vit"):
        for loss, length in [("", 0)] + [(loss, n) for n in steps for loss in losses]:
            arm = Arm(student, loss, length) if loss else Arm(student)
            runs = results[arm]
            agreement = [ranged(values(runs, what)) for what in ("cka", "cka_unbiased", "cosine")]
            judged = [
                text(compare(runs, results[Arm(student)], teacher, name, what).accuracy)
                for what in ("knn", "linear")
                for name in NAMES
            ]
            lines.append(row([student, loss or "untrained", str(length or ""), *agreement, *judged]))
    return "\n".join(lines) + "\n"


def closed_table(results: Results, teacher: Runs, arms: Sequence[Arm]) -> str:
    """The gain over the untrained student, and which share of the teacher's lead it is."""
    heads = [
        f"{name} {label}: {kind}"
        for name in NAMES
        for label in ("5-NN", "linear")
        for kind in ("gain", "share")
    ]
    lines = [row(["run", *heads]), rule(1 + len(heads))]
    for arm in arms:
        cells = [arm.name]
        for name in NAMES:
            for what in ("knn", "linear"):
                found = compare(results[arm], results[Arm(arm.student)], teacher, name, what)
                cells += [text(found.gain, signed=True), text(found.closed)]
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def control_table(results: Results, controls: Sequence[Arm]) -> str:
    """A student of the pretrained teacher less the same student of one with random weights: what knowledge is worth."""
    heads = [f"{name} {label}" for name in NAMES for label in ("5-NN", "linear")]
    lines = [row(["run", *heads]), rule(1 + len(heads))]
    for control in controls:
        taught = dataclasses.replace(control, untaught=False)
        lines.append(
            row(
                [taught.name]
                + [
                    text(difference(results[taught], results[control], name, what), signed=True)
                    for name in NAMES
                    for what in ("knn", "linear")
                ]
            )
        )
    return "\n".join(lines) + "\n"


def curve_table(results: Results, base: Arm, arms: Mapping[str, Arm]) -> str:
    """One thing varied: agreement, and the paired difference in accuracy to the arm `base`."""
    heads = ["CKA, unbiased", "cosine", *(f"{name} 5-NN, difference" for name in NAMES)]
    lines = [row(["", *heads]), rule(1 + len(heads))]
    for label, arm in arms.items():
        runs = results[arm]
        cells = [ranged(values(runs, what)) for what in ("cka_unbiased", "cosine")]
        for name in NAMES:
            cells.append(
                "0 (compared with)"
                if arm == base
                else text(difference(runs, results[base], name, "knn"), True)
            )
        lines.append(row([label, *cells]))
    return "\n".join(lines) + "\n"


def robustness_table(results: Results, teacher: Runs, arms: Sequence[Arm]) -> str:
    """What the augmentation does to features: of the teacher, of untrained and of trained students."""
    heads = [
        "nearest is the same patch",
        *(f"{name} 5-NN of drawn views" for name in NAMES),
        *(f"{name}: drawn - plain" for name in NAMES),
    ]
    lines = [row(["", *heads]), rule(1 + len(heads))]
    rows = [("*teacher*", teacher), *((arm.name, results[arm]) for arm in arms)]
    for label, runs in rows:
        cells = [ranged(values(runs, "same"))]
        cells += [text(compare(runs, runs, runs, name, "knn_drawn").accuracy) for name in NAMES]
        plain = [
            [{**run, name: {**run[name], "knn_drawn": run[name]["knn"]}} for run in runs] for name in NAMES
        ]
        cells += [
            text(difference(runs, other, name, "knn_drawn"), True)
            for name, other in zip(NAMES, plain, strict=True)
        ]
        lines.append(row([label, *cells]))
    return "\n".join(lines) + "\n"


def gap_picture(path: Path, results: Results, teacher: Runs, arms: Sequence[Arm]) -> None:
    """Accuracy of 5-NN: untrained, the students with their intervals, and the teacher as a line."""
    figure = Figure(figsize=(10, 0.34 * len(arms) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(NAMES), sharey=True)
    for axes, name in zip(panels, NAMES, strict=True):
        goal = compare(teacher, teacher, teacher, name, "knn").accuracy
        axes.axvspan(goal.low, goal.high, color="C2", alpha=0.15, lw=0)
        axes.axvline(goal.value, color="C2", label="teacher")
        for at, arm in enumerate(reversed(arms)):
            found = compare(results[arm], results[arm], teacher, name, "knn").accuracy
            colour = "C1" if arm.untaught else "C0" if arm.loss else "0.5"
            axes.plot([found.low, found.high], [at, at], color=colour, lw=2)
            axes.plot([found.value], [at], "o", color=colour, ms=5)
        axes.set(title=f"{name}: 5-NN accuracy", yticks=range(len(arms)))
        axes.set_yticklabels([arm.name for arm in reversed(arms)])
        axes.grid(axis="x", lw=0.4)
        axes.legend(frameon=False, loc="upper right", fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def write_page(path: Path, parts: Mapping[str, str]) -> None:
    """All tables in one Markdown file, each under its title."""
    write_text(path, "\n".join(f"## {title}\n\n{table}" for title, table in parts.items()))


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rule(n: int) -> str:
    return "|---" * n + "|"
