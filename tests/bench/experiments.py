"""The open questions as experiments: arms that differ in one thing, some repetitions each, a table and a picture.

``python -m tests.bench.experiments docs/experiments/alpha.yaml ... --slides DIR --out DIR`` (``make experiments``).
A question's file names its arms; ``--base`` what they share: ``docs/experiments/small.yaml`` for two CPU cores,
``docs/experiments/real.yaml`` for true encoders. What is done already is kept: start it again and it goes on.

Every arm is judged on the same held-out patches, in a store of its own that no arm trains on:

``cka``        linear CKA between student and teacher, held-out patches as they are (seed 0)
``cka_drawn``  the same under seeds 1 to 3
``cosine``     to the teacher, standardised, after the linear map that fits training patches best (ridge)
``knn``        accuracy of the density class among 20 neighbours, none of one's own image, on the tiles of ``--tiles``
"""

import argparse
import csv
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import tifffile
import torch
import yaml
from matplotlib.figure import Figure

from pipeline.data.loader import Batch, load_views
from pipeline.data.sources import find_sources
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes import fit
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.distill.train import distill, load_student
from pipeline.embed.tiles import read_tile
from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.metrics.cka import linear_cka
from pipeline.metrics.knn import knn_votes, leave_out
from pipeline.runtime.interrupt import ending_with_parent
from pipeline.runtime.options import to_json
from pipeline.runtime.progress import Silent
from pipeline.slides.find import find_slides
from pipeline.tile.options import TileOptions
from pipeline.views.policy import Policy
from stores import sampler
from stores.format import recipe
from stores.io.files import replacing, write_json, write_text
from tests.bench.fresh_views import distill_fresh

FIGURES = {
    "cka": "CKA, held out",
    "cka_drawn": "CKA, under seeds 1-3",
    "cosine": "cosine, held out",
    "knn": "density kNN",
}
K, RIDGE, MOST_VIEWS = 20, 1e-2, 4096
Section = dict[str, Any]
Arm = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where things are, and what all arms share."""

    out: Path
    slides: Path
    tiles: Path | None
    base: Section

    def section(self, arm: Arm, name: str) -> Section:
        """A section of the base with what the arm changes."""
        return {**self.base.get(name, {}), **arm.get(name, {})}


# slides


def cut(folder: Path, out: Path, strips: int, mpp: Mapping[str, float]) -> Path:
    """Cut every slide into strips, of which the second is held out; returns the CSV that says so."""
    rows = []
    for slide_id, path in find_slides([folder]).items():
        with openslide.OpenSlide(str(path)) as slide:
            width, height = slide.dimensions
            edges = np.linspace(0, height, strips + 1).round().astype(int)
            level0 = mpp.get(slide_id) or float(slide.properties["openslide.mpp-x"])
            for i, (top, bottom) in enumerate(itertools.pairwise(edges)):
                name = f"{slide_id}-{i}"
                split = "val" if i == 1 else "train"
                rows.append({"slide_id": name, "mpp": level0, "patient_id": name, "split": split})
                target = out / f"{name}.tiff"
                if target.exists():
                    continue
                strip = np.asarray(
                    slide.read_region((0, int(top)), 0, (width, int(bottom - top))).convert("RGB")
                )
                with replacing(target) as partial:
                    tifffile.imwrite(
                        partial, strip, photometric="rgb", tile=(256, 256), compression="deflate"
                    )
    table = out / "slides.csv"
    with replacing(table) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def prepare(setting: Setting) -> tuple[Path, Path | None]:
    """The folder of slides, cut where the base asks for it, and the table with their splits."""
    asked: Section = setting.base.get("slides", {})
    if "cut" not in asked:
        return setting.slides, Path(asked["csv"]) if asked.get("csv") else None
    folder = setting.out / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    return folder, cut(setting.slides, folder, asked["cut"], asked.get("mpp", {}))


# stores


def store_of(setting: Setting, given: tuple[Path, Path | None], arm: Arm) -> Path:
    """The store that an arm trains on, made when it is not there; arms of equal sections share one."""
    tile, asked = setting.section(arm, "tile"), setting.section(arm, "extract")
    store = setting.out / "stores" / hashlib.sha256(json.dumps([tile, asked]).encode()).hexdigest()[:10]
    folder, table = given
    extract([folder], store, ExtractOptions(**asked), TileOptions(**tile, slides_csv=table), Silent())
    return store


def prototypes_of(setting: Setting, store: Path, arm: Arm) -> Path | None:
    """Prototypes of a store, when the arm's loss needs them."""
    loss = setting.section(arm, "distill").get("loss", "")
    if "dino" not in loss and "ibot" not in loss:
        return None
    asked = setting.section(arm, "prototypes")
    out = store.parent / f"{store.name}-prototypes-{asked['k']}"
    fit.fit(store, out, PrototypeOptions(**asked), Silent())
    return out


