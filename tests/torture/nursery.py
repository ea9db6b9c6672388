"""A process that has imported everything and forks a command at once, with the library of `shim` preloaded.

Started with ``python -m tests.torture.nursery SHIM MODULE ...``, it reads orders as JSON lines and answers each with a
line. It does not collect a command that ended before it is asked to: until then no other process gets its number.
"""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.torture.shim import CONTROL

ROOT = Path(__file__).resolve().parents[2]
LIGHT: tuple[str, ...] = (
    "cli",
    "stores",
    "stores.verify.seal",
    "stores.verify.reindex",
    "stores.combine.merge",
    "stores.combine.subset",
)
LIGHT += ("stores.export.export", "stores.publish.card", "stores.remote.transfer", "stores.remote.store")
LIGHT += ("pipeline.verify.verify", "pipeline.runtime.progress", "fsspec.implementations.local")
HEAVY: tuple[str, ...] = (
    "tests.tools.kill",
    "pipeline.report.report",
    "pipeline.evaluate.tables",
    "pipeline.verify.repair",
    "s3fs",
)
HEAVY += ("pipeline.runtime.dask_cluster", "torch.distributed.run", "h5py", "sklearn.linear_model", *LIGHT)
_HANG_S = 180.0


class Nursery:
    """The client's side: starts commands and waits for them."""

    def __init__(self, shim: Path, modules: Sequence[str]) -> None:
        environment = os.environ | {
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "tests.torture.nursery", str(shim), *modules]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends the campaign, after the trials under way
        )

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the nursery died")
        return json.loads(answer)

    def start(self, program: str, argv: Sequence[str], folder: Path, log: Path, control: Path) -> int:
        """Start a command in `folder`, its output in `log`; returns its process id."""
        paths = {"folder": str(folder), "log": str(log), "control": str(control)}
        return int(self._ask(do="start", program=program, argv=list(argv), **paths))

    def wait(self, process: int, timeout_s: float = _HANG_S) -> int | None:
        """Its exit code, negative for a signal; None when it has not ended in time."""
        code = self._ask(do="wait", process=process, timeout_s=timeout_s)
        return None if code is None else int(code)

    def collect(self, process: int) -> None:
        """End it if it runs, and give its number free."""
        self._ask(do="collect", process=process)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _main(shim: str, modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    library = ctypes.CDLL(shim)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "start":
            answer: int | None = os.fork()
            if answer == 0:
                _be(order, library)
        elif order["do"] == "wait":
            answer = _ended(order["process"], time.monotonic() + order["timeout_s"])
        else:
            os.kill(order["process"], signal.SIGKILL)
            os.waitpid(order["process"], 0)
            answer = 0
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def _ended(process: int, until: float) -> int | None:
    while True:
        found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        if time.monotonic() > until:
            return None
        time.sleep(0.005)


def _be(order: dict[str, Any], library: ctypes.CDLL) -> NoReturn:
    """Be the command, in the forked process."""
    code = 70
    try:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        os.chdir(order["folder"])
        os.environ[CONTROL] = order["control"]
        library.torture_arm(os.fsencode(order["control"]))
        library.torture_lead()
        code = _run(order["program"], order["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run(program: str, argv: Sequence[str]) -> int:
    if program == "torchrun":
        from torch.distributed.run import main as torchrun

        torchrun(list(argv))
        return 0
    import cli

    if argv[0] == "prototypes":
        from pipeline.distill.prototypes import fit

        fit._STATE_EVERY = 1  # a short fit would write no state
    sys.argv = ["g2l", *argv]
    cli.main()
    return 0


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
