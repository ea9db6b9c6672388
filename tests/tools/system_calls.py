"""What a program asked the kernel for, from strace, and what a disk would hold after a power cut at some moment.

The trace sees every library alike: Zarr, pyarrow and safetensors too.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_CALLS = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir"
_CALLS += ",write,writev,pwrite64,pwritev,ftruncate,fallocate,sendfile,copy_file_range,fsync,fdatasync"
_DONE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<(.*)>)?")
_BEGUN = re.compile(r"(\d+) +(\w+\(.*?) *<unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_NAMES = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPENED = re.compile(r"\d+<([^>]*)>")


def trace(module: str, *args: str, folder: Path) -> Iterator[tuple[str, str, str, int]]:
    """(call, arguments, path of what was opened, result) of ``python -m module args``, in the order they ended."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = folder / "strace.txt"
    command = [strace, "-f", "-y", "--seccomp-bpf", "-s", "0", "-e", f"trace={_CALLS}", "-o", str(log)]
    # names are cut to nothing by -s 0 only in data that is written, not in paths
    done = subprocess.run(
        [*command, sys.executable, "-m", module, *args],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if "PTRACE" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    waiting: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        if begun := _BEGUN.fullmatch(line):
            waiting[begun[1]] = begun[2]
            continue
        if resumed := _RESUMED.fullmatch(line):
            line = f"{resumed[1]} {waiting.pop(resumed[1])}{resumed[2]}"
        if found := _DONE.match(line):
            yield found[2], found[3], found[5] or "", int(found[4])


class Disk:
    """What was asked of a disk below a folder, and what of it is not yet sure to be there after a power cut."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}/"
        self._known: set[str] = set()
        self.unsure: set[str] = set()
        """Files whose bytes, and files and folders whose names, were not flushed: "bytes of" or "name of" a path."""
        self.seen: dict[str, int] = {}
        """How often each call changed something."""

    def feed(
        self, call: str, arguments: str, opened: str, result: int, promise: Callable[[str], None]
    ) -> None:
        """Take in a call; `promise` is called with the new name of a file or folder before it is renamed to it."""
        if result < 0:
            return
        names = [name for name in _NAMES.findall(arguments) if name.startswith(self._root)]
        handles = [path for path in _OPENED.findall(arguments) if path.startswith(self._root)]
        match call:
            case "open" | "openat" | "creat" if "O_CREAT" in arguments and names:
                self._appears(names[0])
                if "O_TRUNC" in arguments:
                    self._count(call, f"bytes of {names[0]}")
            case "mkdir" | "mkdirat" if names:
                self._appears(names[0])
            case "rename" | "renameat" | "renameat2" if len(names) == 2:
                promise(names[1])
                self._renamed(*names)
            case "link" | "linkat" if len(names) == 2:
                self._appears(names[1])
            case "unlink" | "unlinkat" | "rmdir" if names:
                self._known.discard(names[0])
                self.unsure -= {f"bytes of {names[0]}", f"name of {names[0]}"}
            case "fsync" | "fdatasync" if handles or arguments.startswith(tuple("0123456789")):
                self._flushed(_OPENED.findall(arguments)[0])
            case "sendfile" | "write" | "writev" | "pwrite64" | "pwritev" | "ftruncate" | "fallocate" if (
                handles
            ):
                if _OPENED.findall(arguments)[0] == handles[0]:
                    self._count(call, f"bytes of {handles[0]}")
            case "copy_file_range" if handles:
                self._count(call, f"bytes of {handles[-1]}")

    def _count(self, call: str, unsure: str) -> None:
        self.seen[call] = self.seen.get(call, 0) + 1
        self.unsure.add(unsure)

    def _appears(self, path: str) -> None:
        if path not in self._known:
            self._known.add(path)
            self._count("new name", f"name of {path}")

    def _flushed(self, path: str) -> None:
        self.seen["fsync"] = self.seen.get("fsync", 0) + 1
        self.unsure.discard(f"bytes of {path}")
        self.unsure -= {
            text for text in self.unsure if text.startswith("name of ") and _parent(text[8:]) == path
        }

    def _renamed(self, old: str, new: str) -> None:
        def moved(path: str) -> str:
            return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else path

        self._known = {moved(path) for path in self._known}
        parts = (text.split(" of ", 1) for text in self.unsure)
        self.unsure = {f"{what} of {moved(path)}" for what, path in parts}
        self._count("rename", f"name of {new}")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
