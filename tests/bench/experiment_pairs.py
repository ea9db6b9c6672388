"""Does a pair term make a student robust to scanners? A plain and a robust student of each repetition; prints a table.

``python -m tests.bench.experiment_pairs --tiles DIR --teacher ENCODER --out OUT`` cuts real tiles of tissue, shows them
as four **simulated** scanners would (`tests.tools.pairs.as_scanned`), extracts the teacher on three of them, and trains
students at half its resolution from its own weights. They are judged on images that were held out and on a second set,
under all four scanners. What is there already in OUT is used again.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from pipeline.distill.options import DistillOptions
from pipeline.distill.train import distill
from pipeline.embed.embed import embed
from pipeline.embed.options import EmbedOptions
from pipeline.evaluate.embeddings import Embeddings, load_embeddings
from pipeline.evaluate.options import KnnOptions, PairsOptions, RobustnessOptions
from pipeline.evaluate.pairs import run_pairs
from pipeline.evaluate.protocols import run_knn, run_robustness
from pipeline.evaluate.result import Judged, Result
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.metrics.bootstrap import bootstrap
from pipeline.runtime.progress import Lines
from pipeline.tile.options import TileOptions
from tests.bench.evidence.tissue import SAME_FIELD
from tests.tools.pairs import SCANNERS, as_scanned

ARMS = {"plain": "cosine", "pair": "cosine,pair:0.5"}
REPEATS = range(3)
SIDES = {"lung_colon": 256, "colorectal": 224}
_CORNERS = {(0, 0), (256, 256), (512, 512)}
"""Of the tiles that are cut from an image of `lung_colon`: three that do not touch."""


def make_tiles(tiles: Path, out: Path) -> None:
    """Write the tiles of all scanners and two tables of them; of each class every fourth image is held out."""
    (out / "tiles").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    images: dict[str, list[str]] = {}
    for name, side in SIDES.items():
        for row in csv.DictReader((tiles / name / "labels.csv").open()):
            image = SAME_FIELD.get(row["image_id"], row["image_id"])
            seen = images.setdefault(f"{name} {row['label']}", [])
            seen += [] if image in seen else [image]
            split = "val" if seen.index(image) % 4 == 3 else "train"
            split = split if name == "lung_colon" else "test"
            pixels = np.asarray(PIL.Image.open(tiles / name / row["path"]).convert("RGB"))
            for y in range(0, pixels.shape[0] - side + 1, side):
                for x in range(0, pixels.shape[1] - side + 1, side):
                    if split == "test" or (y, x) in _CORNERS:
                        rows += _as_scanned(
                            pixels[y : y + side, x : x + side], out, split, image, row, (y, x), name
                        )
    chosen = [row for row in rows if row["set"] == "lung_colon" and row["site"] != SCANNERS[3]]
    for file, of in (("train.csv", chosen), ("judge.csv", [row for row in rows if row["split"] != "train"])):
        with (out / file).open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(of)


def _as_scanned(
    pixels: np.ndarray, out: Path, split: str, image: str, row: dict[str, str], at: tuple[int, int], name: str
) -> list[dict[str, str]]:
    found = []
    for scanner in SCANNERS:
        place = f"{row['image_id']}-{at[0]}-{at[1]}"
        path = f"tiles/{name}-{place}-{scanner}.png"
        PIL.Image.fromarray(as_scanned(pixels, scanner)).save(out / path, compress_level=1)
        said = {"group": f"{name}-{split}-{scanner}", "patient_id": f"{name}-{split}", "split": split}
        about = {"label": row["label"], "image": image, "set": name}
        found.append({"path": path, "pair": place, "site": scanner, **said, **about})
    return found


def train(out: Path, teacher: str) -> None:
    """Extract the teacher, train every student, and embed what is judged."""
    report = Lines(sys.stderr)
    table, judged = out / "train.csv", out / "judge.csv"
    teaching = ExtractOptions(teacher=teacher, seeds=2)
    extract([table], out / "store", teaching, TileOptions(mpp=0.5, patch=256), report)
    encoders = {"teacher": teacher}
    for repeat in REPEATS:
        for arm, loss in ARMS.items():
            options = DistillOptions(
                student=teacher, student_px=112, slides=(table,), seed=repeat, loss=loss, steps=60, batch_size=16,
                lr=3e-4, warmup_steps=5, window=256, val_every=1000, val_views=32, check_views="none",
            )  # fmt: skip
            distill(out / "store", out / f"run-{arm}-{repeat}", options, False, report)
            encoders[f"{arm}-{repeat}"] = str(out / f"run-{arm}-{repeat}" / "student")
    for name, encoder in encoders.items():
        embed([judged], out / f"emb-{name}", EmbedOptions(encoder=encoder, fit="crop"), TileOptions(), report)


def _of(embeddings: Embeddings, name: str, scanners: str) -> Embeddings:
    both = zip(embeddings.columns["set"], embeddings.columns["site"], strict=True)
    return embeddings.take(np.array([of == name and site in scanners for of, site in both]))


def judge(embeddings: Embeddings, name: str) -> list[Result]:
    """The figures of one encoder on one set."""
    seen, every = _of(embeddings, name, "abc"), _of(embeddings, name, "abcd")
    original = _of(embeddings, name, "a")
    robust = RobustnessOptions(group="image", k=(10,), replicates=0)
    return [
        run_pairs(seen, PairsOptions(k=(1, 10), group="image", replicates=0)),
        run_pairs(_unseen(every), PairsOptions(k=(1, 10), group="image", replicates=0)),
        run_robustness(every, robust),
        run_knn(original, KnnOptions(group="image", k=(5,), by="leave-out", replicates=0)),
        run_knn(every, KnnOptions(group="image", k=(5,), by="leave-out", replicates=0)),
    ]


def _unseen(every: Embeddings) -> Embeddings:
    """The tiles as they are, and those of the scanner that no student saw."""
    return every.take(np.array([site in "ad" for site in every.columns["site"]]))


TITLES = ("seen scanners", "unseen scanner", "robustness", "kNN, tiles as they are", "kNN, all scanners")


def tables(out: Path) -> None:
    """Print figures: median and range over repetitions, and the mean difference with a 95 % interval over images."""
    for name in SIDES:
        found = {
            arm: [judge(load_embeddings(out / f"emb-{arm}-{repeat}"), name) for repeat in REPEATS]
            for arm in ARMS
        }
        teacher = judge(load_embeddings(out / "emb-teacher"), name)
        print(f"\n{name}\n| figure | teacher | plain | with pairs | difference |\n|---|---|---|---|---|")
        for at, title in enumerate(TITLES):
            plain, pair = ([results[at] for results in found[arm]] for arm in ("plain", "pair"))
            for number, row in enumerate(plain[0].rows):
                values = [[result.rows[number].value or 0.0 for result in of] for of in (plain, pair)]
                of_arms = [f"{np.median(of):.3f} ({min(of):.3f} to {max(of):.3f})" for of in values]
                cell = _difference([_judged(r) for r in plain], [_judged(r) for r in pair], number)
                k = "" if row.k is None else f", k = {row.k}"
                first = teacher[at].rows[number].value
                print(f"| {title}: {row.figure}{k} | {first:.3f} | {' | '.join(of_arms)} | {cell} |")


def _judged(result: Result) -> Judged:
    assert result.judged is not None
    return result.judged


def _difference(plain: Sequence[Judged], pair: Sequence[Judged], number: int) -> str:
    """Mean over repetitions of (with pairs minus plain), the same images drawn for all."""
    if number >= len(plain[0].figures):
        return ""
    groups = [group for *_, group in plain[0].samples()]
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64)

    def mean(weights: np.ndarray, of: Sequence[Judged]) -> np.ndarray:
        return np.mean([judged.statistic(weights) for judged in of], axis=0)

    def difference(weights: np.ndarray) -> np.ndarray:
        return mean(weights, pair) - mean(weights, plain)

    estimate = bootstrap(difference, len(groups), codes, np.random.default_rng(0))[number]
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=Path, required=True, help="folder with lung_colon and colorectal")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if not (given.out / "judge.csv").exists():
        make_tiles(given.tiles, given.out)
    train(given.out, given.teacher)
    tables(given.out)


if __name__ == "__main__":
    main()
