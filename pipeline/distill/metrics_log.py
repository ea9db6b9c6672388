"""The metrics of a run: always JSON lines, and TensorBoard events on request."""

import json
import os
from pathlib import Path
from typing import Any

from stores.errors import OptionError
from stores.io.files import write_text


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
                self._events.add_scalar(f"{kind}/{name}", value, step)

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
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _events(run: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise OptionError(
            "--tensorboard: the package is not installed; pip install 'g2l[tensorboard]'"
        ) from None
    return SummaryWriter(str(run / "tensorboard"), purge_step=done)
