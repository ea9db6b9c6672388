"""The log of a command as JSON lines: its messages and its progress.

Every run of a command appends to ``STORE/logs/COMMAND.jsonl`` or ``RUN/log.jsonl``. Logs stay where they were written:
no copy, seal or upload of a store includes them. Text in them may come from foreign files: each is made one line
without control characters, so that a terminal can show it.
"""

import contextlib
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from pipeline.runtime.progress import LINE_SECONDS, Reporter
from stores.io import files
from stores.io.text import one_line

_TEXT = 4000
"""Characters of a text that a log keeps."""


class RunLog:
    """A reporter that writes a log and calls another reporter; a context manager.

    The file is made when the work itself begins, so that a mistake in the options leaves no file.

    Parameters
    ----------
    path : Path
        The JSON lines: ``time`` (UTC, ISO 8601), ``event`` (begin, start, progress, note, failed, end), and its fields.
    """

    def __init__(self, to: Reporter, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._to, self._path, self._clock = to, path, clock
        self._early: list[str] = []
        self._file: IO[str] | None = None
        self._what, self._total, self._done, self._last = "", 0, 0, 0.0
        self._began = clock()

    def __enter__(self) -> Self:
        self._write("begin")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        said = None if kind is None else f"{kind.__name__}: {error}"
        self._progress("")
        self._write("end", seconds=round(self._clock() - self._began, 3), error=said)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def note(self, text: str) -> None:
        self._write("note", text=text)
        self._to.note(text)

    def start(self, what: str, total: int, done: int = 0) -> None:
        self._progress("")
        self._what, self._total, self._done, self._last = what, total, done, self._clock()
        if self._file is None:
            with contextlib.suppress(OSError):
                self._file = files.open_log(self._path)
                self._file.writelines(self._early)
            self._early.clear()
        self._write("start", what=what, total=total, done=done)
        self._to.start(what, total, done)

    def advance(self, by: int = 1, detail: str = "") -> None:
        self._done += by
        if self._clock() - self._last >= LINE_SECONDS:
            self._progress(detail)
        self._to.advance(by, detail)

    def record(self, event: str, **fields: Any) -> None:
        self._write(event, **fields)

    def _progress(self, detail: str) -> None:
        if self._what:
            self._last = self._clock()
            self._write("progress", what=self._what, done=self._done, total=self._total, detail=detail)

    def _write(self, event: str, **fields: Any) -> None:
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).isoformat(timespec="milliseconds")
        shown = {
            name: one_line(value, _TEXT) if isinstance(value, str) else value
            for name, value in fields.items()
        }
        line = json.dumps({"time": now, "event": event, **shown}) + "\n"
        if self._file is None:
            self._early.append(line)
        else:
            with contextlib.suppress(OSError):  # the work itself reports a full disk
                self._file.write(line)
