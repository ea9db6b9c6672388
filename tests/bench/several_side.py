"""What one process of ``bench_several`` does: prints CPU seconds of a step, peak megabytes, and what was rendered."""

import collections
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.data import loader
from pipeline.distill import train
from pipeline.distill.options import DistillOptions
from pipeline.distill.weighted import named
from pipeline.runtime.progress import Silent
from pipeline.views.patch_views import rebuild_row
from tests.bench.growth_side import peak_mb

STEPS, BATCH, WINDOW = 12, 32, 128  # with two windows that are filled ahead, less than an epoch of the stores


class Steps(Silent):
    """The CPU time after each step."""

    def __init__(self, rendered: collections.Counter[tuple[str, int, int]]) -> None:
        self.at: list[float] = []
        self._rendered = rendered

    def start(self, what: str, total: int, done: int = 0) -> None:
        self._rendered.clear()  # of what was checked before

    def advance(self, by: int = 1, detail: str = "") -> None:
        self.at.append(time.process_time())


def main() -> None:
    """Arguments: folder of slides, stores."""
    slides, stores = Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]
    rendered: collections.Counter[tuple[str, int, int]] = collections.Counter()

    def counted(
        policy: Any, reader: Any, slide_id: str, row: int, x: int, y: int, wanted: Any, *out: Any
    ) -> Any:
        rendered.update((slide_id, row, view.seed) for view in wanted)
        return rebuild_row(policy, reader, slide_id, row, x, y, wanted, *out)

    loader.rebuild_row = counted  # type: ignore[assignment]
    options = DistillOptions(
        student="demo-student",
        random_weights=0,
        steps=STEPS,
        batch_size=BATCH,
        window=WINDOW,
        slides=(slides,),
        threads=2,
        device="cpu",
        val_every=10_000,
        check_views="none",
    )
    steps = Steps(rendered)
    with tempfile.TemporaryDirectory() as folder:
        train.distill(named([(store, 1.0) for store in stores]), Path(folder) / "run", options, False, steps)
    cpu_s = (steps.at[-1] - steps.at[0]) / (STEPS - 1)
    most = max(rendered.values())
    print(json.dumps({"cpu_s": cpu_s, "peak_mb": peak_mb(), "most": most}))


if __name__ == "__main__":
    main()
