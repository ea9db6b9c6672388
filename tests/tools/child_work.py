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


def reads(reader: Any, row: int, x_px0: int, y_px0: int) -> Any:
    return reader.read(row, x_px0, y_px0)