# one run, in a process of its own


@dataclasses.dataclass(frozen=True)
class Job:
    setting: Setting
    folder: Path
    store: Path
    judged: Path
    options: DistillOptions
    fresh: ExtractOptions | None
    untrained: bool
    results: Path

    @property
    def result(self) -> Path:
        """Named by all that decides it, so that arms of several questions share what is the same."""
        plain = {
            name: value
            for name, value in to_json(self.options).items()
            if name not in ("slides", "prototypes")
        }
        said = json.dumps([self.store.name, plain, self.fresh is not None, self.untrained], sort_keys=True)
        return self.results / f"{hashlib.sha256(said.encode()).hexdigest()[:12]}.json"


def work(job: Job) -> dict[str, float]:
    """Train a student and judge it; what is done already is read."""
    if job.result.exists():
        found: dict[str, float] = json.loads(job.result.read_text())
        return found
    with ending_with_parent():
        return _work(job)


def _work(job: Job) -> dict[str, float]:
    torch.set_num_threads(1)
    run, began = job.result.with_suffix(""), time.monotonic()
    if job.untrained:
        student = load_student(job.options)
    elif job.fresh is not None:
        student = distill_fresh(job.store, job.options, job.fresh)
    else:
        distill(job.store, run, job.options, False, Silent())
        student = load_encoder(str(run / "student"))
    found = judge(job.setting, job.folder, job.judged, student)
    found["seconds"] = time.monotonic() - began
    write_json(job.result, found)
    return found


def judge(setting: Setting, folder: Path, judged: Path, student: Encoder) -> dict[str, float]:
    """The figures of a student."""
    val = [_views(judged, folder, "val", seed) for seed in range(4)]
    known = _views(judged, folder, "train", 0)

    def features(batch: Batch) -> npt.NDArray[np.float64]:
        return embed(student, batch.views, 64, torch.device("cpu"), torch.float32).numpy().astype(np.float64)

    of_val = [features(batch) for batch in val]
    drawn = np.concatenate(of_val[1:]), np.concatenate([batch.targets for batch in val[1:]])
    return {
        "cka": linear_cka(of_val[0], val[0].targets.astype(np.float64)),
        "cka_drawn": linear_cka(drawn[0], drawn[1].astype(np.float64)),
        "cosine": mapped_cosine(features(known), known.targets, of_val[0], val[0].targets),
        **({} if setting.tiles is None else {"knn": density_knn(setting.tiles, student)}),
    }


def _views(store: Path, folder: Path, split: str, seed: int) -> Batch:
    stored = recipe.load(store)
    units = sampler.find_units(store, split, None)
    sources = find_sources(store, stored, {unit.commit.slide_id for unit in units}, [folder])
    assert stored.policy is not None
    return load_views(store, units, sources, Policy.from_json(stored.policy), seed, MOST_VIEWS, 1)


def mapped_cosine(
    x: npt.NDArray[np.float64], y: npt.NDArray[Any], x_val: npt.NDArray[np.float64], y_val: npt.NDArray[Any]
) -> float:
    """Mean cosine of held-out targets and what a ridge regression on training patches makes of the student.

    Targets are standardised, so that a few large dimensions do not decide.
    """
    wide = y.astype(np.float64)
    mean, target, std = x.mean(axis=0), wide.mean(axis=0), wide.std(axis=0) + 1e-6
    a, y_val = x - mean, (y_val.astype(np.float64) - target) / std
    penalty = RIDGE * np.trace(a.T @ a) / a.shape[1]
    weights = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ ((wide - target) / std))
    made = (x_val - mean) @ weights
    norms = np.linalg.norm(made, axis=1) * np.linalg.norm(y_val, axis=1)
    return float(((made * y_val).sum(axis=1) / np.maximum(norms, 1e-12)).mean())


