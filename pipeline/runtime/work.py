"""Where work runs: in this process, in local processes, or on any dask.distributed cluster.

A piece of work is a function of an item; what it returns is small, since the data go to the store and not through
the client. It may keep costly things (an encoder, pools of threads) in a `station`, one a process. Only a few items
a worker are handed out at a time, so that memory does not grow with their number.

The items of a dead worker run again on another. An item that fails is tried once more, on another
worker where there is one, and then reported; an error of the whole run (a full disk, another recipe) ends it.
"""

import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pipeline.runtime.progress import Reporter
from stores.errors import ClusterError, DiskFull, FeatureError, G2LError, SlideError
from stores.io.files import first_line, is_full

ATTEMPTS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[int], None]
Work = Callable[[Any, Advance], Any]
"""A function of an item that counts what it has done. Workers in other processes get it pickled: a bound method of a
frozen dataclass, or a function at module level."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Item, Result]):
    """An item that is over: with its result, or with the reason why it failed."""

    item: Item
    result: Result | None
    error: str = ""


class Station(Protocol):
    """What a process keeps from item to item."""

    def close(self) -> None:
        """Stop what is running; nothing is written once this has returned."""


class Cluster(Protocol):
    """A place where work runs; a context manager."""

    job: str
    """Names command and store, a line for each store: when a run begins, the stations of one before it that was killed,
    and that has a line in common with it, are closed."""
    processes: int | None
    """How many processes share this machine's CPUs; None where the cluster decides."""
    outlives_workers: bool
    """Whether a command goes on when one of its processes dies, which may leave unfinished files then. A scheduler need
    not say so: it may give the work to another worker on its own."""

    def run(self, work: Work, items: Iterable[Item], report: Reporter) -> Iterator[Done[Item, Any]]:
        """Do every item and yield each when it is over, in any order."""

    def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Run a function once, where the work will be, and return what it returns."""


_stations: dict[str, dict[Hashable, Station]] = {}
_stations_lock = threading.RLock()


def station(job: str, key: Hashable, make: Callable[[], Station]) -> Any:
    """The station of this process for a job under `key`, made when it is not there."""
    with _stations_lock:
        found = _stations.setdefault(job, {})
        if key not in found:
            found[key] = make()
        return found[key]


def close_stations(job: str) -> None:
    """Close the stations that this process has for a job, and for jobs that have a line in common with it."""
    lines = set(job.splitlines())
    with _stations_lock:
        same = [other for other in _stations if not lines.isdisjoint(other.splitlines())]
        kept = [found for other in same for found in _stations.pop(other).values()]
    for found in reversed(kept):
        found.close()


def step_aside() -> None:
    """Let the worker start its next item, since this one is about to wait for the device."""
    if _worker() is not None:
        from distributed import secede

        secede()


def worker_number() -> int | None:
    """The number of this local worker, from 0; None elsewhere. It chooses among several GPUs."""
    name = getattr(_worker(), "name", None)
    return name if isinstance(name, int) else None


def _worker() -> Any:
    """The dask worker that this thread belongs to, or None; dask is imported in workers alone."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


class ForeignError(RuntimeError):
    """An error of a library, as text: class and first line."""


def portable(error: Exception) -> Exception:
    """The error as a class that every process can unpickle."""
    if isinstance(error, ForeignError):
        return error
    if isinstance(error, G2LError):
        return type(error)(str(error))
    if is_full(error):
        return DiskFull(f"{first_line(error)}: the disk is full; all that was committed is kept")
    return ForeignError(f"{type(error).__name__}: {first_line(error)}")


def ends_the_run(error: Exception) -> bool:
    """Whether every other item would fail as well: true of all our errors but those of one slide or its features."""
    return isinstance(error, G2LError) and not isinstance(error, SlideError | FeatureError)


@dataclass(slots=True)
class Failures:
    """Counts what failed: a run in which nothing ever succeeds ends early."""

    report: Reporter
    succeeded: bool = False
    failed: int = 0

    def ok(self) -> None:
        self.succeeded = True

    def over(self, item: Any, error: Exception, trace: str) -> Done[Any, Any]:
        self.failed += 1
        error = portable(error)
        self.report.note(f"{item}: failed: {first_line(error)}")
        if trace:
            self.report.record("failed", item=str(item), trace=trace)
        if not self.succeeded and self.failed >= 3:
            raise ClusterError(
                f"the first {self.failed} pieces of work all failed, the last: {item}: {first_line(error)}"
            )
        return Done(item, None, first_line(error))


def threads_of(threads: int | None, processes: int | None) -> int:
    """Threads of one process when the CPUs of a machine are shared by several."""
    if threads is not None:
        return threads
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // (processes or 1))


def with_number(options: Any, devices: int) -> Any:
    """Options whose ``--device auto`` or ``cuda`` is the GPU of this local worker, where there are several."""
    number = worker_number()
    if number is None or devices < 2 or options.device not in ("auto", "cuda"):
        return options
    return dataclasses.replace(options, device=f"cuda:{number % devices}")
