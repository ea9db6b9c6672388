"""A store against its packed copy, in turn: files, bytes, verify, and how fast the rows of a training are read.

    python -m tests.bench.bench_packed

The large store of the other benchmarks, 50 slides of 10,000 patches under 4 seeds: 20,000 chunks, most of them pixels.
What is timed is what a training asks of a store, views of shuffled windows with their pixels and targets, without a
student: beside one, reading is hidden. CPU seconds of the process, which other work on the machine changes least.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.data.dataset import ViewDataset
from stores.export.export import ExportOptions, export
from stores.format import layout
from stores.verify.structure import verify_structure
from tests.bench.large_store import make
from tests.bench.measure import Ratio, rounds

SLIDES, ROUNDS, VIEWS = 50, 5, 40_000


def read(store: Path) -> float:
    """Views per CPU second."""
    begun, n = time.process_time(), 0
    dataset = ViewDataset(str(store), batch_size=256, check_views="none")
    for batch in dataset:
        n += len(batch.views)
        if n >= VIEWS:
            break
    return n / (time.process_time() - begun)


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
        ratios: list[float] = []
        for number in rounds(ratios, ROUNDS, patience=120):
            order = (loose, packed) if number % 2 == 0 else (packed, loose)
            command = [
                sys.executable,
                "-c",
                "import sys; from tests.bench.bench_packed import *; print(read(Path(sys.argv[1])))",
            ]
            speed = {
                store: float(
                    subprocess.run([*command, str(store)], capture_output=True, text=True, check=True).stdout
                )
                for store in order
            }
            ratios.append(speed[packed] / speed[loose])
            print(
                f"  loose {speed[loose]:.0f}, packed {speed[packed]:.0f} views per CPU s, ratio {ratios[-1]:.2f}"
            )
    ratio = Ratio("reading views of a packed store, against a loose one", ratios, 0.9, "views per CPU second")
    print(ratio.line())
    return [ratio]


if __name__ == "__main__":
    main()
