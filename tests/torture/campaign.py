"""Trials: a command is struck at a call that changes a file, and given again; nothing may show in its result."""

import collections
import contextlib
import errno
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.torture import compare, shim
from tests.torture.commands import COMMANDS, Command, Kit
from tests.torture.nursery import HEAVY, LIGHT, ROOT, Nursery

_WAIT_S, _REFUSED_S, _OUTLIVE_S = 180.0, 60.0, 60.0
_TWICE = 0.2
"""Share of the trials in which the repeated command is killed as well."""
_KINDS = {
    "kill": (shim.KILL_BEFORE, shim.ALL, 0),
    "half": (shim.KILL_IN, shim.ALL, 0),
    "EIO": (shim.FAIL_ONCE, shim.ALL, errno.EIO),
    "ENOSPC": (shim.FAIL_FROM, shim.ALL, errno.ENOSPC),
    "one": (shim.KILL_BEFORE, shim.CALLER, 0),
    "first": (shim.KILL_BEFORE, shim.LEADER, 0),
}
KINDS = tuple(_KINDS)
"""Killed before a call, or with half of it done; an error of one call, or of it and all later ones that need space; of
several processes one is killed, or the first, whose children and the next attempt then live at the same time."""
_LAUNCHER = re.compile(
    r"^Traceback .*\n(?:  .*\n)+torch\.distributed\.elastic\.\S*ChildFailedError:", re.MULTILINE
)
"""How ``torchrun`` itself says that a process of it failed: no text of ours, so no traceback of ours."""
_DISK = ("EIO", "ENOSPC")
_SEVERAL = ("one", "first")


@dataclass(frozen=True, slots=True)
class Place:
    """What happens at which call."""

    kind: str
    at: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.at}"


@dataclass(slots=True)
class Tally:
    """What was tried of one command."""

    calls: int = 0
    """Calls that change a file, of an undisturbed run."""
    trials: collections.Counter[str] = field(default_factory=collections.Counter)
    """By kind; those that ended before their call was reached are not among them."""
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    places: set[str] = field(default_factory=set)
    twice: int = 0
    refused: int = 0
    """How often the second command had to wait for processes of the first."""
    outlived_s: float = 0.0
    seconds: float = 0.0


class Failure(Exception):
    """A trial that went wrong: why."""


