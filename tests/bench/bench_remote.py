"""``distill`` from a folder and from ``s3://`` on the loopback interface, in turn: the demo student on kept pixels.

The server has a process of its own, on the same cores.

    python -m tests.bench.bench_remote
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.demo.synthetic_slides import write_cohort
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from tests.bench.measure import Ratio, rounds
from tests.tools.s3_server import BUCKET, environment, s3_server

SLIDES, STEPS, ROUNDS = 4, 80, 5


def serve() -> None:
    """Run the server until the parent closes our standard input."""
    with s3_server() as endpoint:
        print(endpoint, flush=True)
        sys.stdin.read()


def distill(store: str, run: Path) -> float:
    """Views per second of a training."""
    command = [sys.executable, "cli.py", "distill", "--store", store, "--out", str(run), "--json"]
    command += [
        "--student",
        "demo-student",
        "--random-weights",
        "0",
        "--steps",
        str(STEPS),
        "--val-every",
        "10000",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["views_per_s"])


def main() -> list[Ratio]:
    """Measure and print."""
    server = subprocess.Popen(
        [sys.executable, "-c", "from tests.bench.bench_remote import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    os.environ |= environment(server.stdout.readline().strip())
    url = f"s3://{BUCKET}/bench"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder / "slides", SLIDES, 0)
        store = folder / "store"
        tiling = TileOptions(slides_csv=folder / "slides" / "slides.csv")
        extract(
            [folder / "slides"], store, ExtractOptions(teacher="demo-teacher", pixels=True), tiling, Silent()
        )
        subprocess.run(
            [sys.executable, "cli.py", "store", "push", str(store), url], check=True, capture_output=True
        )
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        print(f"store of {size / 1e6:.0f} MB; {STEPS} steps of 32 views; views/s")
        ratios: list[float] = []
        for number in rounds(ratios, ROUNDS, patience=120):
            pair = {}
            for where in ("local", "remote") if number % 2 == 0 else ("remote", "local"):
                pair[where] = distill(url if where == "remote" else str(store), folder / f"{where}{number}")
                time.sleep(1)
            ratios.append(pair["remote"] / pair["local"])
            print(f"  local {pair['local']:.1f}, s3:// {pair['remote']:.1f}, ratio {ratios[-1]:.2f}")
    server.communicate("")
    ratio = Ratio(
        "distill from s3://, against a folder", ratios, 0.8, "views/s, one server on the same cores"
    )
    print(ratio.line())
    return [ratio]


if __name__ == "__main__":
    main()
