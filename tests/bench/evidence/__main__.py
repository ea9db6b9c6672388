"""Distillation from a teacher that knows something, on real tissue: what students from scratch take over.

``python -m tests.bench.evidence --slides DIR --tiles DIR --out DIR`` (``make evidence``) fetches the teacher, makes the
stores, trains, judges, and writes tables and pictures. What is done is kept: start it again and it goes on.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime.progress import reporter_for
from tests.bench.evidence import pages
from tests.bench.evidence.encoder import install_encoder
from tests.bench.evidence.judge import Judge
from tests.bench.evidence.runs import Arm, Place, work
from tests.bench.evidence.tissue import FOLDS, make_tissue

LOSSES = ("log-sum", "cosine,smooth-l1", "mse")
SHORT, LONG = 500, 3000
BEST = "mse"
BASE = Arm("cnn", BEST, SHORT)
UNTRAINED = [Arm("cnn"), Arm("vit")]
MAIN = [Arm(student, loss, steps) for steps in (SHORT, LONG) for student in ("cnn", "vit") for loss in LOSSES]
VIEWS = {
    "1 view": Arm("cnn", BEST, SHORT, views=1),
    "2 views": Arm("cnn", BEST, SHORT, views=2),
    "4 views": BASE,
    "8 views": Arm("cnn", BEST, SHORT, views=8),
    "a fresh view at every step": Arm("cnn", BEST, SHORT, views=None),
}
ALPHA = {f"alpha {alpha:g}": Arm("cnn", "log-sum", SHORT, alpha=alpha) for alpha in (1.0, 2.0, 4.0)}
CONTROL = [Arm(student, BEST, steps, untaught=True) for steps in (SHORT, LONG) for student in ("cnn", "vit")]
TISSUE = {f"{100 * parts // 4} %": Arm("cnn", BEST, SHORT, parts=parts) for parts in (1, 2, 4)}


def teacher_runs(judge: Judge) -> list[dict[str, Any]]:
    """The teacher's figures on every fold, in the form of a run's."""
    features = [np.asarray(views.targets, np.float32) for views in judge.views]
    return [judge.figures(features, fold) for fold in range(FOLDS)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", required=True, type=Path, help="Folder with the two slides.")
    parser.add_argument("--tiles", required=True, type=Path, help="Folder with lung_colon and colorectal.")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="Runs at the same time, one thread each.")
    chosen = parser.parse_args(arguments)
    table = make_tissue(chosen.slides, chosen.tiles, chosen.out / "tissue")
    place = Place(chosen.out, table, install_encoder(chosen.out / "encoder"))
    with reporter_for(sys.stderr) as report:
        place.make_stores(report)
    judge = Judge(place.store, table)
    teacher = teacher_runs(judge)  # renders what every run maps
    of_all = dict.fromkeys([*UNTRAINED, *MAIN, *VIEWS.values(), *ALPHA.values(), *TISSUE.values(), *CONTROL])
    arms = sorted(of_all, key=lambda arm: arm.steps)
    for parts, untaught in sorted({(arm.parts, arm.untaught) for arm in arms}):
        for fold in range(FOLDS):
            place.store_of(fold, parts, untaught)
    found: dict[Arm, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    with ProcessPoolExecutor(chosen.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        todo = {pool.submit(work, place, arm, fold): (arm, fold) for arm in arms for fold in range(FOLDS)}
        for number, future in enumerate(as_completed(todo), start=1):
            arm, fold = todo[future]
            if future.exception():
                pool.shutdown(cancel_futures=True)  # what runs is finished and kept
            found[arm][fold] = future.result()
            said = ", ".join(
                f"{key} {found[arm][fold][key]:.3f}" for key in ("cka_unbiased", "cosine", "seconds")
            )
            print(f"{number}/{len(todo)} {arm.name}, fold {fold}: {said}", flush=True)
    results = {arm: [of_arm[fold] for fold in range(FOLDS)] for arm, of_arm in found.items()}
    shown = [*UNTRAINED, *CONTROL, *MAIN]
    longest = [arm for arm in MAIN if arm.steps == LONG]
    parts_of_page = {
        "Agreement and accuracy": pages.gap_table(results, teacher, LOSSES, (SHORT, LONG)),
        "Share of the teacher's lead": pages.closed_table(results, teacher, [*MAIN, *CONTROL]),
        "What the teacher's knowledge is worth": pages.control_table(results, CONTROL),
        "Stored views": pages.curve_table(results, BASE, VIEWS),
        "Alpha": pages.curve_table(results, ALPHA["alpha 4"], ALPHA),
        "Tissue": pages.curve_table(results, BASE, TISSUE),
        "Robustness": pages.robustness_table(results, teacher, [*UNTRAINED, *longest]),
    }
    pages.write_page(chosen.out / "evidence.md", parts_of_page)
    pages.gap_picture(chosen.out / "evidence.png", results, teacher, shown)
    print((chosen.out / "evidence.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
