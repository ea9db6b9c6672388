"""A reporter that ends work as Ctrl-C does."""

from stores.io.progress import Silent


class Interrupted(Silent):
    """Raises KeyboardInterrupt when the `after`-th unit of work is done."""

    def __init__(self, after: int = 1) -> None:
        self._left = after

    def advance(self, by: int = 1, detail: str = "") -> None:
        self._left -= by
        if self._left <= 0:
            raise KeyboardInterrupt