def density_knn(tiles: Path, student: Encoder) -> float:
    """Accuracy of the class ``density`` among the neighbours of other images."""
    with (tiles / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    views = np.stack([read_tile(tiles / "tiles" / row["tile"], student.image_px, "resize") for row in rows])
    x = embed(student, views, 64, torch.device("cpu"), torch.float32).numpy()
    labels, groups = (
        np.unique([row[name] for row in rows], return_inverse=True)[1] for name in ("density", "image_id")
    )
    votes = knn_votes(x, labels, x, [K], leave_out(groups, len(x)))
    return float((votes[:, 0] == labels).mean())


# an experiment


def run(setting: Setting, path: Path, repetitions: int, jobs: int) -> None:
    """All arms of a question, then its table and picture."""
    question = yaml.safe_load(path.read_text(encoding="utf-8"))
    given = prepare(setting)
    judged = store_of(setting, given, {})
    todo: dict[str, list[Job]] = {name: [] for name in question["arms"]}
    for name, arm in question["arms"].items():
        print(f"{path.stem}: {name}: store", flush=True)
        store = store_of(setting, given, arm)
        asked = setting.section(arm, "distill")
        prototypes = prototypes_of(setting, store, arm)
        fresh = None
        if arm.get("fresh"):
            fresh = ExtractOptions(**setting.section(arm, "extract"))
        for repetition in range(repetitions):
            start = {} if "weights" in asked else {"random_weights": repetition}
            options = DistillOptions(
                **{
                    "prototypes": prototypes,
                    "threads": 1,
                    "slides": (given[0],),
                    **start,
                    **asked,
                },
                seed=repetition,
                val_every=1 << 30,
            )
            results, untrained = setting.out / "results", bool(arm.get("untrained"))
            todo[name].append(Job(setting, given[0], store, judged, options, fresh, untrained, results))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        under_way = {name: [pool.submit(work, job) for job in of_arm] for name, of_arm in todo.items()}
        arms: dict[str, list[dict[str, float]]] = {}
        for name, futures in under_way.items():
            arms[name] = [future.result() for future in futures]
            for found in arms[name]:
                said = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
                print(f"{path.stem}: {name}: {said}", flush=True)
    report(setting.out / path.stem, question["along"], arms)


def report(out: Path, along: str, arms: Mapping[str, list[dict[str, float]]]) -> None:
    """``OUT.md``: a table of medians and ranges; ``OUT.png``: every run as a dot."""
    figures = [name for name in FIGURES if all(name in found for runs in arms.values() for found in runs)]
    lines = [
        f"| {along} | " + " | ".join(FIGURES[name] for name in figures) + " |",
        "|---" * (len(figures) + 1) + "|",
    ]
    for arm, runs in arms.items():
        cells = []
        for name in figures:
            values = sorted(found[name] for found in runs)
            cells.append(f"{statistics.median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f})")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    write_text(out.with_suffix(".md"), "\n".join(lines) + "\n")
    figure = Figure(figsize=(3.1 * len(figures), 0.32 * len(arms) + 1.3), layout="constrained")
    rows = list(range(len(arms)))[::-1]
    for i, (axes, name) in enumerate(
        zip(figure.subplots(1, len(figures), sharey=True, squeeze=False)[0], figures, strict=True)
    ):
        for row, runs in zip(rows, arms.values(), strict=True):
            values = [found[name] for found in runs]
            axes.plot(values, [row] * len(values), "o", color="0.6", ms=4)
            axes.plot([statistics.median(values)], [row], "|", color="C0", ms=14, mew=2)
        axes.set(title=FIGURES[name], yticks=rows, yticklabels=list(arms))
        axes.grid(axis="y", lw=0.4)
        if i == 0:
            axes.set_ylabel(along)
    with replacing(out.with_suffix(".png")) as partial:
        figure.savefig(partial, format="png", dpi=110)
    print("\n".join(lines), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="+", type=Path, help="Files such as docs/experiments/alpha.yaml.")
    parser.add_argument("--slides", required=True, type=Path, help="Folder of slides.")
    parser.add_argument("--tiles", type=Path, help="Folder of labelled tiles, with labels.csv.")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--base", type=Path, default=Path("docs/experiments/small.yaml"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="Runs at the same time, one thread each.")
    chosen = parser.parse_args(arguments)
    base = yaml.safe_load(chosen.base.read_text(encoding="utf-8"))
    setting = Setting(chosen.out, chosen.slides, chosen.tiles, base)
    for path in chosen.questions:
        run(setting, path, chosen.repetitions, chosen.jobs)


if __name__ == "__main__":
    main()
