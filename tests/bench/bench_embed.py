"""``g2l embed`` beside LazySlide and slide2vec: the same slide, timm models and CPU, each in its environment.

    python -m venv OTHER && OTHER/bin/pip install lazyslide timm torch torchvision
    python -m tests.bench.bench_embed --beside lazyslide OTHER/bin/python

Each run has a process of its own; counted are reading the tiles and encoding them (ours and slide2vec's write them
too), from when the model is there. The others run with and without worker processes; the faster one counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.demo.synthetic_slides import paint_slide
from pipeline.runtime.work import threads_of
from tests.bench.bench_read import APERIO, pixels_of, tiled
from tests.bench.measure import Ratio, ratios, say, spread

MODELS, BATCH, ROUNDS = ("mobilenetv3_small_100", "vit_small_patch16_224"), 16, 5
OTHERS = ("lazyslide", "slide2vec")


def run(command: list[str]) -> float:
    """Views a second, of what a process prints in its last line."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    say(f"  {command[1:4]}: {found}")
    return found["views"] / found["seconds"]


def compare(model: str, others: list[tuple[str, str]], slide: Path, folder: Path, rounds: int) -> list[Ratio]:
    """Ours against each of the others, in turns."""
    threads = threads_of(None, 1)
    ours: list[float] = []
    theirs: dict[tuple[str, int], list[float]] = {
        (name, workers): [] for name, _ in others for workers in (0, threads)
    }
    for number in range(rounds):
        side = [
            "-m",
            "tests.bench.embed_side",
            str(slide),
            model,
            str(BATCH),
            str(folder / f"{model}-{number}"),
        ]
        ours.append(run([sys.executable, *side]))
        for name, python in others:
            script = str(Path(__file__).with_name(f"{name}_side.py"))
            for workers in (0, threads):
                args = [str(slide), model, str(BATCH), str(workers), str(threads)]
                theirs[name, workers].append(run([python, script, *args]))
    found = []
    for name, _ in others:
        best = max((0, threads), key=lambda workers: sorted(theirs[name, workers])[rounds // 2])
        speeds = theirs[name, best]
        detail = f"{spread(ours, 1)} views/s, {name} {spread(speeds, 1)} with {best} workers"
        found.append(Ratio(f"embed against {name}, {model}", ratios(ours, speeds), 1, detail))
    return found


def main() -> list[Ratio]:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--beside",
        nargs=2,
        action="append",
        required=True,
        metavar=("TOOL", "PYTHON"),
        help=" or ".join(OTHERS),
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = pixels_of(APERIO) if APERIO.exists() else paint_slide(5, 2048, 2048)[0]
        slide = tiled(folder / "slide.tiff", np.tile(pixels, (3, 3, 1)), 256, "jpeg")
        for model in given.models:
            found += compare(model, given.beside, slide, folder, given.rounds)
    for ratio in found:
        say(ratio.line())
    return found


if __name__ == "__main__":
    main()
