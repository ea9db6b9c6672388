"""``demo``: both stages on small synthetic slides, and a table that says what distillation gained.

Everything goes through the public functions that the commands call. Figures are on held-out patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.loader import Batch
from pipeline.data.split import files_and_recipe, open_split
from pipeline.demo.synthetic_slides import label_of_patch, write_cohort
from pipeline.distill.options import DistillOptions
from pipeline.distill.train import distill
from pipeline.encoders.apply import embed
from pipeline.encoders.load import load_encoder
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.metrics.knn import knn_predict
from pipeline.report.options import ReportOptions
from pipeline.report.report import write_report
from pipeline.runtime.progress import Reporter
from pipeline.tile.options import TileOptions
from stores import sampler
from stores.format import manifest
from stores.info import store_info
from stores.io import files
from stores.io.lock import only_writer

SLIDES, SEED, K = 9, 0, 10
DISTILL = DistillOptions(
    student="demo-student",
    random_weights=0,
    steps=240,
    window=2048,  # of every machine, so that its figures are
    lr=2e-3,
    warmup_steps=50,
    val_every=100,
    val_views=512,
    check_views="sample",
)

REPORT = ReportOptions(max_slides=3, max_patches=100)


@dataclass(frozen=True, slots=True)
class Shown:
    """What the demo found."""

    out: Path
    summary: Mapping[str, Any]
    """What ``summary.json`` holds."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.summary)

    def lines(self) -> list[str]:
        """The same as a table."""
        found = self.summary
        rows = [
            ("views", f"{found['views']}"),
            ("bytes per view", f"{found['bytes_per_view']:.0f}"),
            ("steps", f"{found['steps']}"),
            ("loss", f"{found['loss_first']:.3f} -> {found['loss_last']:.3f}"),
            ("cosine to the teacher", f"{found['cosine_before']:.3f} -> {found['cosine_after']:.3f}"),
            ("CKA to the teacher", f"{found['cka_before']:.3f} -> {found['cka_after']:.3f}"),
            ("kNN accuracy of tissue types", ""),
            ("  always the commonest type", f"{found['knn_chance']:.3f}"),
            ("  untrained student", f"{found['knn_untrained']:.3f}"),
            ("  distilled student", f"{found['knn_student']:.3f}"),
            ("  teacher", f"{found['knn_teacher']:.3f}"),
        ]
        return [
            *(f"{name:<30} {value}".rstrip() for name, value in rows),
            "pictures:",
            *(f"  {path}" for path in found["pictures"]),
            f"figures: {self.out / 'summary.json'}",
            f"open in a browser: {self.out / 'report.html'}",
        ]


def run_demo(out: Path, report: Reporter) -> Shown:
    """Write slides, tile, extract, distill and evaluate below `out`."""
    with only_writer(out):
        return _run_demo(out, report)


def _run_demo(out: Path, report: Reporter) -> Shown:
    folder, store, run = out / "slides", out / "store", out / "run"
    cohort = write_cohort(folder, SLIDES, SEED)
    tile_options = TileOptions(slides_csv=folder / "slides.csv")
    extract([folder], store, ExtractOptions(teacher="demo-teacher"), tile_options, report)
    options = DistillOptions(**{**asdict(DISTILL), "slides": (folder,)})
    trained = distill(store, run, options, False, report)
    labels = {slide.path.stem: slide.labels for slide in cohort}
    info = store_info(store)
    summary = {
        "views": info["views"],
        "bytes_per_view": info["bytes_per_view"],
        **{name: trained[name] for name in ("steps", "loss_first", "loss_last")},
        **{
            f"{name}_{when}": trained[f"{name}_{when}"]
            for name in ("cosine", "cka")
            for when in ("before", "after")
        },
        **_knn_accuracies(store, run, folder, labels, options),
        "pictures": [
            *sorted(str(path) for path in (store / "pictures").glob("*.png")),
            str(run / "curves.png"),
        ],
    }
    files.write_json(out / "summary.json", summary)
    write_report(run, out / "report.html", replace(REPORT, store=store, slides=(folder,)), report)
    return Shown(out, summary)


def _knn_accuracies(
    store: Path, run: Path, folder: Path, labels: Mapping[str, npt.NDArray[np.uint8]], options: DistillOptions
) -> dict[str, Any]:
    """Accuracy of the tissue type of held-out patches, voted by their neighbours among the training patches."""
    files_of_store, recipe = files_and_recipe(store)
    parts: dict[str, tuple[Batch, npt.NDArray[np.int64]]] = {}
    for name in ("train", "val"):
        split = open_split(files_of_store, recipe, name, 1, [folder])
        batch = split.sample(0, split.n_views, torch.get_num_threads())
        parts[name] = batch, _labels_of(store, split.units, labels)
    students = {
        "knn_untrained": load_encoder(options.student, random_weights=options.random_weights),
        "knn_student": load_encoder(str(run / "student")),
    }

    def accuracy(train: npt.NDArray[Any], val: npt.NDArray[Any]) -> float:
        known, asked = (parts[split][1] >= 0 for split in ("train", "val"))  # mixed patches have no type
        voted = knn_predict(train[known], parts["train"][1][known], val[asked], K)
        return float((voted == parts["val"][1][asked]).mean())

    result: dict[str, Any] = {"knn_teacher": accuracy(parts["train"][0].targets, parts["val"][0].targets)}
    for name, student in students.items():
        both = [
            embed(student, parts[s][0].views, 32, torch.device("cpu"), torch.float32).numpy() for s in parts
        ]
        result[name] = accuracy(*both)
    types = parts["val"][1]
    result["knn_chance"] = float(np.bincount(types[types >= 0]).max() / (types >= 0).sum())
    return result


def _labels_of(
    store: Path, units: Sequence[sampler.Segment], labels: Mapping[str, npt.NDArray[np.uint8]]
) -> npt.NDArray[np.int64]:
    """The tissue type of every patch of `units`, in the order in which `load_views` gives them; -1 when mixed."""
    found = []
    for unit in units:
        patches = manifest.read_patches(store, unit.commit.slide_id)
        for row in unit.rows.tolist():
            place = int(patches.x_px0[row]), int(patches.y_px0[row])
            found.append(label_of_patch(labels[unit.commit.slide_id], *place))
    return np.array(found, np.int64)
