"""The files of ``docs/how-to/slurm``: linted, and run under a stand-in for SLURM.

What is dear, an array of workers and two nodes, is in `tests.torture.slurm_end_to_end` (``make slurm``).
"""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.settings import ROOT
from tests.tools.slurm import Job, directives
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

NAMES = ("one-gpu", "dask-array", "torchrun")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_environment(tmp_path)


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    yield from until_the_end()


@pytest.fixture
def pretended(folder: Path) -> Path:
    """Programs in the place of g2l, torchrun and dask, which take milliseconds: each does what the file ``plan`` says.

    A line of it is for one start of g2l: an exit code, or ``wait`` for a signal, which ends it as it ends g2l.
    None waits for ever: a test that is killed leaves nothing behind.
    """
    programs = {
        "torchrun": 'while [ "$1" != --no-python ]; do shift; done; shift; exec "$@"',
        "g2l": """
            echo "g2l $*" >> starts
            todo=$(sed -n "$(wc -l < starts)p" plan)
            [ "$todo" = wait ] || exit "$todo"
            trap 'exit 130' TERM
            touch waits
            for ((i = 0; i < 6000; i++)); do sleep 0.01; done""",
        "dask": """
            echo "dask $1" >> dask
            trap 'exit 0' TERM
            [ "$1" = worker ] || echo '{"address": "tcp://here:1"}' > g2l-7/scheduler.json
            for ((i = 0; i < 6000; i++)); do [ -e g2l-7/scheduler.json ] || exit 0; sleep 0.01; done""",
    }
    for name, text in programs.items():
        program = folder / "programs" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    (folder / "venv/bin/activate").write_text(
        f'PATH="{folder}/programs:{Path(sys.executable).parent}:$PATH"\n'  # an environment has a python
    )
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_sound(name: str) -> None:
    path = FOLDER / f"{name}.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    said = directives(path)
    assert {"requeue", "signal", "open-mode", "time", "output"} <= said.keys()
    assert said["open-mode"] == "append"  # a job that continues does not lose what it said before
    assert path.read_text().count("set -euo pipefail") == 1
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which(
        "shellcheck"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install -c constraints.txt -e '.[test]'")
    subprocess.run([shellcheck, path], check=True)


def test_no_file_is_forgotten() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(NAMES)
    page = (ROOT / "docs/how-to/run-on-a-cluster.md").read_text()
    assert set(re.findall(r"slurm/([\w-]+)\.sbatch", page)) == set(NAMES)


def test_two_files_wait_alike() -> None:
    """What is tried with one GPU is what runs on several nodes."""
    one, several = ((FOLDER / f"{name}.sbatch").read_text() for name in ("one-gpu", "torchrun"))
    assert one[one.index("out_of_time=no") :] == several[several.index("out_of_time=no") :]


@pytest.mark.parametrize("name", ["one-gpu", "torchrun"])
@pytest.mark.parametrize(
    ("plan", "event", "code", "restarts"),
    [
        ("0", None, 0, 0),
        ("2", None, 2, 0),  # a mistake does not come back
        ("wait 0", "time", 0, 1),
        ("wait 2", "time", 2, 1),
        ("wait 3", "preempted", 3, 1),
    ],
)
def test_what_ends_a_job(
    name: str, plan: str, event: str | None, code: int, restarts: int, pretended: Path, jobs: list[Job]
) -> None:
    (pretended / "plan").write_text(plan.replace(" ", "\n") + "\n")
    options = {**SMALL, "nodes": "1"}
    job = Job(FOLDER / f"{name}.sbatch", ["distill", "--out", "a b"], pretended, 7, options)
    jobs.append(job.start())
    if event is not None:
        until((pretended / "waits").exists, job)
        job.signal_batch(signal.SIGUSR1) if event == "time" else job.preempt()
    assert job.wait() == code, job.log.read_text()
    assert job.restarts == restarts
    assert (pretended / "starts").read_text() == "g2l distill --out a b\n" * (1 + restarts)


@pytest.mark.parametrize(
    ("plan", "event", "code", "restarts"),
    [
        ("0", None, 0, 0),
        ("2", None, 2, 0),
        ("wait 0", "time", 0, 1),
        ("wait 0", "preempted", 0, 1),
    ],
)
def test_what_ends_an_array(
    plan: str, event: str | None, code: int, restarts: int, pretended: Path, jobs: list[Job]
) -> None:
    (pretended / "plan").write_text(plan.replace(" ", "\n") + "\n")
    script = FOLDER / "dask-array.sbatch"
    first, second = (Job(script, ["tile", "S"], pretended, 7 + task, SMALL, (7, task)) for task in range(2))
    jobs += [first.start(), second.start()]
    if event is not None:
        until((pretended / "waits").exists, first)
        first.signal_batch(signal.SIGUSR1) if event == "time" else first.preempt()
    assert first.wait() == code, first.log.read_text()
    assert first.restarts == restarts
    assert second.wait() == 0, second.log.read_text()
    assert (pretended / "g2l-7/ended").exists()
    assert not (pretended / "g2l-7/scheduler.json").exists()
    assert set((pretended / "starts").read_text().splitlines()) == {"g2l tile S --scheduler tcp://here:1"}
    late = Job(script, ["tile", "S"], pretended, 9, SMALL, (7, 2))
    jobs.append(late.start())
    assert late.wait() == 0
    assert late.log.read_text() == ""


@pytest.mark.kill
@pytest.mark.long
def test_a_job_out_of_time_continues(store: Path, folder: Path, jobs: list[Job]) -> None:
    """Real: a training is asked to stop, comes back, and each of its steps is there once."""
    run = folder / "run"
    args = [*DISTILL, "--store", store, "--out", run]
    job = Job(FOLDER / "one-gpu.sbatch", args, folder, 41, SMALL, environment=ENVIRONMENT)
    jobs.append(job.start())
    until(lambda: len(steps_of(run)) > 2, job)
    job.signal_batch(signal.SIGUSR1)
    assert job.wait() == 0, job.log.read_text()
    assert job.restarts == 1
    assert steps_of(run) == list(range(1, STEPS + 1))
    assert (run / "student/model.safetensors").exists()
