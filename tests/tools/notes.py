"""A reporter that keeps its notes."""

from pipeline.runtime.progress import Silent


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)
