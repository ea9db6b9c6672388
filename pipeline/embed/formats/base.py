"""What an output format is: how it checks columns, writes a unit, and lists all units."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stores.errors import OptionError
from stores.format import manifest

FOLDER = "embeddings"
TILES = "tiles"
"""Name of the unit that a CSV of tiles is."""
Parts = Iterable[pa.Table]
"""Tables of `parts.schema` in order of rows."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is published together: a slide, or all tiles of a CSV."""

    name: str
    n_patches: int
    dim: int
    about: Mapping[str, Any]
    """What decides the values: encoder, patch or fit, reader; goes into the files."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The slide's row of the slides table; empty for tiles."""
    corner_px0: tuple[int, int] = (0, 0)
    """Left and top of what was scanned of the slide, in level-0 pixels; known for ``geojson`` alone."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The CSV's columns; empty for a slide."""


@dataclass(frozen=True, slots=True)
class Format:
    """How one of the formats is written."""

    check: Callable[[Mapping[str, Any], bool], None]
    """Raise OptionError when the columns (names, of the slides table or the CSV) do not do; True: for tiles."""
    write: Callable[[Path, Unit, Parts], list[Path]]
    """Write a unit below a folder, each file whole or not at all; returns the files that say it is there."""
    finish: Callable[[Path, Iterable[Unit]], None] = lambda folder, units: None
    """Write what lists all units, from those that are published."""
    refresh: Callable[[Path, Unit], list[Path]] = lambda folder, unit: []
    """Write a published slide again where its patient, split or own columns are others now, with the features that it
    has; returns the files that were written, none where nothing had changed."""


def any_columns(columns: Mapping[str, Any], tiles: bool) -> None: ...


def slides_only(name: str) -> Callable[[Mapping[str, Any], bool], None]:
    def check(columns: Mapping[str, Any], tiles: bool) -> None:
        if tiles:
            raise OptionError(
                f"--format {name}: is for slides, tiles have no place on one; use parquet, eva or plism"
            )

    return check


def ok_rows(part: pa.Table) -> pa.Table:
    return part.filter(pc.equal(part["status"], manifest.OK))
