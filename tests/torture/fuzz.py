"""Give every reader of foreign bytes thousands of inputs that are nearly right.

    python -m tests.torture.fuzz [READER ...] --inputs 10000 --seed 0

A reader may accept an input, or refuse it with an error of one line (`stores.errors.G2LError`). It fails when it dies,
raises anything else, prints a traceback, says more than one line, takes longer than ten seconds, or asks for more
memory than its child has. A failing input is kept with its number; ``--only NUMBER`` runs it again, without a child.
"""

import argparse
import math
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from stores.errors import G2LError
from tests.torture.readers import READERS, Target

MEMORY_BYTES = 1 << 30
"""What a child may ask for beyond what it has before its first input."""
SECONDS = 10
_SILENCE_SECONDS = 60
ACCEPTED, REFUSED = "accepted", "refused"


class TooLong(BaseException):
    """An input took longer than `SECONDS`."""


@dataclass(slots=True)
class Result:
    """What a reader did with its inputs."""

    reader: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    """By number of the input."""
    seconds: float = 0.0

    def line(self) -> str:
        """A row of the table."""
        inputs = sum(self.counts.values()) + len(self.failures)
        accepted, refused = self.counts[ACCEPTED], self.counts[REFUSED]
        return f"{self.reader:<20} {inputs:>7} {accepted:>9} {refused:>8} {len(self.failures):>9} {self.seconds:>8.1f}"


def make_input(target: Target, reader: str, seed: int, number: int) -> bytes:
    """Input `number` of a reader; the first ones are the seeds as they are."""
    if number < len(target.seeds):
        return target.seeds[number]
    random = Random(f"{seed} {reader} {number}")
    return target.mutate(random.choice(target.seeds), random)


def one(target: Target, raw: bytes) -> str:
    """Read one input: accepted, refused, or what is wrong with the reader."""
    try:
        target.put(raw)
        target.read()
    except G2LError as error:
        lines = str(error).splitlines()
        return (
            REFUSED
            if len(lines) == 1 and lines[0].strip()
            else f"{type(error).__name__} of {len(lines)} lines: {error}"
        )
    except (Exception, TooLong) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    return ACCEPTED


def _child(
    reader: str, folder: Path, numbers: range, seed: int, report: int, errors: int, until: float
) -> None:
    """Read inputs one after another, until a moment of the monotonic clock; a line to `report` after each."""
    os.dup2(errors, 2)
    warnings.simplefilter("error")
    target = READERS[reader](folder)
    one(target, target.seeds[0])  # libraries start threads and keep memory at the first use
    signal.signal(signal.SIGPROF, _too_long)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        if time.monotonic() > until:
            return
        raw = make_input(target, reader, seed, number)
        os.ftruncate(errors, 0)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor: the machine may be busy
        try:
            said = one(target, raw)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        printed = os.pread(errors, 10_000, 0)
        if b"Traceback" in printed:
            said = f"printed {printed[-300:]!r}"
        os.write(report, f"{number} {' '.join(said.split())[:500]}\n".encode("utf-8", "replace"))


def _too_long(number: int, frame: types.FrameType | None) -> None:
    raise TooLong(f"longer than {SECONDS} s")


def fuzz(reader: str, inputs: int, seed: int, keep: Path, until: float = math.inf) -> Result:
    """Give a reader inputs 0 to `inputs` - 1, or as many as there is time for, in children that replace one another."""
    result, begun = Result(reader), time.monotonic()
    number = 0
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{reader}-") as name, tempfile.TemporaryFile() as errors:
        trials = 0
        while number < inputs:
            folder = Path(name) / str(trials)
            folder.mkdir()
            trials += 1
            end, written = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(end)
                code = 1
                try:
                    _child(reader, folder, range(number, inputs), seed, written, errors.fileno(), until)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            os.close(written)
            first = number
            number = _collect(end, number, result)
            os.close(end)
            if number < inputs:  # it is silent, or gone
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if time.monotonic() > until and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                break
            if number < inputs:
                said = os.pread(errors.fileno(), 10_000, 0)[-300:].decode("utf-8", "replace")
                ended = (
                    f"signal {os.WTERMSIG(status)}"
                    if os.WIFSIGNALED(status)
                    else f"exit {os.WEXITSTATUS(status)}"
                )
                if number == first == 0 and not os.WIFSIGNALED(status):
                    raise RuntimeError(f"{reader}: its child did not begin: {said}")
                result.failures[number] = f"the child ended with {ended}: {said}"
                number += 1
        for failed, said in result.failures.items():
            keep.mkdir(parents=True, exist_ok=True)
            target = READERS[reader](Path(tempfile.mkdtemp(dir=name)))
            (keep / f"{reader}-{seed}-{failed}.input").write_bytes(make_input(target, reader, seed, failed))
            (keep / f"{reader}-{seed}-{failed}.txt").write_text(f"{said}\n", encoding="utf-8")
    result.seconds = time.monotonic() - begun
    return result


def _collect(end: int, number: int, result: Result) -> int:
    """Take in the child's lines until it ends or is silent; returns the number of the first input without one."""
    rest = b""
    while select.select([end], [], [], _SILENCE_SECONDS)[0]:
        data = os.read(end, 1 << 16)
        if not data:
            return number
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            at, _, said = line.decode("utf-8", "replace").partition(" ")
            number = int(at) + 1
            if said in (ACCEPTED, REFUSED):
                result.counts[said] += 1
            else:
                result.failures[int(at)] = said
    return number


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 when a reader failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument(
        "readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)} [default: all]"
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs for each reader [default: 10000]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs [default: 0]")
    parser.add_argument(
        "--minutes", type=float, help="of all readers; each has its share [default: no limit]"
    )
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run one input here, with its traceback")
    parser.add_argument("--keep", type=Path, help="folder of failing inputs [default: a temporary one]")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.readers) - set(READERS))
    if unknown:
        parser.error(f"reader {unknown[0]!r}: allowed: {', '.join(READERS)}")
    readers = given.readers or list(READERS)
    if given.only is not None:
        return _again(readers[0], given.only, given.seed)
    keep = given.keep or Path(tempfile.gettempdir()) / "g2l-fuzz"
    print(
        f"{'reader':<20} {'inputs':>7} {'accepted':>9} {'refused':>8} {'failures':>9} {'seconds':>8}",
        flush=True,
    )
    over, failed = math.inf if given.minutes is None else time.monotonic() + given.minutes * 60, 0
    for left, reader in zip(range(len(readers), 0, -1), readers, strict=True):
        now = time.monotonic()
        result = fuzz(reader, given.inputs, given.seed, keep, now + max(over - now, 0) / left)
        print(result.line(), flush=True)
        kinds = Counter(said.partition(":")[0] + said[-40:] for said in result.failures.values())
        for number, said in result.failures.items():
            if kinds.pop(said.partition(":")[0] + said[-40:], None):  # one of each kind
                print(f"  input {number}: {said[:300]}")
        failed += len(result.failures)
    if failed:
        print(f"{failed} failures; inputs are in {keep}; run one again with --only NUMBER")
    return 1 if failed else 0


def _again(reader: str, number: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as name:
        target = READERS[reader](Path(name))
        target.put(make_input(target, reader, seed, number))
        try:
            said: Any = target.read()
        except G2LError as error:
            said = f"{type(error).__name__}: {error}"
        print(f"input {number} of {reader}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
