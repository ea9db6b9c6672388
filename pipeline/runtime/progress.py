"""Progress of long work: a bar on a terminal, plain lines in a log file, or nothing.

What is shown holds names of slides and files, which anybody may have chosen: no escape of them reaches the terminal,
and no bracket of them is taken for a mark of style.
"""

import sys
import time
from typing import IO, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stores.io.progress import Reporter, Silent
from stores.io.text import visible

__all__ = ["Bar", "Lines", "Reporter", "Silent", "reporter_for"]

LINE_SECONDS = 15.0


class Lines:
    """Plain lines, at most one in 15 seconds: for log files and pipes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._what, self._total, self._done, self._first, self._last = "", 0, 0, 0, 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def note(self, text: str) -> None:
        print(visible(text), file=self._stream, flush=True)

    def start(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        self._began = self._last = time.monotonic()

    def advance(self, by: int = 1, detail: str = "") -> None:
        self._done += by
        now = time.monotonic()
        if now - self._last < LINE_SECONDS and self._done < self._total:
            return
        self._last = now
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        self.note(f"{self._what}: {self._done}/{self._total} ({rate:.1f}/s) {detail}".rstrip())

    def record(self, event: str, **fields: Any) -> None: ...


class Bar:
    """A rich progress bar; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
        )
        self._task = self._progress.add_task("", visible=False, detail="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(visible(text), markup=False, emoji=False, highlight=False)

    def start(self, what: str, total: int, done: int = 0) -> None:
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(visible(what), total=total, completed=done, detail="")

    def advance(self, by: int = 1, detail: str = "") -> None:
        self._progress.update(self._task, advance=by, detail=visible(detail))

    def record(self, event: str, **fields: Any) -> None: ...


def reporter_for(stream: IO[str] = sys.stderr) -> Lines | Bar:
    """A bar when `stream` is a terminal, plain lines otherwise."""
    return Bar(Console(file=stream)) if stream.isatty() else Lines(stream)
