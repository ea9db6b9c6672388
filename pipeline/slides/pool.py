"""A pool of workers that read patches, from slide files or from the store's pixels: both stages read with it."""

import collections
import contextlib
import itertools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import cv2

from pipeline.slides.sources import Reader, Source
from stores.errors import ClusterError, SlideError

_MOST_ROWS = 32  # as many as a chunk of kept pixels has
_MOST_VIEWS = 64
_OPEN_PER_THREAD = 4
_KNOWN = 16
_ATTEMPTS = 2


def rows_at_once(n_seeds: int) -> int:
    """Rows that one worker reads at once, a power of 2, so that few tiles and chunks are decoded by two workers.

    Cut at multiples of it, such rows are a rectangle of the grid. What a worker holds of them stays small, whatever the
    number of seeds.
    """
    most = max(1, min(_MOST_ROWS, _MOST_VIEWS // n_seeds))
    return 1 << (most.bit_length() - 1)


class _Readers:
    """The last few readers that a thread or process has open."""

    def __init__(self) -> None:
        self._open: collections.OrderedDict[str, Reader] = collections.OrderedDict()

    def do(self, source: Source, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return work(self._of(source), *args)

    def _of(self, source: Source) -> Reader:
        if source.key not in self._open:
            self._open[source.key] = source.open()
            if len(self._open) > _OPEN_PER_THREAD:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(source.key)
        return self._open[source.key]

    def close(self) -> None:
        for reader in self._open.values():
            reader.close()


class PatchPool:
    """Threads or processes, each with its own few open readers; a context manager that closes them.

    Threads share memory and start at once, but Python lets one of them run at a time: beside a GPU, whose kernels are
    launched from Python too, sixteen of them kept an H200 at half its speed. Processes do not.

    Parameters
    ----------
    workers : int
        How many.
    processes : bool
        Processes; then `work`, its arguments and results are pickled.
    """

    def __init__(self, workers: int, processes: bool = False) -> None:
        if processes and multiprocessing.current_process().daemon:
            raise ClusterError(
                "this worker may not start processes, which read patches beside a GPU: start it with --no-nanny or "
                "DASK_DISTRIBUTED__WORKER__DAEMON=False, or give --readers threads"
            )
        cv2.setNumThreads(1)  # OpenCV's own threads would compete with the workers
        self._processes = processes
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="patches")
        self._local = threading.local()
        self._hands: list[_Readers | _Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and close what they have open."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for hand in self._hands:
            hand.close()

    def submit(self, source: Source, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run ``work(reader, *args)`` in a worker, with that worker's reader of `source`.

        A process that dies is replaced and its work done again; when that dies too, the result is a SlideError.
        """
        return self._pool.submit(self._do, source, work, args)

    def submit_all(
        self, source: Source, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> Future[Any]:
        """As `submit`, for several calls of `work` in turn; the future's result is the list of theirs.

        For rows that lie side by side in the slide: one worker decodes what they share once.
        """
        return self.submit(source, _each, work, calls)

    def _do(self, source: Source, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if not hasattr(self._local, "hand"):
            self._local.hand = _Process() if self._processes else _Readers()
            self._hands.append(self._local.hand)
        hand: _Readers | _Process = self._local.hand
        return hand.do(source, work, args)


def _each(reader: Reader, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [work(reader, *args) for args in calls]


class _Known:
    """The last few sources that were sent to a process; both ends of its line keep one, and alike.

    A source may be large: of 100,000 tiles that have other names now it is 8.4 MB, and pickled and back 0.8 s.
    """

    def __init__(self) -> None:
        self._of_key: dict[str, Source] = {}

    def add(self, source: Source) -> None:
        if len(self._of_key) == _KNOWN:
            self._of_key.clear()
        self._of_key[source.key] = source

    def __contains__(self, source: Source) -> bool:
        return self._of_key.get(source.key) == source

    def __getitem__(self, key: str) -> Source:
        return self._of_key[key]


class _Process:
    """A process that reads, and this thread's line to it.

    No other process holds an end of the line, so the death of either side is an end of file for the other. (The
    standard library's pool has one line for all: a process that is killed while it sends leaves the others waiting.)
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._known = _Known()

    def do(self, source: Source, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        for _ in range(_ATTEMPTS):
            try:
                if source not in self._known:
                    self._line.send(source)
                    self._known.add(source)
                self._line.send((source.key, work, args))
                done, value = self._line.recv()
            except (EOFError, OSError):
                self.close()
                self._begin()
                continue
            if done:
                return value
            raise value
        raise SlideError(
            f"{source.slide_id}: the process that reads it died {_ATTEMPTS} times, of memory perhaps; fewer --threads"
        )

    def close(self) -> None:
        self._line.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        # dead; but another thread that starts a process may have collected it, and then it never counts as dead
        with contextlib.suppress(ValueError):
            self._process.close()


def _serve(line: Any) -> None:
    """Read for the other end of the line until it is closed; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    readers, known = _Readers(), _Known()
    with contextlib.suppress(EOFError, OSError):
        while True:
            received = line.recv()
            if not isinstance(received, tuple):
                known.add(received)
                continue
            key, work, args = received
            try:
                answer = (True, readers.do(known[key], work, args))
            except Exception as error:
                answer = (False, error)
            line.send(answer)


def started(jobs: Iterable[Future[Any]], ahead: int) -> Iterator[Future[Any]]:
    """The jobs in order; starts the first `ahead` now, and each further one when one is taken."""
    left = iter(jobs)
    waiting = collections.deque(itertools.islice(left, ahead))

    def rest() -> Iterator[Future[Any]]:
        try:
            while waiting:
                yield waiting.popleft()
                waiting.extend(itertools.islice(left, 1))
        finally:
            for job in waiting:
                job.cancel()

    return rest()
