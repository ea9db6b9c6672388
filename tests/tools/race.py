"""Processes that do the same thing at the same moment."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stores.combine.subset import Selection, subset
from stores.errors import OptionError
from stores.io import lock


def race(times: int, job: Callable[..., None], *args: Any) -> list[str]:
    """Call a function in several processes at once: ``wrote``, ``refused`` (an OptionError), or the error of each."""
    context = multiprocessing.get_context("forkserver")
    barrier, outcomes = context.Barrier(times), context.SimpleQueue()
    processes = [context.Process(target=_do, args=(barrier, outcomes, n, job, args)) for n in range(times)]
    for process in processes:
        process.start()
    found = [outcomes.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def _do(barrier: Any, outcomes: Any, number: int, job: Callable[..., None], args: tuple[Any, ...]) -> None:
    barrier.wait()
    try:
        job(number, barrier, *args)
        outcomes.put("wrote")
    except OptionError:
        outcomes.put("refused")
    except BaseException as error:
        outcomes.put(f"{type(error).__name__}: {error}")


def hold(number: int, barrier: Any, folder: Path, with_locks: bool) -> None:
    """Hold the lock of a folder until all have asked for it."""
    if not with_locks:
        _as_a_host_of_its_own(number)
    try:
        with lock.only_writer(folder):
            barrier.wait()
    except BaseException:
        barrier.wait()  # whatever it is: the others wait
        raise


def _as_a_host_of_its_own(number: int) -> None:
    import filelock

    def unsupported(self: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    filelock.FileLock.acquire = unsupported  # type: ignore[assignment, method-assign]
    owner = lock.Owner(f"node{number}", f"boot {number}", os.getpid(), "now")
    lock.Owner.here = classmethod(lambda cls: owner)  # type: ignore[assignment, method-assign]


def subset_all(number: int, barrier: Any, store: Path, out: Path, same: bool) -> None:
    """Copy a whole store; unless `same`, each process asks for it in other words."""
    subset(store, out, Selection() if same else Selection(seeds=10 + number))
