"""Jobs of the files in ``docs/how-to/slurm`` on small stores, under the stand-in of `tests.tools.slurm`."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.tools.settings import ROOT
from tests.tools.slurm import Job

FOLDER = ROOT / "docs/how-to/slurm"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
SMALL = {"gpus-per-node": "0", "cpus-per-task": "1"}
STEPS = 40
DISTILL = [
    "distill", "--student", "tests.tools.tiny:slow_student", "--random-weights", "0", "--steps", STEPS,
    "--batch-size", "4", "--val-views", "4", "--val-every", "1000", "--threads", "1", "--device", "cpu",
]  # fmt: skip


def with_environment(folder: Path) -> Path:
    """A folder from which jobs are sent; the environment in it is that of the tests."""
    activate = folder / "venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    return folder


def until_the_end() -> Iterator[list[Job]]:
    """Jobs that end with the test, for a fixture."""
    found: list[Job] = []
    yield found
    for job in found:
        job.kill()


def until(condition: Callable[[], object], job: Job) -> None:
    """Wait for something that a job does."""
    while not condition():
        assert job.process.poll() is None, job.log.read_text()
        time.sleep(0.02)


def steps_of(run: Path) -> list[int]:
    """The steps that a run has on record."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record["step"] for record in records if record["kind"] == "train"]
