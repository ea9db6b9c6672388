"""Ctrl-C and SIGTERM as a request to stop, which a loop follows at its next safe point."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Work stopped on request, with everything so far on disk."""


@dataclass(slots=True)
class Stop:
    """Whether a stop was requested."""

    requested: bool = False


@contextlib.contextmanager
def stop_on_signal(launched: bool = False) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once.

    Parameters
    ----------
    launched : bool
        A launcher passes signals on: after Ctrl-C its SIGTERM is the same request once more.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested and not (launched and number == signal.SIGTERM):
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_with_parent(every_s: float = 0.5) -> Iterator[None]:
    """Send this process SIGTERM when the process that started it is gone.

    A launcher that is killed cannot pass signals on. What it started would go on writing beside what is started next.

    Parameters
    ----------
    every_s : float
        Seconds between two looks.
    """
    parent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, name="parent", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
