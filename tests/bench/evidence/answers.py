"""The tables and the picture of a question about several teachers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stores.io.files import replacing, write_text
from tests.bench.evidence.figures import Runs, difference, overall, pooled, ranged, text
from tests.bench.evidence.pages import NAMES, row, rule

WHATS = ("knn", "linear")
_LABELS = {"knn": "5-NN", "linear": "linear"}
_KINDS = {"cka_unbiased": "CKA", "cosine": "cosine"}


def report(out: Path, question: Mapping[str, Any], results: Mapping[str, Runs]) -> None:
    """``OUT.md`` and ``OUT.png``.

    Parameters
    ----------
    question
        ``agreement``: the teachers that students are compared with; ``against``: the arm that differences are to;
        ``means``: rows that are the mean over several arms.
    """
    rows = dict(results)
    for name, of in question.get("means", {}).items():
        rows[name] = pooled([results[arm] for arm in of])
    base = rows[question["against"]]
    tables = [
        agreement_table(question["along"], question["agreement"], rows),
        accuracy_table(question["along"], rows),
        difference_table(question["along"], question["against"], rows, base),
    ]
    write_text(out.with_suffix(".md"), "\n".join(tables))
    picture(out.with_suffix(".png"), rows, base, question["against"])
    print("\n".join(tables), flush=True)


def agreement_of(runs: Runs, kind: str, teachers: Sequence[str] | None = None) -> list[float]:
    """The mean over teachers of a figure of agreement, for each run."""
    return [
        float(np.mean([run["agreement"][name][kind] for name in teachers or run["agreement"]]))
        for run in runs
    ]


def agreement_table(along: str, teachers: Sequence[str], rows: Mapping[str, Runs]) -> str:
    """How near students come to each teacher on held-out patches: median, smallest and largest of three runs."""
    lines = [row([along, *(f"{kind}, {name}" for kind in _KINDS.values() for name in teachers)])]
    lines.append(rule(1 + len(_KINDS) * len(teachers)))
    for label, runs in rows.items():
        lines.append(
            row([label] + [ranged(agreement_of(runs, kind, [name])) for kind in _KINDS for name in teachers])
        )
    return "\n".join(lines) + "\n"


def accuracy_table(along: str, rows: Mapping[str, Runs]) -> str:
    """Accuracy on held-out images: median, smallest and largest of three runs; all four with their interval."""
    heads = [f"{name} {_LABELS[what]}" for name in NAMES for what in WHATS]
    lines = [row([along, *heads, "mean of the four"]), rule(2 + len(heads))]
    for label, runs in rows.items():
        cells = [
            ranged([float(np.mean(run[name][what])) for run in runs]) for name in NAMES for what in WHATS
        ]
        lines.append(row([label, *cells, text(overall(runs, None, NAMES, WHATS))]))
    return "\n".join(lines) + "\n"


def difference_table(along: str, against: str, rows: Mapping[str, Runs], base: Runs) -> str:
    """Paired differences to one row: of agreement for each run, of accuracy with intervals over images."""
    heads = [f"{name} {_LABELS[what]}" for name in NAMES for what in WHATS]
    heads = [*_KINDS.values(), *heads, "mean of the four"]
    lines = [row([f"{along}: less {against}", *heads]), rule(1 + len(heads))]
    for label, runs in rows.items():
        if label == against:
            continue
        cells = []
        for kind in _KINDS:
            found = np.subtract(agreement_of(runs, kind), agreement_of(base, kind))
            cells.append(f"{np.median(found):+.3f} ({found.min():+.3f} to {found.max():+.3f})")
        cells += [text(difference(runs, base, name, what), True) for name in NAMES for what in WHATS]
        lines.append(row([label, *cells, text(overall(runs, base, NAMES, WHATS), True)]))
    return "\n".join(lines) + "\n"


def picture(path: Path, rows: Mapping[str, Runs], base: Runs, against: str) -> None:
    """Agreement of every run as a dot, and the difference in accuracy with its interval."""
    figure = Figure(figsize=(12, 0.32 * len(rows) + 1.3), layout="constrained")
    places = list(range(len(rows)))[::-1]
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (kind, label) in zip(panels, _KINDS.items(), strict=False):
        for at, runs in zip(places, rows.values(), strict=True):
            found = agreement_of(runs, kind)
            axes.plot(found, [at] * len(found), "o", color="0.6", ms=4)
            axes.plot([np.median(found)], [at], "|", color="C0", ms=14, mew=2)
        axes.set(title=f"{label}, held out")
    last = panels[2]
    last.axvline(0, color="0.7", lw=0.8)
    for at, runs in zip(places, rows.values(), strict=True):
        gain = overall(runs, base, NAMES, WHATS)
        last.plot([gain.low, gain.high], [at, at], color="C0", lw=2)
        last.plot([gain.value], [at], "o", color="C0", ms=5)
    last.set(title=f"accuracy, less {against}")
    last.locator_params(axis="x", nbins=5)
    panels[0].set(yticks=places, yticklabels=list(rows))
    for axes in panels:
        axes.grid(axis="y", lw=0.4)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
