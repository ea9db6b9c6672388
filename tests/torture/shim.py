"""The preloaded library: compiled here with ``cc``, and steered through a small file that all processes map."""

import ctypes
import mmap
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
CONTROL = "TORTURE_CONTROL"
"""The environment variable with the path of the control file."""
COUNT, KILL_BEFORE, KILL_IN, FAIL_ONCE, FAIL_FROM = range(5)
ALL, CALLER, LEADER = range(3)
"""Who is killed: all processes of the command, the one that makes the call, or the one that was started first."""
_MOST, _PATH = 512, 4096


class _Control(ctypes.Structure):
    """``struct control`` of ``shim.c``."""

    _fields_ = [
        ("calls", ctypes.c_long),
        ("at", ctypes.c_long),
        ("mode", ctypes.c_int),
        ("whom", ctypes.c_int),
        ("error", ctypes.c_int),
        ("leader", ctypes.c_int),
        ("network", ctypes.c_int),
        ("struck", ctypes.c_int),
        ("dead", ctypes.c_int),
        ("n_processes", ctypes.c_int),
        ("processes", ctypes.c_int * _MOST),
        ("root", ctypes.c_char * _PATH),
        ("trace", ctypes.c_char * _PATH),
    ]


def compiled(folder: Path) -> Path:
    """Compile the library into `folder`; raises FileNotFoundError where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc, gcc, clang): the library that strikes cannot be built")
    target = folder / "shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(target), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return target


class Control:
    """The control file of one command at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._shared = _Control.from_buffer(self._map)

    def set(
        self,
        root: Path,
        at: int = 0,
        mode: int = COUNT,
        whom: int = ALL,
        error: int = 0,
        network: bool = False,
        trace: Path | None = None,
    ) -> None:
        """Begin to count from 0; strike at the `at`-th call below `root`."""
        shared = self._shared
        shared.at = 0
        shared.calls = shared.struck = shared.dead = shared.leader = 0
        shared.mode, shared.whom, shared.error, shared.network = mode, whom, error, network
        shared.root, shared.trace = os.fsencode(root), b"" if trace is None else os.fsencode(trace)
        shared.at = at

    def forget(self) -> None:
        """The processes of an earlier command are gone."""
        self._shared.n_processes = 0

    @property
    def calls(self) -> int:
        return int(self._shared.calls)

    @property
    def struck(self) -> bool:
        return bool(self._shared.struck)

    @property
    def processes(self) -> list[int]:
        """Ids of all processes that were ever started; some may be gone, and their numbers given to others."""
        return list(self._shared.processes[: min(self._shared.n_processes, _MOST)])
