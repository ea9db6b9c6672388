"""Progress of long work: what a function calls while it works, and a reporter that says nothing."""

from typing import Any, Protocol


class Reporter(Protocol):
    """Shows how far long work is. `pipeline.runtime.progress` has a bar and plain lines."""

    def note(self, text: str) -> None:
        """Say one line."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a piece of work of `total` units, `done` of which an earlier run has finished."""

    def advance(self, by: int = 1, detail: str = "") -> None:
        """Count units of the current work."""

    def record(self, event: str, **fields: Any) -> None:
        """Something for the structured log alone."""


class Silent:
    """Says nothing."""

    def note(self, text: str) -> None: ...

    def start(self, what: str, total: int, done: int = 0) -> None: ...

    def advance(self, by: int = 1, detail: str = "") -> None: ...

    def record(self, event: str, **fields: Any) -> None: ...


SILENT = Silent()
