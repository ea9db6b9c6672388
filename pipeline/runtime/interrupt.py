"""Ctrl-C and SIGTERM as a request to stop, which a loop follows at its next safe point."""

import contextlib
import signal
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
