"""A cluster of dask.distributed workers: local processes that are started here, or any scheduler's."""

import contextlib
import itertools
import logging
import queue
import signal
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, KilledWorker, LocalCluster, get_worker

from pipeline.runtime.options import ClusterOptions
from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import (
    ATTEMPTS,
    Advance,
    Cluster,
    Done,
    Failures,
    ForeignError,
    Item,
    Result,
    Work,
    close_stations,
    ends_the_run,
    portable,
)
from stores.errors import ClusterError
from stores.io.files import first_line

CONNECT_S = 30
WAIT_FOR_WORKERS_S = 120
_QUIET_S = 30.0
_LEAST_TTL_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What comes back from a worker."""

    result: Any
    worker: str
    count: int
    error: Exception | None = None
    trace: str = ""


def _attempt(work: Work, item: Any) -> _Attempt:
    """Run on a worker: an error comes back as a value, because dask would pickle its whole context."""
    counted: list[int] = []
    address = get_worker().address
    try:
        return _Attempt(work(item, counted.append), address, sum(counted))
    except Exception as error:
        return _Attempt(None, address, 0, portable(error), traceback.format_exc())


class _Died(ForeignError):
    """A worker died with the item on it, as often as the scheduler allows."""


@dataclass(frozen=True, slots=True)
class _Running:
    """An item that is out with a worker."""

    future: Any
    item: Any
    attempt: int
    alone: bool
    elsewhere: frozenset[str]
    """The workers that may take it; empty for any."""


@dataclass(slots=True)
class OnDask:
    """A dask.distributed client's workers."""

    client: Any
    job: str
    processes: int | None
    outlives_workers: bool = True

    def run(self, work: Work, items: Iterable[Item], report: Reporter) -> Iterator[Done[Item, Any]]:
        failures = Failures(report)
        over: queue.SimpleQueue[Any] = queue.SimpleQueue()
        running: dict[str, _Running] = {}
        suspects: list[Any] = []  # their worker died, perhaps of another item that it had
        prefix, numbers = uuid.uuid4().hex, itertools.count()
        left = iter(items)

        def submit(item: Any, attempt: int, alone: bool = False, elsewhere: Sequence[str] = ()) -> None:
            key = f"g2l-{prefix}-{next(numbers)}"
            where = {"workers": list(elsewhere)} if elsewhere else {}
            future = self.client.submit(_attempt, work, item, key=key, pure=False, **where)
            running[key] = _Running(future, item, attempt, alone, frozenset(elsewhere))
            future.add_done_callback(over.put)

        while True:
            for item in itertools.islice(left, max(self._room() - len(running), 0)):
                submit(item, 1)
            if not running and suspects:
                submit(suspects.pop(0), ATTEMPTS, alone=True)
            if not running:
                return
            future = self._next(over, report)
            if future is None:
                for key, job in list(running.items()):
                    if job.elsewhere and not job.elsewhere & self._workers().keys():
                        del running[key]  # those workers are gone: any other may take it
                        job.future.cancel()
                        submit(job.item, job.attempt)
                continue
            if future.key not in running:
                continue
            job = running.pop(future.key)
            item, got = job.item, self._outcome(future)
            if got.error is None:
                failures.ok()
                report.advance(got.count, str(item))
                yield Done(item, got.result)
            elif isinstance(got.error, _Died) and not job.alone:
                report.note(f"{item}: was on a worker that died; it is tried alone when the others are done")
                suspects.append(item)
            elif ends_the_run(got.error):
                raise type(got.error)(f"{got.error} (worker {got.worker})")
            elif job.attempt < ATTEMPTS:
                others = [address for address in self._workers() if address != got.worker]
                submit(item, job.attempt + 1, elsewhere=others)
            else:
                yield failures.over(item, got.error, got.trace)
            future.release()

    def _workers(self) -> dict[str, Any]:
        return dict(self.client.scheduler_info(n_workers=-1)["workers"])

    def _room(self) -> int:
        workers = self._workers().values()
        return sum(worker["nthreads"] for worker in workers) + 2 * max(len(workers), 1)

    def _next(self, over: "queue.SimpleQueue[Any]", report: Reporter) -> Any:
        """The next finished future; None when nothing happened for a while."""
        try:
            return over.get(timeout=_QUIET_S)
        except queue.Empty:
            self._require_connected()
            if not self._workers():
                report.note("no worker is connected to the scheduler; waiting for one")
            return None

    def _require_connected(self) -> None:
        if self.client.status not in ("running", "connecting"):
            raise ClusterError(
                "lost the connection to the scheduler; all that was committed is kept: start again"
            ) from None

    def _outcome(self, future: Any) -> _Attempt:
        if future.status == "finished":
            return future.result()
        if future.status == "cancelled":
            return _Attempt(None, "", 0, ClusterError("the scheduler cancelled the work; was it restarted?"))
        error = future.exception()
        if isinstance(error, KilledWorker):
            said = "every worker that took it died: out of memory, or a crash in a library"
            return _Attempt(None, "", 0, _Died(said))
        return _Attempt(None, "", 0, portable(error))

    def call(self, function: Callable[..., Result], *args: Any) -> Result:
        got = self._called(_Call(function, args))
        if isinstance(got.error, _Died):  # or the worker was dead before, and the scheduler had not noticed
            with contextlib.suppress(TimeoutError):
                self.client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS_S)
                got = self._called(_Call(function, args))
        if isinstance(got.error, _Died):
            raise ClusterError(str(got.error))
        if got.error is not None:
            raise got.error
        return got.result

    def _called(self, work: "_Call") -> _Attempt:
        future = self.client.submit(_attempt, work, None, pure=False)
        alone = 0.0
        while True:
            try:
                future.exception(timeout=_QUIET_S)
                return self._outcome(future)
            except TimeoutError:
                self._require_connected()
                alone = 0.0 if self._workers() else alone + _QUIET_S
            if alone >= WAIT_FOR_WORKERS_S:
                future.cancel()
                raise ClusterError(
                    f"no worker has been connected to the scheduler for {alone:.0f} s; start workers, and the same "
                    "command again"
                )


