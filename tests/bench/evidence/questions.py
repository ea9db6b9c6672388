"""Questions about several teachers, asked of the tissue, folds and judge of the evidence.

``python -m tests.bench.evidence.questions QUESTION.yaml ... --slides DIR --tiles DIR --out DIR`` (``make teachers``).
The questions of ``docs/experiments/several-teachers`` name their arms; ``tissue.yaml`` there says what they share: the
teachers, and the options of a student. Every arm is trained three times, without one fold each. What is done is kept:
start it again and it continues. With the folder of ``make evidence`` as ``--out``, tissue and the first store are
shared.
"""

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.distill.options import DistillOptions
from pipeline.distill.train import distill, load_student
from pipeline.distill.weighted import WeightedStore
from pipeline.encoders.load import load_encoder
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.runtime.interrupt import ending_with_parent
from pipeline.runtime.progress import Reporter, Silent, reporter_for
from pipeline.tile.options import TileOptions
from stores.combine.subset import Selection, subset
from stores.format import recipe
from stores.io.files import write_json
from tests.bench.evidence import answers
from tests.bench.evidence.encoder import LITES, install_encoder
from tests.bench.evidence.judge import Judge
from tests.bench.evidence.runs import SEEDS
from tests.bench.evidence.tissue import FOLDS, make_tissue

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where things are, and what all arms share."""

    out: Path
    table: Path
    base: Section

    @property
    def judged(self) -> Path:
        """The store of the first teacher, that of the evidence: its views judge every student."""
        return self.out / "stores" / "all"

    def store(self, teacher: str) -> Path:
        """All tissue under a teacher."""
        return self.judged if teacher == LITES[0] else self.out / "stores" / teacher

    def without(self, teacher: str, fold: int) -> Path:
        """What a student of `fold` trains on."""
        whole = self.store(teacher)
        return whole.with_name(f"{whole.name}-without-{fold}-4")  # as the evidence calls it

    def options(self, changes: Section, fold: int | None, **more: Any) -> DistillOptions:
        """Of a student; the fold is the seed of weights and order."""
        return DistillOptions(
            **{**self.base["distill"], **changes, **more},
            random_weights=fold or 0,
            seed=fold or 0,
            threads=1,
            device="cpu",
            checkpoint_every=500,
            val_every=1 << 30,
            check_views="sample",
            slides=(self.table.parent,),
        )


@dataclass(frozen=True)
class Arm:
    """One kind of run: teachers with their weights (none for the untrained student), options that differ."""

    teachers: tuple[tuple[str, float], ...]
    changes: Section

    @classmethod
    def of(cls, said: Section) -> "Arm":
        """From YAML: ``teachers`` a list, or a mapping to weights."""
        teachers = said.get("teachers", [])
        weighted = teachers.items() if isinstance(teachers, Mapping) else [(name, 1.0) for name in teachers]
        return cls(tuple((name, float(weight)) for name, weight in weighted), said.get("distill", {}))


def make_teacher(setting: Setting, name: str, report: Reporter) -> Path:
    """The folder of a teacher's encoder: a package's, or a student of others, trained on all tissue."""
    folder = setting.out / "encoder"
    if name in LITES:
        return install_encoder(folder, name)
    asked = setting.base["teachers"][name]["distilled"]
    run = folder / name
    stores = [WeightedStore(setting.store(other), 1.0) for other in asked["teachers"]]
    distill(stores, run, setting.options(asked["distill"], None), False, report)
    return run / "student"


def make_store(setting: Setting, name: str, report: Reporter) -> None:
    """A teacher's store, and its share for each fold."""
    asked = setting.base["teachers"][name].get("extract", {})
    teaching = ExtractOptions(
        **{
            "teacher": str(make_teacher(setting, name, report)),
            "seeds": SEEDS if name == LITES[0] else setting.base["distill"]["seeds"],
            "pixels": name == LITES[0],
            "channels_last": name in LITES,
            "device": "cpu",
            "batch_size": 64,
            **asked,
        }
    )
    extract([setting.table], setting.store(name), teaching, TileOptions(), report)
    for fold in range(FOLDS):
        out = setting.without(name, fold)
        if not (out / "recipe.json").exists():
            others = tuple(f"fold={other}" for other in ("", *map(str, range(FOLDS))) if other != str(fold))
            subset(setting.store(name), out, Selection(where=others), Silent())


