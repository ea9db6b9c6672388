"""A stand-in for SLURM, on one machine: as much of it as the files in ``docs/how-to/slurm`` use.

`Job` does what ``sbatch`` and the controller do: it reads the directives, starts a copy of the script with the
variables ``SLURM_*``, signals it, and starts it again after ``scontrol requeue`` or a preemption. The programs ``srun``
and ``scontrol`` in `programs` are this file. All nodes are this machine, which is called ``localhost`` as often as
needed.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FORMS = {
    "job-name": r"\w+",
    "array": r"\d+-\d+",
    "nodes": r"\d+",
    "ntasks": r"\d+",
    "ntasks-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "gpus-per-node": r"\d+",
    "mem": r"\d+G",
    "time": r"\d+:\d\d:\d\d",
    "requeue": "",
    "signal": r"B:USR1@\d+",
    "open-mode": "append|truncate",
    "output": r"[\w%-]+\.log",
}
"""The directives that are known, and how their values look."""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def directives(script: Path) -> dict[str, str]:
    """The lines ``#SBATCH`` of a script. SLURM reads them up to the first command; later ones would be ignored."""
    found: dict[str, str] = {}
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    ended = False
    for line in lines[1:]:
        ended = ended or bool(line and not line.startswith("#"))
        if line.startswith("#SBATCH"):
            assert not ended, f"{line}: stands after the first command"
            match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert match, line
            assert re.fullmatch(FORMS[match[1]], match[2] or ""), line
            assert match[1] not in found, line
            found[match[1]] = match[2] or ""
    return found


@dataclass
class Job:
    """A job, or a task of an array."""

    script: Path
    args: Sequence[object]
    folder: Path
    """From which it is sent; holds ``venv``."""
    job_id: int
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the command line of ``sbatch``; the rest is that of the script."""
    array: tuple[int, int] | None = None
    """Number of the array's first job, and of this task in it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    restarts: int = -1

    def __post_init__(self) -> None:
        self.said = {**directives(self.script), **self.options}
        self.spool = self.folder / f"spool{self.job_id}"
        self.spool.mkdir()

    @property
    def log(self) -> Path:
        """Its standard output."""
        name = self.said["output"].replace("%j", str(self.job_id))
        for place, number in zip(("%A", "%a"), self.array or (), strict=False):
            name = name.replace(place, str(number))
        return self.folder / name

    def start(self) -> "Job":
        """Start the script, or start it again."""
        self.restarts += 1
        (self.spool / "step").unlink(missing_ok=True)
        script = self.spool / "slurm_script"  # as SLURM does: the script is not where it was
        script.write_bytes(self.script.read_bytes())
        nodes = int(self.said["nodes"])
        tasks = int(self.said.get("ntasks", nodes * int(self.said.get("ntasks-per-node", "1"))))
        variables: dict[str, object] = {
            "SLURM_JOB_ID": self.job_id,
            "SLURM_SUBMIT_DIR": self.folder,
            "SLURM_JOB_NODELIST": f"localhost*{nodes}",
            "SLURM_NNODES": nodes,
            "SLURM_NTASKS": tasks,
            "SLURM_CPUS_PER_TASK": self.said["cpus-per-task"],
            "STAND_IN_SPOOL": self.spool,
        }
        if self.restarts:
            variables["SLURM_RESTART_COUNT"] = self.restarts
        if self.said.get("gpus-per-node", "0") != "0":
            variables["SLURM_GPUS_ON_NODE"] = self.said["gpus-per-node"]
        if self.array is not None:
            variables |= {"SLURM_ARRAY_JOB_ID": self.array[0], "SLURM_ARRAY_TASK_ID": self.array[1]}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment = inherited | dict(self.environment) | {name: str(of) for name, of in variables.items()}
        environment["PATH"] = f"{programs(self.folder)}:{environment['PATH']}"
        mode = "ab" if self.said.get("open-mode") == "append" else "wb"
        with self.log.open(mode) as log:
            self.process = subprocess.Popen(
                ["/bin/bash", script, *map(str, self.args)],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def signal_batch(self, number: signal.Signals) -> None:
        """Signal the shell alone, as ``--signal=B:...`` says."""
        assert self.said["signal"].startswith("B:")
        self.process.send_signal(number)

    def preempt(self) -> None:
        """SIGTERM for the shell and its step, and the job begins again."""
        for task in (self.spool / "step").read_text().split() if (self.spool / "step").exists() else []:
            os.kill(int(task), signal.SIGTERM)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        assert "requeue" in self.said
        self.start()

    def wait(self) -> int:
        """The exit code of its last run."""
        while True:
            code = self.process.wait()
            asked = self.spool / "requeue"
            if not asked.exists():
                return code
            asked.unlink()
            assert "requeue" in self.said
            self.start()

    def kill(self) -> None:
        """End everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def programs(folder: Path) -> Path:
    """A folder with ``srun`` and ``scontrol``."""
    found = folder / "slurm-programs"
    found.mkdir(exist_ok=True)
    for name in ("srun", "scontrol"):
        program = found / name
        if not program.exists():
            words = [sys.executable, "-I", str(Path(__file__).resolve()), name]
            program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            program.chmod(0o755)
    return found


def _srun(args: list[str]) -> int:
    """Start the tasks of a step, forward signals to them, and return the largest exit code."""
    while args[0].startswith("--"):
        assert args.pop(0).startswith("--cpus-per-task=")
    n_tasks = int(os.environ["SLURM_NTASKS"])
    tasks = [
        subprocess.Popen(args, env={**os.environ, "SLURM_PROCID": str(number), "SLURM_NODEID": str(number)})
        for number in range(n_tasks)
    ]
    step = Path(os.environ["STAND_IN_SPOOL"]) / "step"
    step.write_text(" ".join(str(task.pid) for task in tasks))

    def forward(number: int, _: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    codes = [task.wait() for task in tasks]
    step.unlink()
    return max(code if code >= 0 else 128 - code for code in codes)


def _scontrol(args: list[str]) -> int:
    if args[:2] == ["show", "hostnames"]:
        host, count = args[2].split("*")
        print("\n".join([host] * int(count)))
        return 0
    assert args == ["requeue", os.environ["SLURM_JOB_ID"]]
    (Path(os.environ["STAND_IN_SPOOL"]) / "requeue").touch()
    return 0


if __name__ == "__main__":
    sys.exit({"srun": _srun, "scontrol": _scontrol}[sys.argv[1]](sys.argv[2:]))