@dataclass(frozen=True, slots=True)
class _Call:
    """A plain function as work."""

    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __call__(self, item: Any, advance: Advance) -> Any:
        return self.function(*self.args)


@contextlib.contextmanager
def open_dask(options: ClusterOptions, job: str, report: Reporter) -> Iterator[Cluster]:
    """A client of the workers that `options` ask for; ClusterError when they cannot be reached."""
    # a local worker may be silent while a library holds the interpreter lock; if its process ends, dask notices
    settings = {
        "distributed.scheduler.allowed-failures": 0,  # `OnDask.run` tries the items of a dead worker again, alone
        "distributed.scheduler.worker-ttl": None,
        "distributed.worker.daemon": False,  # they may have processes that read
        "distributed.worker.preload": [__name__],
        "distributed.admin.large-graph-warning-threshold": "1 GB",
    }
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        if options.scheduler is not None:
            client = stack.enter_context(_connect(options.scheduler))
            _lengthen_ttl(client, report)
        else:
            assert options.workers is not None
            client = stack.enter_context(Client(stack.enter_context(_local(options.workers))))
        _wait_for_workers(client, options, report)
        try:
            _close_stations(client, job)  # of an earlier client that is gone
            yield OnDask(client, job, options.workers)
        finally:
            with contextlib.suppress(Exception):  # the workers may be gone
                client.cancel([key for key in client.futures if key.startswith("g2l-")], force=True)
                _close_stations(client, job)


def _close_stations(client: Any, job: str) -> None:
    """Close the stations of a job in all workers; one that is gone has none."""
    for said in client.run(close_stations, job, on_error="return").values():
        gone = isinstance(said, OSError)  # its connection closed
        if isinstance(said, Exception) and not gone:
            raise said


def dask_setup(worker: Any) -> None:
    """Called by dask in each local worker: Ctrl-C reaches them too, and their parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _local(workers: int) -> Any:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,  # a limit would kill an encoder that is simply large
        dashboard_address=":0",  # 8787 may be taken by another
        silence_logs=logging.CRITICAL,
    )


def _connect(address: str) -> Any:
    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"--scheduler {address}: cannot be reached ({first_line(error)}); "
            "give the address that `dask scheduler` printed, as tcp://host:8786"
        ) from None


def _lengthen_ttl(client: Any, report: Reporter) -> None:
    """A scheduler drops workers that are silent for worker-ttl (5 minutes), as in a long call of some library."""
    before = client.run_on_scheduler(_set_ttl, _LEAST_TTL_S)
    if before is not None:
        report.note(
            f"scheduler: worker-ttl was {before:g} s, which drops workers in the middle of long blocks; "
            f"it is {_LEAST_TTL_S:g} s now"
        )


def _set_ttl(least: float, dask_scheduler: Any) -> float | None:
    before = dask_scheduler.worker_ttl
    if before is None or before >= least:
        return None
    dask_scheduler.worker_ttl = least
    return float(before)


def _wait_for_workers(client: Any, options: ClusterOptions, report: Reporter) -> None:
    wanted = options.workers or 1
    if len(client.scheduler_info(n_workers=-1)["workers"]) < wanted:
        report.note(f"waiting for {'workers' if wanted > 1 else 'a worker'}")
    try:
        client.wait_for_workers(wanted, timeout=WAIT_FOR_WORKERS_S)
    except TimeoutError:
        if options.scheduler is None:
            raise ClusterError(
                f"--workers {wanted}: they did not start within {WAIT_FOR_WORKERS_S} s; try fewer"
            ) from None
        raise ClusterError(
            f"--scheduler {options.scheduler}: no worker within {WAIT_FOR_WORKERS_S} s; start workers first"
        ) from None
