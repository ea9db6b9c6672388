"""A reporter that keeps its notes."""

from typing import Any

from pipeline.runtime.progress import Silent


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.recorded: list[tuple[str, dict[str, Any]]] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def record(self, event: str, **fields: Any) -> None:
        self.recorded.append((event, fields))