def result_of(setting: Setting, arm: Arm, fold: int, judged_by: Sequence[str]) -> Path:
    """The file of a result, named by all that decides it: what the files say, stores, tissue."""
    options = {**setting.base["distill"], **arm.changes}
    digests = [recipe.load(setting.store(name)).digest() for name, _ in arm.teachers]
    tissue = hashlib.sha256(setting.table.read_bytes()).hexdigest()
    said = json.dumps([arm.teachers, options, digests, fold, tissue, list(judged_by)], sort_keys=True)
    return setting.out / "runs" / f"{hashlib.sha256(said.encode()).hexdigest()[:12]}.json"


def work(setting: Setting, arm: Arm, fold: int, judged_by: Sequence[str]) -> dict[str, Any]:
    """Train a student that never sees `fold`, judge it on `fold`, keep the result; read it when it is there."""
    path = result_of(setting, arm, fold, judged_by)
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    with ending_with_parent():
        return _work(setting, arm, fold, judged_by, path)


def _work(setting: Setting, arm: Arm, fold: int, judged_by: Sequence[str], path: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    judge, run, began = Judge(setting.judged, setting.table), path.with_suffix(""), time.monotonic()
    options = setting.options(arm.changes, fold)
    if arm.teachers:
        stores = [WeightedStore(setting.without(name, fold), weight) for name, weight in arm.teachers]
        distill(stores if len(stores) > 1 else stores[0].store, run, options, False, Silent())
        student = load_encoder(str(run / "student"))
    else:
        student = load_student(options)
        if options.student_px:
            student = student.shrinking(judge.views[0].pixels.shape[1] // options.student_px)
    seconds = time.monotonic() - began
    features = judge.features(student, 0)
    agreement = {
        name: judge.agreement(features[0], judge.targets(setting.store(name)), fold) for name in judged_by
    }
    found = judge.figures(features, fold) | {"agreement": agreement, "fold": fold, "seconds": seconds}
    write_json(path, found)
    return found


def ask(setting: Setting, path: Path, jobs: int) -> None:
    """All arms of a question, then its tables and its picture."""
    question = yaml.safe_load(path.read_text(encoding="utf-8"))
    arms = {name: Arm.of(said or {}) for name, said in question["arms"].items()}
    with reporter_for(sys.stderr) as report:
        for name in setting.base["teachers"]:
            if name in question["agreement"] or any(name in dict(arm.teachers) for arm in arms.values()):
                make_store(setting, name, report)
    _ = Judge(setting.judged, setting.table).views  # rendered once, mapped by every run
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in arms}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        todo = {
            pool.submit(work, setting, arm, fold, question["agreement"]): (name, fold)
            for fold in range(FOLDS)
            for name, arm in arms.items()
        }
        for number, future in enumerate(as_completed(todo), start=1):
            name, fold = todo[future]
            if future.exception():
                pool.shutdown(cancel_futures=True)  # what runs is finished and kept
            found[name][fold] = future.result()
            print(f"{path.stem}: {number}/{len(todo)} {name}, fold {fold}", flush=True)
    results = {name: [of_arm[fold] for fold in range(FOLDS)] for name, of_arm in found.items()}
    answers.report(setting.out / path.stem, question, results)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="+", type=Path)
    parser.add_argument("--base", type=Path, default=Path("docs/experiments/several-teachers/tissue.yaml"))
    parser.add_argument("--slides", required=True, type=Path, help="Folder with the two slides.")
    parser.add_argument("--tiles", required=True, type=Path, help="Folder with lung_colon and colorectal.")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="Runs at the same time, one thread each.")
    chosen = parser.parse_args(arguments)
    base = yaml.safe_load(chosen.base.read_text(encoding="utf-8"))
    table = make_tissue(chosen.slides, chosen.tiles, chosen.out / "tissue")
    for path in chosen.questions:
        ask(Setting(chosen.out, table, base), path, chosen.jobs)


if __name__ == "__main__":
    main()
