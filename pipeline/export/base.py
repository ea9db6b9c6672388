"""What a format of `export` has to offer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.encoders.encoder import Encoder
from pipeline.export.check import Features
from pipeline.export.graph import Views


@dataclass(frozen=True, slots=True)
class Job:
    """One export."""

    encoder: Encoder
    """In eval mode on the CPU; in float16 where that is written."""
    takes: str
    """``uint8`` or ``float``."""
    dtype: str
    mpp: float | None
    """Micrometres per pixel of the patches; None where nobody says it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the student's ``config.json`` keeps of its training."""
    repository: str | None = None
    """``OWNER/NAME`` on the Hugging Face hub, with ``@BRANCH`` where it has one; None where it is not pushed."""


Run = Callable[[Views], Features]


@dataclass(frozen=True, slots=True)
class Format:
    """How files of one kind are written and run."""

    require: Callable[[Job], None]
    """Raises OptionError when it cannot be written: of this encoder, or on this machine. Called before any work."""
    write: Callable[[Job, Path], None]
    """Writes its files into a folder."""
    opened: Callable[[Job, Path], Run]
    """Opens the written files as a user would, and computes features of uint8 views with them."""
    usage: Callable[[Job], str]
    """Markdown for the card: what goes in, what comes out, and the lines of code that do it."""
    versions: Callable[[], Mapping[str, str]]
    """Versions of the packages that wrote it."""


def number_list(values: tuple[float, float, float]) -> str:
    """Mean or std as Python code.

    >>> number_list((0.5, 0.25, 1.0))
    '[0.5, 0.25, 1.0]'
    """
    return str(list(values))
