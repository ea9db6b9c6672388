"""Work for the processes of a `PatchPool`; imports next to nothing, so that they start quickly."""

import os
import threading
from typing import Any


def dies(reader: Any, *args: Any) -> None:
    os._exit(1)


def fails(reader: Any, error: Exception) -> None:
    raise error


def whose(reader: Any, number: int) -> tuple[int, str]:
    """The number, and which process and thread has it."""
    return number, f"{os.getpid()} {threading.get_ident()}"


class Counted:
    """A source that counts how often it is sent."""

    def __init__(self, slide_id: str) -> None:
        self.slide_id = self.key = slide_id
        self.sent = 0

    def __reduce__(self) -> tuple[Any, ...]:
        self.sent += 1
        return type(self), (self.slide_id,)

    def open(self) -> Any:
        return self

    def close(self) -> None: ...


def names(reader: Any) -> str:
    """The source that a worker has."""
    return str(reader.slide_id)


def reads(reader: Any, row: int, x_px0: int, y_px0: int) -> Any:
    return reader.read(row, x_px0, y_px0)
