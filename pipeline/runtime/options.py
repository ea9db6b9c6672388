"""The options of every stage as frozen dataclasses, shared by command line, config file and written JSON.

A field is the option ``--name-with-dashes``, the key in ``--config FILE.yaml`` and the key in ``options/*.json``.
Its metadata carry the help text. This module imports nothing heavy, so that ``--help`` stays quick.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stores.errors import OptionError


def option(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field with a help text, and the allowed values where they are a list."""
    return field(default=default, metadata={"help": text, "choices": choices})


def to_json(options: Any) -> dict[str, Any]:
    """Options as plain JSON types; paths become text."""
    return {key: _plain(value) for key, value in asdict(options).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_json(kind: Any, value: Mapping[str, Any]) -> Any:
    """Options from parsed JSON or YAML: what `to_json` wrote; unknown keys are an OptionError."""
    known = {f.name: f.type for f in fields(kind)}
    for key in value:
        if key not in known:
            raise OptionError(f"option {key!r}: not one of {', '.join(known)}")
    return kind(**{key: _typed(known[key], item) for key, item in value.items()})


def _typed(kind: Any, item: Any) -> Any:
    if isinstance(item, list | tuple):
        inner = next((t for t in (Path, int) if t.__name__ in str(kind)), str)
        try:
            return tuple(inner(x) for x in item)
        except (TypeError, ValueError):
            raise OptionError(f"{item}: a list of {inner.__name__} is expected") from None
    return Path(item) if item is not None and "Path" in str(kind) else item


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise OptionError ``--name VALUE: allowed ...`` unless `condition` holds."""
    if not condition:
        raise OptionError(f"--{name.replace('_', '-')} {value}: allowed is {allowed}")


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where work runs. Changes no byte of a result on a CPU, hence stands in no recipe."""

    workers: int | None = option(None, "Run in so many processes on this machine.")
    scheduler: str | None = option(None, "Run on the workers of this dask scheduler, as tcp://host:8786.")

    def validate(self) -> None:
        """Raise OptionError that names the first value that is not allowed."""
        require(self.workers is None or self.workers >= 1, "workers", self.workers, "1 or more")
        if self.workers is not None and self.scheduler is not None:
            raise OptionError("--workers and --scheduler: give one of them")


IN_PROCESS = ClusterOptions()


def require_machine(options: Any) -> None:
    for name in ("batch_size", "threads"):
        value = getattr(options, name)
        require(value is None or value >= 1, name, value, "1 or more")


def require_weights(options: Any) -> None:
    if options.weights is not None and options.random_weights is not None:
        raise OptionError("--weights and --random-weights: give one of them")
    if options.weights is not None and not options.weights.exists():
        raise OptionError(f"--weights {options.weights}: no such file or folder")
