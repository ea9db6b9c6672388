"""What 100,000 tiles of 96 px in one HDF5 file cost: ``python -m tests.bench.bench_tiles FOLDER [N]``.

Tiles are noise over one colour, so that gzip leaves about half of them. Each command is a process of its own; printed
are its seconds, its peak memory, and the files of the store.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.tools.settings import ROOT

_AT_ONCE = 1000


def write(path: Path, n: int, side: int = 96) -> None:
    """Write `n` tiles as PatchCamelyon has them."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        x = file.create_dataset(
            "x",
            (n, side, side, 3),
            np.uint8,
            chunks=(32, side, side, 3),
            compression="gzip",
            compression_opts=1,
        )
        for start in range(0, n, _AT_ONCE):
            count = min(_AT_ONCE, n - start)
            colour = rng.integers(60, 200, (count, 1, 1, 3), dtype=np.uint8)
            x[start : start + count] = colour + rng.integers(0, 32, (count, side, side, 3), dtype=np.uint8)


def run(*arguments: object) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "cli.py", *map(str, arguments)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{arguments[0]} ended with {status}")
    return time.monotonic() - began, usage.ru_maxrss / 1000


def main(folder: Path, n: int) -> None:
    """Write the tiles if they are not there, and measure."""
    stacked, store = folder / "many_x.h5", folder / "store"
    if not stacked.exists():
        write(stacked, n)
    commands: dict[str, tuple[object, ...]] = {
        "tile": ("tile", stacked, "--patch", 96, "--store", store),
        "extract-teacher": (
            *("extract-teacher", stacked, "--store", store, "--seeds", 1, "--random-weights", 0),
            *("--teacher", "tests.tools.tiny:teacher_of_96_px", "--batch-size", 256),
        ),
        "distill, one step": (
            *("distill", "--store", store, "--slides", stacked, "--out", folder / "run", "--steps", 1),
            *("--student", "tests.tools.tiny:teacher_of_96_px", "--random-weights", 1),
        ),
        "verify": ("store", "verify", store),
    }
    for name, command in commands.items():
        seconds, memory = run(*command)
        count = sum(len(files) for _, _, files in os.walk(store))
        print(f"{name}: {seconds:.1f} s, {memory:.0f} MB at most, {count} files in the store")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
