"""The SLURM files for several workers and several nodes, with real workers: ``make slurm``.

Their waiting and signals are tried in `tests.test_slurm` in milliseconds; here is the work itself, with a preemption
and a time limit. It takes a minute of two CPUs, so it is not among the tests.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.extract import contents
from tests.tools.slurm import Job
from tests.tools.slurm_jobs import (
    DISTILL,
    ENVIRONMENT,
    FOLDER,
    SMALL,
    STEPS,
    steps_of,
    until,
    until_the_end,
    with_environment,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_environment(tmp_path)


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    yield from until_the_end()


def test_an_array_of_workers(store: Path, slides: Path, folder: Path, jobs: list[Job]) -> None:
    """Three tasks make the store of one process; one is preempted, and one begins when all is done."""
    made = folder / "made"
    args = [
        "extract-teacher", slides, "--store", made, "--slides-csv", slides / "slides.csv", "--seeds", "3", "--pixels",
        "--teacher", "tests.tools.tiny:teacher", "--random-weights", "0", "--threads", "1", "--device", "cpu",
    ]  # fmt: skip
    array = [
        Job(FOLDER / "dask-array.sbatch", args, folder, 50 + task, SMALL, (50, task), ENVIRONMENT)
        for task in range(3)
    ]
    jobs += array[:2]
    for job in array[:2]:
        job.start()
    until(lambda: "Registered to" in array[1].log.read_text(), array[1])
    array[1].preempt()
    assert array[0].wait() == 0, array[0].log.read_text()
    assert array[1].wait() == 0, array[1].log.read_text()
    jobs.append(array[2].start())
    assert array[2].wait() == 0, array[2].log.read_text()
    assert array[2].log.read_text() == ""
    assert (folder / "g2l-50/ended").exists()
    assert not (folder / "g2l-50/scheduler.json").exists()
    shutil.rmtree(made / "logs")
    expected = contents(store)
    assert {name: of for name, of in contents(made).items() if name in expected} == expected


def test_torchrun_over_two_nodes(store: Path, folder: Path, jobs: list[Job]) -> None:
    """A process on each of two nodes; out of time once."""
    run = folder / "run"
    args = [*DISTILL, "--store", store, "--out", run]
    options = {**SMALL, "nodes": "2"}
    port = 60_000 + os.getpid() % 5000  # decides the number of the port
    job = Job(FOLDER / "torchrun.sbatch", args, folder, port, options, environment=ENVIRONMENT)
    jobs.append(job.start())
    until(lambda: len(steps_of(run)) > 2, job)
    job.signal_batch(signal.SIGUSR1)
    assert job.wait() == 0, job.log.read_text()
    assert job.restarts == 1
    assert steps_of(run) == list(range(1, STEPS + 1))
    assert "2 processes" in job.log.read_text()
