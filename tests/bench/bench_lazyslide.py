"""``g2l embed`` beside LazySlide: the same slide, the same small timm model, the same CPU, each in its environment.

    python -m venv OTHER && OTHER/bin/pip install lazyslide timm torch torchvision
    python -m tests.bench.bench_lazyslide OTHER/bin/python

Each run has a process of its own; counted are reading the tiles and encoding them (ours writes them too), from when the
model is there. LazySlide runs with and without worker processes; the faster one counts.
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

MODEL, BATCH, ROUNDS = "mobilenetv3_small_100", 16, 5


def run(command: list[str]) -> dict[str, float]:
    """The last line that a process prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> list[Ratio]:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("python", type=Path, help="of the environment that has LazySlide")
    other = parser.parse_args().python
    side, threads = Path(__file__).with_name("lazyslide_side.py"), threads_of(None, 1)
    ours: list[float] = []
    theirs: dict[int, list[float]] = {0: [], threads: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = pixels_of(APERIO) if APERIO.exists() else paint_slide(5, 2048, 2048)[0]
        slide = tiled(folder / "slide.tiff", np.tile(pixels, (3, 3, 1)), 256, "jpeg")
        for number in range(ROUNDS):
            found = run(
                [
                    sys.executable,
                    "-m",
                    "tests.bench.embed_side",
                    str(slide),
                    MODEL,
                    str(BATCH),
                    str(folder / f"{number}"),
                ]
            )
            ours.append(found["views"] / found["seconds"])
            for workers, speeds in theirs.items():
                args = [MODEL, str(BATCH), str(workers), str(threads)]
                other_found = run([str(other), str(side), str(slide), *args])
                speeds.append(other_found["views"] / other_found["seconds"])
            say(
                f"  {found}, {other_found}: {ours[-1]:.0f} and {[round(s[-1]) for s in theirs.values()]} views/s"
            )
    best = max(theirs, key=lambda workers: sorted(theirs[workers])[ROUNDS // 2])
    ratio = Ratio(
        "embed against LazySlide",
        ratios(ours, theirs[best]),
        1,
        f"{spread(ours, 0)} views/s, LazySlide {other_found['version']} {spread(theirs[best], 0)} with {best} workers",
    )
    say(ratio.line())
    return [ratio]


if __name__ == "__main__":
    main()
