"""The runs of the evidence: what they vary, one run in a process of its own, its result in a file."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.distill.options import DistillOptions
from pipeline.distill.train import distill, load_student
from pipeline.encoders.encoder import Encoder
from pipeline.encoders.load import load_encoder
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.runtime.interrupt import ending_with_parent
from pipeline.runtime.options import to_json
from pipeline.runtime.progress import Reporter, Silent
from pipeline.tile.options import TileOptions
from stores.combine.subset import Selection, subset
from stores.format import recipe
from stores.io.files import write_json
from tests.bench.evidence.judge import Judge
from tests.bench.evidence.tissue import FOLDS, PARTS
from tests.bench.fresh_views import distill_fresh

SEEDS = 8
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Arm:
    """What one kind of run varies."""

    student: str
    """``cnn`` or ``vit``, see `students`."""
    loss: str = ""
    """Empty for the untrained student."""
    steps: int = 500
    alpha: float = 4.0
    views: int | None = 4
    """Stored views of each patch; None is a fresh one at every step, the teacher in memory."""
    parts: int = PARTS
    """Of four parts of the tissue, how many train."""
    untaught: bool = False
    """The control: a teacher of the same architecture with random weights, which knows nothing."""

    @property
    def name(self) -> str:
        """For files and messages."""
        if not self.loss:
            return f"{self.student} untrained"
        said = [f"{self.student} {self.loss}", f"{self.steps} steps"]
        if self.alpha != 4:
            said.append(f"alpha {self.alpha:g}")
        if self.views != 4:
            said.append("fresh views" if self.views is None else f"{self.views} views")
        if self.parts != PARTS:
            said.append(f"{self.parts}/{PARTS} of the tissue")
        return ", ".join(said) + (" (random teacher)" if self.untaught else "")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the evidence lies."""

    out: Path
    table: Path
    teacher: Path

    @property
    def store(self) -> Path:
        """Of all tissue, under all seeds."""
        return self.out / "stores" / "all"

    @property
    def control(self) -> Path:
        """The same by a teacher that knows nothing."""
        return self.out / "stores" / "control"

    def teaching(self) -> ExtractOptions:
        """How the teacher looks at the tissue."""
        return ExtractOptions(
            teacher=str(self.teacher),
            seeds=SEEDS,
            pixels=True,
            channels_last=True,
            device="cpu",
            batch_size=64,
        )

    def make_stores(self, report: Reporter) -> None:
        """Run the teacher once over every view of all tissue, and the one that knows nothing over half of them."""
        control = dataclasses.replace(
            self.teaching(), teacher="tf_efficientnet_lite0", random_weights=0, seeds=4
        )
        for store, teaching in ((self.store, self.teaching()), (self.control, control)):
            extract([self.table], store, teaching, TileOptions(), report)

    def run_of(self, arm: Arm, fold: int) -> Path:
        """The folder of a run, named by all that decides it: what it varies, all other options, tissue and targets."""
        options = to_json(_options(arm, fold))
        stores = [recipe.load(store).digest() for store in (self.store, self.control)]
        tissue = hashlib.sha256(self.table.read_bytes()).hexdigest()
        said = json.dumps([dataclasses.asdict(arm), fold, options, stores, tissue], sort_keys=True)
        return self.out / "runs" / hashlib.sha256(said.encode()).hexdigest()[:12]

    def store_of(self, fold: int, parts: int, untaught: bool = False) -> Path:
        """What a student of `fold` trains on: some parts of the slides and of the other folds."""
        whole = self.control if untaught else self.store
        out = whole.with_name(f"{whole.name}-without-{fold}-{parts}")
        if not (out / "recipe.json").exists():
            where = [f"part={part}" for part in range(parts)]
            where += [f"fold={other}" for other in ("", *map(str, range(FOLDS))) if other != str(fold)]
            subset(whole, out, Selection(where=tuple(where)), Silent())
        return out


def work(place: Place, arm: Arm, fold: int) -> dict[str, Any]:
    """Train a student that never sees `fold`, judge it on `fold`, keep the result; read it when it is there."""
    run = place.run_of(arm, fold)
    path = run.with_suffix(".json")
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    with ending_with_parent():
        return _work(place, arm, fold, run)


def _work(place: Place, arm: Arm, fold: int, run: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    judge, began = Judge(place.store, place.table), time.monotonic()
    if arm.loss:
        student = _trained(place, arm, fold, run)
    else:
        student = load_student(_options(arm, fold))
    trained = time.monotonic() - began
    found = judge.figures(judge.features(student), fold) | {"arm": arm.name, "fold": fold, "seconds": trained}
    write_json(run.with_suffix(".json"), found)
    return found


def _trained(place: Place, arm: Arm, fold: int, run: Path) -> Encoder:
    store, options = place.store_of(fold, arm.parts, arm.untaught), _options(arm, fold)
    if arm.views is None:
        return distill_fresh(store, options, place.teaching())
    distill(store, run, options, False, Silent())
    return load_encoder(options.student, weights=run / "student")


def _options(arm: Arm, fold: int) -> DistillOptions:
    """The defaults of a student from scratch; the fold is the seed of weights and order."""
    return DistillOptions(
        student=f"tests.bench.evidence.students:{arm.student}",
        random_weights=fold,
        seed=fold,
        loss=arm.loss or "mse",
        alpha=arm.alpha,
        steps=arm.steps,
        batch_size=BATCH,
        window=2048,  # of every machine
        seeds=arm.views,
        threads=1,
        device="cpu",
        checkpoint_every=500,
        val_every=1 << 30,
        check_views="sample",
    )
