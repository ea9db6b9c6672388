"""The metrics of a run: always JSON lines, and TensorBoard events on request."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stores.errors import OptionError
from stores.io.files import parse_json, write_text
from stores.io.foreign import TABLE_BYTES, read_regular


class MetricsLog:
    """Appends to ``metrics.jsonl``; a resumed run first removes records after its checkpoint."""

    def __init__(self, run: Path, done: int, tensorboard: bool) -> None:
        self.path = run / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record["step"] <= done] if done else []
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._events = _events(run, done) if tensorboard else None

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Write one record, ``kind`` being ``train`` or ``val``."""
        self._file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
        if self._events is not None:
            for name, value in figures.items():
                for inner, number in _numbers(name, value):
                    self._events.add_scalar(f"{kind}/{inner}", number, step)

    def flush(self) -> None:
        """Flush what was written to the disk: a checkpoint relies on the records up to its step."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete records. The last line of a killed run may be incomplete; it is left out."""
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    for line in read_regular(path, TABLE_BYTES, inside=path.parent).decode("utf-8", "replace").splitlines():
        try:
            record = parse_json(line, finite=False)
        except ValueError:
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
    return records


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """A figure under its name; those of each teacher under the names of both."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    else:
        yield name, value


def _events(run: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise OptionError(
            "--tensorboard: the package is not installed; pip install 'g2l[tensorboard]'"
        ) from None
    return SummaryWriter(str(run / "tensorboard"), purge_step=done)
