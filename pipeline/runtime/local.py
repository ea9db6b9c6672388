"""Blocks of work in this process, a few at a time, in order."""

import itertools
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from pipeline.runtime.progress import Reporter
from pipeline.runtime.work import (
    ATTEMPTS,
    Done,
    Failures,
    Item,
    Result,
    Work,
    close_stations,
    ends_the_run,
    portable,
)

_SLOTS = 3
"""Items at once in one process: one is read, one is on the device, one is written."""


class InProcess:
    """Threads of this process, a few items at a time."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.processes: int | None = 1
        self.outlives_workers = False

    def run(self, work: Work, items: Iterable[Item], report: Reporter) -> Iterator[Done[Item, Any]]:
        failures = Failures(report)
        lock = threading.Lock()

        def attempts(item: Any) -> Any:
            def advance(count: int) -> None:
                with lock:
                    report.advance(count, str(item))

            for number in range(1, ATTEMPTS + 1):
                try:
                    return work(item, advance)
                except Exception as error:
                    if number == ATTEMPTS or ends_the_run(portable(error)):
                        raise

        left = iter(items)
        with ThreadPoolExecutor(_SLOTS, thread_name_prefix="work") as pool:
            running: dict[Future[Any], Any] = {}
            try:
                while True:
                    for item in itertools.islice(left, _SLOTS - len(running)):
                        running[pool.submit(attempts, item)] = item
                    if not running:
                        return
                    over, _ = wait(running, return_when=FIRST_COMPLETED)
                    for job in over:
                        item = running.pop(job)
                        error = job.exception()
                        if error is None:
                            failures.ok()
                            yield Done(item, job.result())
                        elif isinstance(error, Exception) and not ends_the_run(portable(error)):
                            trace = "".join(traceback.format_exception(error))
                            yield failures.over(item, error, trace)
                        else:
                            raise error
            finally:
                for job in running:
                    job.cancel()
                if running:
                    close_stations(self.job)  # what is under way ends between two batches

    def call(self, function: Callable[..., Result], *args: Any) -> Result:
        return function(*args)
