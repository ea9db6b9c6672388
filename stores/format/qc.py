"""What another tool says of the quality of patches, and limits by which patches are left out.

Each judgement is a column ``qc_*``: of numbers in the tables of patches, where it is of patches, and of text in the
slides table, where it is of whole slides. An empty cell means that nothing is known, and never that a patch is good.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import CorruptStore, OptionError
from stores.format import manifest
from stores.io.location import StoreLike
from stores.io.text import counted, one_line

FRAME, LEFT_OUT, UNKNOWN = "qc_frame", "qc_left_out", "qc_unknown"
"""Columns of the slides table that ``tile --qc`` writes: where coordinates began, when there was a choice; how many
patches with enough tissue the limits left out; of how many patches with enough tissue something is not known."""
OURS = frozenset((FRAME, LEFT_OUT, UNKNOWN))
"""These, which are no judgement."""
_MAX_NAME = 60


def column_of(name: str) -> str:
    """The column of a class or score that another tool calls `name`.

    >>> column_of("Edge & Air Bubble"), column_of("#pieces_of_tissue"), column_of("qc_fold")
    ('qc_edge_air_bubble', 'qc_pieces_of_tissue', 'qc_fold')

    Raises
    ------
    OptionError
        When no column can be called so.
    """
    plain = re.sub(r"[\W_]+", "_", unicodedata.normalize("NFKC", name).casefold()).strip("_")
    column = manifest.QC + plain.removeprefix(manifest.QC)
    if column == manifest.QC or column in OURS or len(column) > _MAX_NAME:
        raise OptionError(
            f"{name!r:.80}: cannot be the name of a QC column; allowed is a name with letters or digits, of at most "
            f"{_MAX_NAME} characters, other than frame, left_out and unknown"
        )
    return column


@dataclass(frozen=True, slots=True)
class Limit:
    """A patch stays when its value in a column is not beyond a bound."""

    column: str
    bound: float
    is_max: bool

    def __str__(self) -> str:
        name = self.column.removeprefix(manifest.QC)
        return f"--qc-{'max' if self.is_max else 'min'} {name}={self.bound:g}"

    def keeps(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which values are within the bound; NaN is not."""
        bound = np.float32(self.bound)  # the columns are float32: a score of 0.1 is within the bound 0.1
        return values <= bound if self.is_max else values >= bound


def parse_limits(at_most: Iterable[str], at_least: Iterable[str]) -> tuple[Limit, ...]:
    """The limits of ``--qc-max NAME=VALUE`` and ``--qc-min NAME=VALUE``, sorted.

    >>> [str(limit) for limit in parse_limits(["Fold=0.10"], ["qc_focus=3"])]
    ['--qc-min focus=3', '--qc-max fold=0.1']

    Raises
    ------
    OptionError
        When one has another form, or a name has two bounds of a kind.
    """
    found: dict[tuple[str, bool], Limit] = {}
    for texts, is_max in ((at_most, True), (at_least, False)):
        flag = f"--qc-{'max' if is_max else 'min'}"
        for text in texts:
            name, equals, value = text.rpartition("=")
            try:
                bound = float(value)
            except ValueError:
                bound = math.nan
            if not equals or not math.isfinite(bound):
                raise OptionError(f"{flag} {text!r:.100}: expected NAME=NUMBER, such as fold=0.1")
            try:
                limit = Limit(column_of(name), bound, is_max)
            except OptionError as error:
                raise OptionError(f"{flag} {text!r:.100}: {error}") from None
            if (limit.column, is_max) in found:
                raise OptionError(f"{flag} {text!r:.100}: {name} has a bound already; give one")
            found[limit.column, is_max] = limit
    return tuple(found[key] for key in sorted(found))


