"""A store against its packed copy, in turn: files, bytes, verify, and how fast the rows of a training are read.

    python -m tests.bench.bench_packed

The large store of the other benchmarks, 50 slides of 10,000 patches under 4 seeds: 20,000 chunks, most of them pixels.
What is timed is what a training asks of a store, views of shuffled windows with their pixels and targets, without a
student; and ``distill`` with one that takes next to no time: beside another, reading is hidden. CPU seconds of the
process, which other work on the machine changes least.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.dataset import ViewDataset
from pipeline.distill import train
from pipeline.distill.options import DistillOptions
from pipeline.runtime.progress import Silent
from stores.export.export import ExportOptions, export
from stores.format import layout
from stores.verify.structure import verify_structure
from tests.bench.large_store import make
from tests.bench.measure import Ratio, rounds

SLIDES, ROUNDS, VIEWS = 50, 5, 40_000
STUDENT, BATCH = "tests.bench.large_store:student", 256


def read(store: Path) -> float:
    """Views per CPU second."""
    begun, n = time.process_time(), 0
    dataset = ViewDataset(str(store), batch_size=256, check_views="none")
    for batch in dataset:
        n += len(batch.views)
        if n >= VIEWS:
            break
    return n / (time.process_time() - begun)


class _Steps(Silent):
    """Notes the CPU seconds of the process when the first step and the last are over."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def advance(self, *args: Any, **named: Any) -> None:
        self.at.append(time.process_time())


def distilled(store: Path) -> float:
    """Views per CPU second of the steps of ``distill`` after the first."""
    steps = _Steps()
    with tempfile.TemporaryDirectory() as folder:
        n = VIEWS // BATCH
        options = DistillOptions(
            student=STUDENT, random_weights=0, steps=n, batch_size=BATCH, device="cpu", threads=2
        )
        train.distill(store, Path(folder) / "run", options, False, steps)
    assert len(steps.at) == n
    return (n - 1) * BATCH / (steps.at[-1] - steps.at[0])


def compared(name: str, measured: str, loose: Path, packed: Path, least: float | None) -> Ratio:
    """How fast a function of this module is on both stores, in turn, each time in a process of its own."""
    code = f"import sys; from tests.bench.bench_packed import *; print({measured}(Path(sys.argv[1])))"
    ratios: list[float] = []
    for number in rounds(ratios, ROUNDS, patience=120):
        order: Sequence[Path] = (loose, packed) if number % 2 == 0 else (packed, loose)
        speed = {}
        for store in order:
            done = subprocess.run(
                [sys.executable, "-c", code, str(store)], capture_output=True, text=True, check=True
            )
            speed[store] = float(done.stdout)
        ratios.append(speed[packed] / speed[loose])
        print(
            f"  loose {speed[loose]:.0f}, packed {speed[packed]:.0f} views per CPU s, ratio {ratios[-1]:.2f}"
        )
    ratio = Ratio(name, ratios, least, "views per CPU second")
    print(ratio.line())
    return ratio


def main() -> list[Ratio]:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        loose, packed = Path(name) / "loose", Path(name) / "packed"
        make(loose, SLIDES)
        begun = time.process_time()
        export(loose, packed, ExportOptions(form="packed"))
        print(f"packed in {time.process_time() - begun:.1f} CPU s")
        for store in (loose, packed):
            listed = layout.list_files(store)
            chunks = sum(1 for name in listed if layout.parse_chunk(name))
            begun = time.process_time()
            found = verify_structure(store).findings
            took = time.process_time() - begun
            print(
                f"{store.name}: {len(listed)} files, {chunks} of them of chunks, {sum(listed.values()) / 1e6:.1f} MB, "
                f"largest {max(listed.values()) / 1e6:.1f} MB; verify {took:.1f} CPU s, {len(found)} findings"
            )
        return [
            compared("reading views of a packed store, against a loose one", "read", loose, packed, 0.9),
            compared("distill from a packed store, against a loose one", "distilled", loose, packed, None),
        ]


if __name__ == "__main__":
    main()