class Slot:
    """A place where one trial at a time runs: a nursery, a control file, a folder."""

    def __init__(self, folder: Path, library: Path, modules: Sequence[str], endpoint: str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.trial = self.folder / "trial"
        self.log = self.folder / "log.txt"
        self.control = shim.Control(self.folder / "control")
        self.library, self.endpoint = library, endpoint
        self.nursery = Nursery(library, modules)
        self.cluster: tuple[str, list[subprocess.Popen[bytes]]] | None = None
        self.number = 0
        self.then = ""
        """At which call the repeated command was killed as well."""
        self.sent = ""

    def prepare(self, command: Command, kit: Kit) -> None:
        """An empty folder with what the command starts from."""
        shutil.rmtree(self.trial, ignore_errors=True)
        self.trial.mkdir()
        for name, what in command.start.items():
            source = kit.get(what)
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, self.trial / name)
        self.number += 1
        self.sent = f"s3://labs/{self.folder.name}-{self.number}"

    def start(self, command: Command, kit: Kit) -> int:
        """Start the command; its process id."""
        self.log.write_bytes(b"")
        places = {"{kit}": str(kit.folder), "{folder}": str(self.trial), "{url}": self.sent}
        places["{pushed}"] = "s3://labs/pushed"
        if command.cluster:
            places["{scheduler}"] = self._scheduler()
        if "{port}" in command.argv:
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                places["{port}"] = str(found.getsockname()[1])
        argv = []
        for word in command.argv:
            for name, value in places.items():
                word = word.replace(name, value)
            argv.append(word)
        return self.nursery.start(command.program, argv, self.trial, self.log, self.control.path)

    def run(
        self,
        command: Command,
        kit: Kit,
        what: Place | None = None,
        trace: Path | None = None,
        orphans: bool = False,
    ) -> int:
        """Run the command to its end, or until it is struck; its exit code.

        Parameters
        ----------
        orphans : bool
            Let live what is left of it, and of one before it.
        """
        mode, whom, error = (shim.COUNT, shim.ALL, 0) if what is None else _KINDS[what.kind]
        at = 0 if what is None else what.at
        if error and command.network:
            error = errno.ECONNRESET
        self.control.set(self.trial, at, mode, whom, error, command.network, trace)
        process = self.start(command, kit)
        code = self.nursery.wait(process, _WAIT_S)
        if not orphans:
            self.end_all(process)
        self.nursery.collect(process)
        if code is None:
            raise Failure(f"hangs: not over after {_WAIT_S:.0f} s")
        return code

    def children(self, leader: int = 0) -> list[int]:
        """Living processes of the command, but the first and those of the scheduler."""
        kept = {os.getpid(), *((p.pid for p in self.cluster[1]) if self.cluster else ())}
        if self.cluster:
            kept |= {p for p in self.control.processes if _parent(p) in kept}
        mark = f"{shim.CONTROL}={self.control.path}".encode()
        found = []
        for process in set(self.control.processes) - kept - {leader}:
            with contextlib.suppress(OSError):
                mine = mark in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                mine = mine or (leader > 0 and os.getsid(process) == leader)
                if mine and _state(process) != "Z":
                    found.append(process)
        return found

    def end_all(self, leader: int = 0) -> None:
        """Kill what is left of the command."""
        for process in self.children(leader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        until = time.monotonic() + 10
        while self.children(leader) and time.monotonic() < until:
            time.sleep(0.01)

    def _scheduler(self) -> str:
        if self.cluster is None:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            dask = [sys.executable, "-m", "distributed.cli"]
            log = (self.folder / "cluster.txt").open("ab")
            settings: Mapping[str, Any] = {"cwd": self.folder, "stdout": log, "stderr": log}
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                address = f"tcp://127.0.0.1:{found.getsockname()[1]}"
            port = address.rpartition(":")[2]
            begin = "import sys; from distributed.cli.dask_%s import main; sys.exit(main())"
            dask = [sys.executable, "-c", begin % "scheduler", "--host", "127.0.0.1", "--port", port]
            scheduler = subprocess.Popen([*dask, "--no-dashboard"], env=environment, **settings)
            environment |= {"LD_PRELOAD": str(self.library), shim.CONTROL: str(self.control.path)}
            worker = [sys.executable, "-c", begin % "worker", address, "--nthreads", "1", "--no-dashboard"]
            worker += ["--local-directory", str(self.folder / "dask")]
            workers = [subprocess.Popen(worker, env=environment, **settings) for _ in range(2)]
            self.cluster = address, [scheduler, *workers]
        return self.cluster[0]

    def close(self) -> None:
        self.nursery.close()
        for process in self.cluster[1] if self.cluster else ():
            process.terminate()
        for process in self.cluster[1] if self.cluster else ():
            process.wait()


def _stat(process: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return ["Z", "0"]


def _state(process: int) -> str:
    return _stat(process)[0]


def _parent(process: int) -> int:
    return int(_stat(process)[1])


class _Watch:
    """How long processes live on."""

    def __init__(self, processes: Sequence[int]) -> None:
        self._left = {process: _stat(process)[19:20] for process in processes}
        self._began = time.monotonic()
        self._took = 0.0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._left and self._took < _OUTLIVE_S:
            for process, began in list(self._left.items()):
                now = _stat(process)
                if now[0] == "Z" or now[19:20] != began:
                    del self._left[process]
            self._took = time.monotonic() - self._began
            time.sleep(0.02)

    def seconds(self) -> float:
        """Wait until all are gone; a Failure when they stay."""
        self._thread.join()
        if self._left:
            raise Failure(f"processes of the killed command still live after {self._took:.0f} s")
        return self._took if self._took > 0.1 else 0.0


class Campaign:
    """Trials of some commands, until a time is over or every place was tried."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = tuple(COMMANDS),
        seed: int = 0,
        slots: int = 1,
        say: Callable[[str], None] = print,
        kit: type[Kit] = Kit,
    ) -> None:
        folder = folder.resolve()
        self.folder, self.say, self.seed = folder, say, seed
        self.names = list(names)
        self.tallies = {name: Tally() for name in names}
        self._failed: list[str] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "kit").mkdir(parents=True)
        (folder / "calls").mkdir()
        self._stack = contextlib.ExitStack()
        endpoint = None
        if any("s3" in name for name in names):
            from tests.tools import s3_server

            endpoint = self._stack.enter_context(s3_server.s3_server())
            os.environ |= s3_server.environment(endpoint)
        modules = LIGHT if all(COMMANDS[name].light for name in names) else HEAVY
        library = shim.compiled(folder)
        self.slots = [Slot(folder / f"slot{i}", library, modules, endpoint) for i in range(slots)]
        self.kit = kit(folder / "kit", self._undisturbed)
        self._expected: dict[str, tuple[int, dict[str, bytes]]] = {}
        self._places: dict[str, Iterator[Place]] = {}

    def __enter__(self) -> "Campaign":
        return self

    def __exit__(self, *error: object) -> None:
        for slot in self.slots:
            slot.close()
        self._stack.close()

    @property
    def failures(self) -> list[str]:
        return self._failed

    def stop(self) -> None:
        """End after the trials under way."""
        self._over.set()

    # before the trials

    def _undisturbed(self, command: Command, path: Path, result: str) -> None:
        """Make a thing of the kit."""
        for what in command.start.values():
            self.kit.get(what)
        slot = self.slots[0]
        slot.prepare(command, self.kit)
        code = slot.run(command, self.kit)
        if code != 0:
            raise RuntimeError(f"{path.name}: exit code {code}: {slot.log.read_text()[-2000:]}")
        shutil.move(slot.trial / result, path)

    def prepare(self) -> None:
        """Make the kit, and run every command undisturbed, twice: both results must be the same.

        One that does not end well is a failure of the campaign, and is left out of the trials.
        """
        self.kit.basis()
        for name in list(self.names):
            if self._over.is_set():
                return
            try:
                took = self._prepare(name)
            except (RuntimeError, Failure) as error:
                self.names.remove(name)
                self.tallies[name].failures["undisturbed"] += 1
                self._failed.append(f"{name}, undisturbed: {error}")
                self.say(f"FAILED {self._failed[-1]}")
            else:
                calls = self.tallies[name].calls
                self.say(f"{name}: {calls} calls that change a file, {took:.1f} s undisturbed")

    def _prepare(self, name: str) -> float:
        command, slot = COMMANDS[name], self.slots[0]
        for what in command.start.values():
            self.kit.get(what)
        if "{pushed}" in command.argv:
            self._push()
        calls, found = [], []
        for _ in range(2):
            slot.prepare(command, self.kit)
            began = time.monotonic()
            trace = self.folder / "calls" / name.replace(" ", "-")
            trace.unlink(missing_ok=True)
            code = slot.run(command, self.kit, trace=trace)
            took = time.monotonic() - began
            if code != 0:
                raise RuntimeError(f"exit code {code}: {_tail(slot.log)}")
            calls.append(slot.control.calls)
            found.append(self._result(command, slot))
            slot.control.forget()
        unequal = compare.differences(*found)
        if unequal:
            raise RuntimeError(f"two runs differ: {unequal[:5]}")
        self._expected[name] = (min(calls), found[0])
        self.tallies[name].calls = min(calls)
        self._places[name] = self._places_of(name)
        return took

    def _push(self) -> None:
        from stores.remote.objects import Objects
        from stores.remote.transfer import push

        push(self.kit.get("part one"), Objects("s3://labs/pushed"))

    def _result(self, command: Command, slot: Slot) -> dict[str, bytes]:
        found = compare.content(slot.trial)
        if command.url:
            from stores.remote.objects import Objects

            objects = Objects(slot.sent)
            found |= {f"URL/{name}": objects.get(name, 1 << 30) or b"" for name in objects.list()}
        return found

    def _places_of(self, name: str) -> Iterator[Place]:
        """Every kind at every call, in an order drawn from the seed; kinds take turns."""
        rng = random.Random(f"{self.seed} {name}")
        kinds = [kind for kind in KINDS if COMMANDS[name].processes or kind not in _SEVERAL]
        if COMMANDS[name].cluster:  # its workers are not the command's
            kinds = [*_DISK, *_SEVERAL]
        calls = range(1, self._expected[name][0] + 1)
        columns = [[Place(kind, at) for at in rng.sample(calls, len(calls))] for kind in kinds]
        for row in zip(*columns, strict=True):
            yield from rng.sample(row, len(row))

    # trials

    def run(self, seconds: float, most: int | None = None) -> None:
        """Do trials, at most `most` of a command if given; the command that had the least time is next."""
        until = time.monotonic() + seconds
        left = set(self._expected)
        busy: set[str] = set()

        def work(slot: Slot) -> None:
            while time.monotonic() < until and not self._over.is_set():
                with self._lock:
                    free = sorted(left, key=lambda name: (self.tallies[name].seconds, name))
                    free = [name for name in free if name not in busy] or free
                    if not free:
                        return
                    name = free[0]
                    place = next(self._places[name], None)
                    tally = self.tallies[name]
                    if place is None or (most is not None and sum(tally.trials.values()) >= most):
                        left.discard(name)
                        continue
                    busy.add(name)
                began = time.monotonic()
                try:
                    self.trial(slot, name, place)
                except Exception as error:  # of the campaign itself: it must not end as if all were well
                    self._failed.append(f"{name} {place}: the campaign fails: {error!r}")
                    raise
                with self._lock:
                    tally.seconds += time.monotonic() - began
                    busy.discard(name)
                    (self.folder / "table.txt").write_text("\n".join([*self.table(), "", *self._failed, ""]))

        threads = [threading.Thread(target=work, args=(slot,)) for slot in self.slots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def trial(self, slot: Slot, name: str, place: Place) -> None:
        """Strike, repeat, compare; a failure is kept and told."""
        tally = self.tallies[name]
        try:
            reached = self._try(slot, name, place)
        except Failure as failure:
            reached = True
            self._keep(slot, name, place, f"{failure}{slot.then}")
        finally:
            slot.end_all()
            slot.control.forget()
        with self._lock:
            if reached:
                tally.trials[place.kind] += 1
                tally.places.add(str(place))

    def _try(self, slot: Slot, name: str, place: Place) -> bool:
        command, (calls, expected) = COMMANDS[name], self._expected[name]
        slot.prepare(command, self.kit)
        slot.then = ""
        first = place.kind == "first"
        code = slot.run(command, self.kit, place, orphans=first)
        struck = slot.control.struck
        watch = _Watch(slot.children() if first else [])
        kept = slot.folder / "struck"
        shutil.rmtree(kept, ignore_errors=True)
        with contextlib.suppress(shutil.Error, OSError):
            shutil.copytree(slot.trial, kept, symlinks=True)
        shutil.copy(slot.log, slot.folder / "log-struck.txt")
        if code == 0:
            self._require_same(slot, command, expected, "went on to the end with another result")
        elif place.kind in _DISK:
            self._require_one_line(slot, command, code)
        elif place.kind == "one":
            self._require_one_line(slot, command, code, killed=True)
        elif code != -signal.SIGKILL:
            raise Failure(f"exit code {code}: {_tail(slot.log)}")
        if not struck:
            return False
        rng = random.Random(f"{self.seed} {name} {place}")
        if code and place.kind not in _SEVERAL and rng.random() < _TWICE:
            again = Place(rng.choice(("kill", "half")), rng.randint(1, calls))
            slot.run(command, self.kit, again)
            self.tallies[name].twice += 1
            slot.then = f" (then {again})"
        self._repeat(slot, name, command, first)
        self.tallies[name].outlived_s = max(self.tallies[name].outlived_s, watch.seconds())
        self._require_same(slot, command, expected, "the repeated command has another result")
        return True

    def _repeat(self, slot: Slot, name: str, command: Command, orphans: bool) -> None:
        """The same command, until it is not refused because processes of the first one still write."""
        began = time.monotonic()
        while True:
            code = slot.run(command, self.kit, orphans=orphans)
            text = slot.log.read_text(errors="replace")
            if code == 2 and "another command is writing" in text and time.monotonic() < began + _REFUSED_S:
                self.tallies[name].refused += 1
                time.sleep(0.2)
                continue
            break
        if code == 2 and "exists already" in text:  # it was done but for the last flush
            return
        if code != 0 or "Traceback" in text:
            raise Failure(f"the repeated command ends with exit code {code}: {_tail(slot.log)}")

    @staticmethod
    def _require_one_line(slot: Slot, command: Command, code: int, killed: bool = False) -> None:
        text = slot.log.read_text(errors="replace")
        most = 1
        if command.program == "torchrun":
            text, most = _LAUNCHER.sub("", text), 2  # each of its processes says why it ends
        if "Traceback" in text:
            raise Failure(f"exit code {code} with a traceback: {_tail(slot.log)}")
        if killed and code in (-signal.SIGKILL, 1):
            return
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        if code == 3 or (code in (1, 2) and 1 <= len(lines) <= most):
            return
        raise Failure(f"exit code {code} with {len(lines)} lines of error: {_tail(slot.log)}")

    def _require_same(self, slot: Slot, command: Command, expected: Mapping[str, bytes], what: str) -> None:
        found = compare.differences(self._result(command, slot), expected)
        if found:
            more = f" and {len(found) - 4} more" if found[4:] else ""
            raise Failure(f"{what}: {'; '.join(found[:4])}{more}")

    def _keep(self, slot: Slot, name: str, place: Place, why: str) -> None:
        kept = self.folder / "failures" / re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{place}")
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for part in ("trial", "struck", "log.txt", "log-struck.txt"):
            if (slot.folder / part).exists():
                shutil.move(slot.folder / part, kept / part)
        with self._lock:
            self.tallies[name].failures[place.kind] += 1
            self._failed.append(f"{name} {place}: {why}")
            self.say(f"FAILED {name} {place}: {why}\n  kept in {kept}")

    # the end

    def table(self) -> list[str]:
        """What was tried, a line a command."""
        head = ["command", "calls", "places", *KINDS, "twice", "refused", "outlived", "failures"]
        rows = [head]
        for name, tally in self.tallies.items():
            numbers = [tally.calls, len(tally.places), *(tally.trials[kind] for kind in KINDS)]
            numbers += [tally.twice, tally.refused]
            rows.append(
                [name, *map(str, numbers), f"{tally.outlived_s:.1f} s", str(sum(tally.failures.values()))]
            )
        totals = [sum(tally.trials[kind] for tally in self.tallies.values()) for kind in KINDS]
        twice = sum(tally.twice for tally in self.tallies.values())
        rows.append(
            ["all", "", str(sum(totals)), *map(str, totals), str(twice), "", "", str(len(self._failed))]
        )
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = []
        for row in rows:
            aligned = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *aligned[1:]]))
        return lines


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-600:]