def columns_of_slides(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of the slides table in which slides are judged, sorted."""
    return sorted({name for row in rows for name in row if name.startswith(manifest.QC)} - OURS)


def was_judged(row: Mapping[str, Any]) -> bool:
    """Whether a slide was tiled with ``--qc``."""
    return row.get(LEFT_OUT) is not None


def values_of(
    row: Mapping[str, Any], patches: manifest.Patches, column: str
) -> npt.NDArray[np.float32] | None:
    """What a column says of the patches of a slide, float32 (n,); None when neither table has the column.

    Raises
    ------
    CorruptStore
        When the slides table has a text there that is no number.
    """
    if column in patches.qc:
        return patches.qc[column]
    if column not in row or column in OURS:
        return None
    text = row[column]
    try:
        value = math.nan if not text else float(text)
    except ValueError:
        raise CorruptStore(
            f"slide {row['slide_id']}: {column} is {text!r:.60} in the slides table, not a number"
        ) from None
    return np.full(len(patches), value, np.float32)


def summary(store: StoreLike, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What another tool says of the patches of a store, as JSON types; None where ``--qc`` was never given.

    Returns
    -------
    dict
        ``left_out``, patches with enough tissue that limits left out at tiling; ``columns``, each with the number of
        patches it has a value for (``known``) and has none for (``unknown``), mean, 95th percentile and maximum.
    """
    rows = list(rows)
    if not any(was_judged(row) for row in rows):
        return None
    of_slides = columns_of_slides(rows)
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    total = 0
    for row in rows:
        if row["status"] == manifest.OK:
            patches = manifest.read_patches(store, row["slide_id"], row["n_patches"])
            total += len(patches)
            for column in dict.fromkeys((*patches.qc, *of_slides)):
                values = values_of(row, patches, column)
                if values is not None:
                    found.setdefault(column, []).append(values[~np.isnan(values)])
    columns: dict[str, dict[str, float]] = {}
    for column, parts in sorted(found.items()):
        values = np.concatenate(parts).astype(np.float64)
        columns[column] = {"known": len(values), "unknown": total - len(values)}
        if len(values):
            columns[column] |= {
                "mean": float(values.mean()),
                "p95": float(np.quantile(values, 0.95)),
                "max": float(values.max()),
            }
    return {"left_out": sum(count_in(row, LEFT_OUT) for row in rows), "columns": columns}


def lines(judged: Mapping[str, Any]) -> list[str]:
    """What `summary` found, to read."""
    found = [f"qc        {counted(judged['left_out'], 'patch', 'patches')} left out at tiling"]
    for column, of in judged["columns"].items():
        name = one_line(column.removeprefix(manifest.QC))
        said = (
            "mean {mean:.3g}, 95th percentile {p95:.3g}, max {max:.3g}".format(**of)
            if of["known"]
            else "no value"
        )
        found.append(f"  {name}: {said}" + (f"; not known of {of['unknown']:,}" if of["unknown"] else ""))
    return found


def count_in(row: Mapping[str, Any], column: str) -> int:
    """A number of patches in the slides table; 0 where there is none."""
    text = row.get(column)
    return int(text) if isinstance(text, str) and re.fullmatch(r"\d{1,9}", text) else 0


@dataclass(frozen=True, slots=True)
class Judged:
    """What limits make of some patches."""

    keep: npt.NDArray[np.bool_]
    """(n,)"""
    beyond: Mapping[Limit, int]
    """How many patches each limit leaves out for their value; a patch can count for several."""
    unknown: int
    """How many are left out because a limit has no value to judge."""


def judge(limits: Sequence[Limit], values: Mapping[str, npt.NDArray[np.float32]], n_patches: int) -> Judged:
    """Apply limits to the columns that they name, (n_patches,) each; one that is missing says nothing of any patch."""
    nothing = np.full(n_patches, np.nan, np.float32)
    columns = [values.get(limit.column, nothing) for limit in limits]
    unknown = np.zeros(n_patches, bool)
    for column in columns:
        unknown |= np.isnan(column)
    keep = ~unknown
    beyond = {}
    for limit, column in zip(limits, columns, strict=True):
        within = limit.keeps(column)
        beyond[limit] = int((~within & ~np.isnan(column)).sum())
        keep &= within
    return Judged(keep, beyond, int(unknown.sum()))


def described(beyond: Mapping[Limit, int], unknown: int) -> str:
    """Why patches were left out, in words; empty where none was."""
    said = [f"{limit}: {count:,}" for limit, count in beyond.items() if count]
    said += [f"without a value: {unknown:,}"] if unknown else []
    return ", ".join(said)


def problems(patches: manifest.Patches) -> Iterable[str]:
    """What is wrong with the QC columns of a table of patches."""
    for name, values in patches.qc.items():
        wrong = int(np.isinf(values).sum())
        if wrong:
            yield f"{name} is infinite for {counted(wrong, 'patch', 'patches')}"
