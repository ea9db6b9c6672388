"""``store verify``, structure: bytes a second of one core, beside merely reading the files and beside SHA-256.

python -m tests.bench.bench_verify
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stores.verify.structure import verify_structure
from tests.bench.measure import Ratio, race, ratios, spread
from tests.tools import stores

SLIDES, ROWS, DIM, ROUNDS = 3, 4096, 1536, 7


def main() -> list[Ratio]:
    """Measure and print."""
    import dataclasses

    assert stores.RECIPE.teacher is not None
    stores.DIM = DIM
    teacher = dataclasses.replace(stores.RECIPE.teacher, dim=DIM)
    stores.RECIPE = dataclasses.replace(stores.RECIPE, teacher=teacher)
    with tempfile.TemporaryDirectory() as folder:
        store = stores.make_store(Path(folder) / "s", {f"slide-{i}": ROWS for i in range(SLIDES)})
        files = [path for path in store.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        assert verify_structure(store).findings == []
        jobs: dict[str, Callable[[], object]] = {
            "verify": lambda: verify_structure(store),
            "sha256": lambda: [hashlib.sha256(path.read_bytes()).digest() for path in files],
            "read": lambda: [np.frombuffer(path.read_bytes(), np.uint8)[0] for path in files],
        }
        took = race(jobs, ROUNDS, time.process_time)  # all of it is one thread's
    print(f"store of {size / 1e6:.0f} MB, {len(files)} files; MB/s of one core, median (least-most)")
    for name, values in took.items():
        speeds = [size / 1e6 / value for value in values]
        print(f"  {name:<7} {spread(speeds, 0)}")
    detail = f"{spread([size / 1e6 / value for value in took['verify']], 0)} MB/s"
    return [Ratio("store verify against SHA-256", ratios(took["sha256"], took["verify"]), None, detail)]


if __name__ == "__main__":
    main()
