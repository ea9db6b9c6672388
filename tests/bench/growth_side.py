"""What one process of ``bench_growth`` does; prints seconds, peak megabytes and views."""

import json
import re
import sys
import time
from pathlib import Path

from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions


def peak_mb() -> float:
    """Peak resident megabytes of this process: not getrusage's, which are those of the parent where they were more."""
    found = re.search(r"VmHWM:\s+([0-9]+)", Path("/proc/self/status").read_text())
    assert found, "no VmHWM in /proc/self/status"
    return int(found[1]) / 1e3


def main() -> None:
    """Arguments: folder of slides, store."""
    slides, store = Path(sys.argv[1]), Path(sys.argv[2])
    options = ExtractOptions(
        teacher="tests.tools.tiny:teacher", random_weights=0, seeds=4, device="cpu", pixels=True
    )
    first = store.with_name(store.name + "-first")
    extract([slides / "s0.tiff"], first, options, TileOptions(), Silent())
    began = time.perf_counter()
    result = extract([slides], store, options, TileOptions(), Silent())
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, peak_mb(), result.views]))


if __name__ == "__main__":
    main()
