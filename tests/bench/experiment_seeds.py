"""How many views of a patch does a student need? Equal numbers of steps, more or fewer seeds; writes a picture.

``python -m tests.bench.experiment_seeds --picture FILE.png [--steps N]`` paints the demo's cohort, extracts eight
seeds with the demo's teacher, and trains the demo's student on the first 1, 2, 4 and 8 of them, each from two random
starts. Agreement is measured on held-out patients, on patches as they are (seed 0) and under seeds 1 to 3. Takes about
a quarter of an hour on two cores.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from pipeline.data.loader import load_views
from pipeline.data.sources import find_sources
from pipeline.demo.demo import DISTILL, SEED, SLIDES
from pipeline.demo.synthetic_slides import write_cohort
from pipeline.distill.train import distill
from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.metrics.cka import linear_cka
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from pipeline.views.policy import load_policy
from stores import sampler
from stores.format import recipe
from stores.info import store_info
from stores.io.files import replacing

SEEDS, STARTS = (1, 2, 4, 8), (0, 1)
AUGMENTED = range(1, 4)


def agreement(store: Path, slides: Path, student: Encoder, seeds: Sequence[int]) -> float:
    """Linear CKA to the teacher on the held-out patches under some seeds."""
    stored = recipe.load(store)
    units = sampler.find_units(store, "val", None)
    sources = find_sources(store, stored, {unit.commit.slide_id for unit in units}, [slides])
    policy = load_policy("g2l")
    batches = [load_views(store, units, sources, policy, seed, 512, 2) for seed in seeds]
    views = np.concatenate([batch.views for batch in batches])
    targets = np.concatenate([batch.targets for batch in batches])
    features = embed(student, views, 32, torch.device("cpu"), torch.float32).numpy()
    return linear_cka(features, targets.astype(np.float32))


def measure(folder: Path, steps: int) -> dict[int, list[dict[str, float]]]:
    """Figures of every run, by number of seeds."""
    write_cohort(folder / "slides", SLIDES, SEED)
    tiling = TileOptions(slides_csv=folder / "slides" / "slides.csv")
    extract(
        [folder / "slides"],
        folder / "store",
        ExtractOptions(teacher="demo-teacher", seeds=max(SEEDS)),
        tiling,
        Silent(),
    )
    patches = store_info(folder / "store")["patches_by_split"]["train"]
    print(f"{patches} training patches, {steps} steps of {DISTILL.batch_size} views")
    found: dict[int, list[dict[str, float]]] = {n: [] for n in SEEDS}
    for start in STARTS:
        for n in SEEDS:
            options = dataclasses.replace(
                DISTILL, slides=(folder / "slides",), seeds=n, seed=start, random_weights=start, steps=steps
            )
            done = distill(folder / "store", folder / f"run-{n}-{start}", options, False, Silent())
            passes = steps * options.batch_size / (patches * n)
            student = load_encoder(str(folder / f"run-{n}-{start}" / "student"))
            figures = {
                "plain": agreement(folder / "store", folder / "slides", student, [0]),
                "augmented": agreement(folder / "store", folder / "slides", student, AUGMENTED),
                "loss": done["loss_last"],
            }
            found[n].append({**figures, "passes": passes})
            print(json.dumps({"seeds": n, "start": start, **found[n][-1]}), flush=True)
    return found


def draw(found: dict[int, list[dict[str, float]]], path: Path) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name, title in zip(
        figure.subplots(1, 2),
        ("plain", "augmented"),
        ("patches as they are", "under seeds 1 to 3"),
        strict=True,
    ):
        for n, runs in found.items():
            axes.plot([n] * len(runs), [run[name] for run in runs], "o", color="0.6", ms=4)
        medians = [statistics.median(run[name] for run in runs) for runs in found.values()]
        axes.plot(list(found), medians, "o-", color="C0")
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(found), [str(n) for n in found])
        axes.set(title=title, xlabel="views (seeds) of each patch, equal steps")
        axes.set_ylabel("linear CKA to the teacher, held out")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=DISTILL.steps)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        draw(measure(Path(text), chosen.steps), chosen.picture)


if __name__ == "__main__":
    main()
