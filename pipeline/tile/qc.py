"""``--qc``: what another tool says of the quality of slides and patches, from untrusted files.

A folder of GeoJSON, a file for each slide: regions with a class, such as folds. A patch gets the share that regions of
each class cover. A table with slide_id, x_px0 and y_px0: a row for each patch, with scores. A table with slide_id
alone, or what HistoQC writes: a row for each slide.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.slides.slide import SlideInfo
from pipeline.tile.frames import choose_frame, frames_of, has_choice
from pipeline.tile.geojson import MisfitError, class_of, draw_feature, read_features
from pipeline.tile.options import TileOptions
from pipeline.tile.tissue import Bools, patch_tissue_fraction
from stores.errors import OptionError, SlideError, TissueError
from stores.format import manifest
from stores.format.qc import FRAME, LEFT_OUT, UNKNOWN, Judged, Limit, column_of, judge, parse_limits
from stores.io.progress import SILENT, Reporter
from stores.io.table import Table, check_names, match_slides, read_table

_ENDINGS = (".geojson", ".json")
_PLACE = ("x_px0", "y_px0")
_SLIDE = ("slide_id", "filename")
"""Columns that name the slide; HistoQC has the second."""
_HISTOQC = "#dataset:"
_EMPTY = frozenset(("", "na", "nan"))
_MAX_CLASSES = 64
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class SlideQc:
    """What is known of one slide; picklable."""

    what: str
    """Its source, for messages."""
    columns: tuple[str, ...] = ()
    """Columns in which patches are judged, of this slide or of others."""
    regions: Path | None = None
    """A file of regions."""
    of_slide: Mapping[str, float | None] | None = None
    """What is said of the slide as a whole, by column; None where there is no such table."""
    places: npt.NDArray[np.int64] | None = None
    """(n, 2), x and y of the patches that scores are of."""
    scores: npt.NDArray[np.float32] | None = None
    """(n, k), NaN where nothing is said."""

    @property
    def known(self) -> bool:
        """Whether anything is known of the slide."""
        said = any(value is not None for value in (self.of_slide or {}).values())
        return said or self.regions is not None or self.places is not None


@dataclass(frozen=True, slots=True)
class PatchQc:
    """What is known of the patches of a slide, (n,) each, and what limits make of them."""

    values: Mapping[str, npt.NDArray[np.float32]]
    """Columns for the table of patches."""
    judged: Judged
    unknown: Bools
    """Where some column says nothing."""
    regions: Bools | None
    """Regions of all classes as a mask of the slide; None without any."""
    frame: str
    """Where their coordinates began, when there was a choice."""


class Qc:
    """What ``--qc`` and its limits say of slides; made once, before any slide is opened."""

    def __init__(
        self,
        path: Path,
        at_most: Sequence[str],
        at_least: Sequence[str],
        slides: Mapping[str, Path],
        report: Reporter,
        again: bool,
    ) -> None:
        """Read what is small, and the names of all classes.

        Parameters
        ----------
        slides
            The files by id.
        again : bool
            Whether an earlier run accepted the limits: then no region of a class means that these slides have none.

        Raises
        ------
        OptionError
            When files or limits are wrong, a limit names no column, or nothing in `path` is of a slide.
        """
        self.what = f"--qc {path.name}"  # reasons stand in the store, which others get
        self.limits = parse_limits(at_most, at_least)
        names = {slide_id: file.name for slide_id, file in slides.items()}
        self._slides: dict[str, SlideQc] = {}
        self._else = SlideQc(self.what)
        if path.is_dir() or path.suffix.casefold() in _ENDINGS:
            self._read_regions(path, names, report, {limit.column for limit in self.limits if again})
        else:
            self._read_table(path, names, report)
        columns = {*self._else.columns, *(self._else.of_slide or {})}
        for limit in self.limits:
            if limit.column not in columns:
                found = ", ".join(sorted(name.removeprefix(manifest.QC) for name in columns)) or "none"
                raise OptionError(
                    f"{limit}: {self.what} has no such class or score; it has: {found} (a class without any region "
                    "needs no limit)"
                )
        without = [slide_id for slide_id in slides if slide_id not in self._slides]
        if without:
            shown = ", ".join(without[:_SHOWN])
            report.note(
                f"{self.what}: says nothing of {len(without)} of {len(slides)} slides, such as {shown}"
            )

    def of(self, slide_id: str) -> SlideQc:
        """What is known of a slide."""
        return self._slides.get(slide_id, self._else)

    def _read_regions(self, path: Path, names: Mapping[str, str], report: Reporter, known: set[str]) -> None:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix.casefold() in _ENDINGS]
        if not files:
            raise OptionError(
                f"{self.what}: no .geojson in the folder; give a folder of GeoJSON, a file for each slide, or a table"
            )
        by_name: dict[str, Path] = {}
        for file in files:
            if by_name.setdefault(file.stem, file) != file:
                raise OptionError(f"{self.what}: {by_name[file.stem].name} and {file.name}; keep one of them")
        meant = match_slides(by_name, names, self.what)
        _tell_lost(
            self.what, [by_name[text].name for text in by_name if text not in meant], len(files), report
        )
        report.start("qc", len(meant))
        columns: dict[str, str] = {}
        for text, slide_id in meant.items():
            file = by_name[text]
            for number, feature in enumerate(_features_of(file)):
                column, named = _column_of(feature, f"{file}: feature {number}")
                if columns.setdefault(column, named) != named:
                    raise OptionError(
                        f"{self.what}: the classes {columns[column]!r:.80} and {named!r:.80} would both be the column "
                        f"{column}; rename one"
                    )
            report.advance(1, slide_id)
        if len(columns) > _MAX_CLASSES:
            raise OptionError(f"{self.what}: {len(columns)} classes; at most {_MAX_CLASSES}")
        self._else = SlideQc(self.what, tuple(sorted({*columns, *known})))
        for text, slide_id in meant.items():
            self._slides[slide_id] = SlideQc(self.what, self._else.columns, by_name[text])

    def _read_table(self, path: Path, names: Mapping[str, str], report: Reporter) -> None:
        table = read_table(path, self.what, (*_SLIDE, *_PLACE), _HISTOQC)
        key = next((name for name in _SLIDE if name in table.names), _SLIDE[0])
        table.require(key)
        check_names(self.what, table.names, (key, *_PLACE), ())
        placed = [name for name in _PLACE if name in table.names]
        if len(placed) == 1 or {"x", "y"} & {name.casefold() for name in table.names}:
            raise OptionError(
                f"{self.what}: coordinates of patches are two columns x_px0 and y_px0, in level-0 pixels of the upper "
                "left corner; name them so, or leave both out for scores of whole slides"
            )
        numbers, columns = _numbers(table, {key, *placed}, report)
        rows: dict[str, list[int]] = {}
        for number, row in enumerate(table.rows):
            if not row[key]:
                raise OptionError(f"{table.at(number)}: no {key}")
            rows.setdefault(row[key], []).append(number)
        meant = match_slides(rows, names, self.what)
        _tell_lost(self.what, [text for text in rows if text not in meant], len(rows), report)
        if not placed:
            self._else = SlideQc(self.what, of_slide=dict.fromkeys(columns))
            for text, slide_id in meant.items():
                first, *others = rows[text]
                if others:
                    raise OptionError(f"{table.at(others[0])}: {key} {text!r:.100} occurs twice")
                values = [None if math.isnan(value) else value for value in numbers[first].tolist()]
                self._slides[slide_id] = SlideQc(self.what, of_slide=dict(zip(columns, values, strict=True)))
            return
        self._else = SlideQc(self.what, columns)
        for text, slide_id in meant.items():
            places = np.array([_place(table, number) for number in rows[text]], np.int64)
            first_at = np.unique(places, axis=0, return_index=True)[1]
            if len(first_at) < len(places):
                number = min(set(range(len(places))) - set(first_at.tolist()))
                raise OptionError(f"{table.at(rows[text][number])}: this patch occurs twice")
            scores = numbers[rows[text]].astype(np.float32)
            self._slides[slide_id] = SlideQc(self.what, columns, places=places, scores=scores)


def qc_of(
    options: TileOptions, slides: Mapping[str, Path], report: Reporter = SILENT, again: bool = False
) -> Qc | None:
    """What ``--qc`` says of slides; None without it. See `Qc`."""
    if options.qc is None:
        return None
    return Qc(options.qc.absolute(), options.qc_max, options.qc_min, slides, report, again)


def _tell_lost(what: str, lost: Sequence[str], total: int, report: Reporter) -> None:
    if lost:
        shown = ", ".join(lost[:_SHOWN])
        report.note(f"{what}: {len(lost)} of {total} are of no slide among the inputs, such as {shown}")


def _features_of(path: Path) -> list[Any]:
    try:
        return read_features(path)
    except TissueError as error:
        raise OptionError(f"--qc {error}") from None


def _column_of(feature: Any, where: str) -> tuple[str, str]:
    """The column of a region, and its class as it is written."""
    named = class_of(feature)
    if named is None:
        raise OptionError(
            f"--qc {where}: has no class; give each region one (in QuPath: Set class), whose name becomes a column; "
            "regions of good tissue, such as HistoQC's, belong to --masks"
        )
    try:
        return column_of(named), named
    except OptionError as error:
        raise OptionError(f"--qc {where}: {error}") from None


def _place(table: Table, number: int) -> tuple[int, int]:
    texts = [table.rows[number][name] for name in _PLACE]
    if not all(re.fullmatch(r"\d{1,9}(\.0+)?", text) for text in texts):
        raise OptionError(
            f"{table.at(number)}: x_px0 {texts[0]!r:.40}, y_px0 {texts[1]!r:.40}; allowed are whole level-0 pixels"
        )
    x, y = (int(float(text)) for text in texts)
    return x, y


def _numbers(
    table: Table, others: set[str], report: Reporter
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """The columns of numbers, (rows, k), and what they are called here; columns of other things are named in a note."""
    found: dict[str, list[float]] = {}
    named: dict[str, str] = {}
    left_out = []
    for name in table.names:
        if name in others:
            continue
        values = [_number(row[name]) for row in table.rows]
        if None in values or all(value is not None and math.isnan(value) for value in values):
            at = values.index(None) if None in values else 0
            left_out.append(
                f"{name} ({table.rows[at][name]!r:.30} in line {table.lines[at]})" if table.rows else name
            )
            continue
        column = column_of(name)
        if column in named:
            raise OptionError(
                f"{table.what}: the columns {named[column]!r:.80} and {name!r:.80} would both be {column}; rename one"
            )
        named[column] = name
        found[column] = [math.nan if value is None else value for value in values]
    if left_out:
        report.note(f"{table.what}: not taken, because they are not numbers: {', '.join(left_out)}")
    if not found:
        raise OptionError(f"{table.what}: no column of scores; each score is a column of numbers")
    columns = tuple(sorted(found))
    return np.array([found[name] for name in columns], np.float64).T.reshape(len(table.rows), -1), columns


def _number(text: str) -> float | None:
    """A score; NaN where nothing is said, None where it is none."""
    if text.casefold() in _EMPTY:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= np.finfo(np.float32).max else None


def judge_patches(
    qc: SlideQc,
    limits: Sequence[Limit],
    info: SlideInfo,
    scanned: npt.NDArray[np.float32],
    wanted_frame: str,
    x_px0: npt.NDArray[np.int32],
    y_px0: npt.NDArray[np.int32],
    sides_px0: tuple[int, int],
) -> PatchQc:
    """What is known of patches, and which of them the limits keep.

    Parameters
    ----------
    scanned : float32 (h, w)
        How much of each pixel of the overview was scanned; regions are drawn in its size.
    wanted_frame : str
        Of ``--qc-frame``.

    Raises
    ------
    SlideError
        When the slide's file does not fit, or limits have nothing to judge by.
    """
    if limits and not qc.known:
        raise SlideError(f"{qc.what} says nothing of this slide, and {limits[0]} takes no patch unseen")
    n, size_px0 = len(x_px0), (info.width_px0, info.height_px0)
    values = {name: np.full(n, np.nan, np.float32) for name in qc.columns}
    regions, frame = None, ""
    if qc.regions is not None:
        drawn = _draw(qc, qc.regions, info, scanned, wanted_frame)
        regions, frame = drawn.union, drawn.frame
        for name, mask in drawn.masks.items():
            values[name] = patch_tissue_fraction(mask, x_px0, y_px0, sides_px0, size_px0, whole=2)
    if qc.places is not None and qc.scores is not None:
        at = _rows_of(qc, x_px0, y_px0, sides_px0, size_px0)
        for number, name in enumerate(qc.columns):
            values[name] = np.where(at < 0, np.float32(np.nan), qc.scores[at, number])
    of_slide = {
        name: np.full(n, np.nan if value is None else value, np.float32)
        for name, value in (qc.of_slide or {}).items()
    }
    every = values | of_slide
    unknown = np.logical_or.reduce([np.zeros(n, bool), *(np.isnan(of) for of in every.values())])
    return PatchQc(values, judge(limits, every, n), unknown, regions, frame)


def qc_columns(slide: SlideQc, patches: PatchQc) -> dict[str, str | None]:
    """What stands in the slides table, as text."""
    row: dict[str, str | None] = {
        LEFT_OUT: str(int((~patches.judged.keep).sum())),
        UNKNOWN: str(int(patches.unknown.sum())),
    }
    if patches.frame:
        row[FRAME] = patches.frame
    said = (slide.of_slide or {}).items()
    return row | {name: None if value is None else repr(value) for name, value in said}


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The regions of a slide."""

    masks: Mapping[str, npt.NDArray[np.uint8]]
    """By column, of the whole slide: 2 inside of a region, 1 under an outline."""
    union: Bools
    frame: str
    """Where their coordinates began, when there was a choice."""


def _draw(qc: SlideQc, path: Path, info: SlideInfo, scanned: npt.NDArray[np.float32], wanted: str) -> _Drawn:
    """The regions of each class as a mask in the size of `scanned`, in the frame that `wanted` names or that fits."""
    shape, size_px0 = (scanned.shape[0], scanned.shape[1]), (info.width_px0, info.height_px0)
    by_column: dict[str, list[tuple[str, Any]]] = {name: [] for name in qc.columns}
    features = read_features(path)
    for number, feature in enumerate(features):
        where = f"{path}: feature {number}"
        try:
            column, _ = _column_of(feature, where)
        except OptionError as error:
            raise TissueError(str(error)) from None
        by_column.setdefault(column, []).append((where, feature))
    drawn: dict[str, dict[str, npt.NDArray[np.uint8]]] = {}
    unions, misfits = [], []
    for frame in frames_of(info, wanted):
        try:
            masks = {name: np.zeros(shape, np.uint8) for name in by_column}
            for name, regions in by_column.items():
                for where, feature in regions:
                    draw_feature(masks[name], feature, frame, size_px0, where, inside=2)
        except MisfitError as error:
            misfits.append(error)
            continue
        drawn[frame.name] = masks
        unions.append((frame, np.logical_or.reduce([np.zeros(shape, bool), *masks.values()])))
    if not unions:
        raise misfits[0]
    if not features:  # the tool looked, and found nothing
        frame, union = unions[0]
        return _Drawn(drawn[frame.name], union, "")
    frame, union = choose_frame(path, unions, scanned, "--qc-frame")
    return _Drawn(drawn[frame.name], union, frame.name if has_choice(info) else "")


def _rows_of(
    qc: SlideQc,
    x_px0: npt.NDArray[np.int32],
    y_px0: npt.NDArray[np.int32],
    sides_px0: tuple[int, int],
    size_px0: tuple[int, int],
) -> npt.NDArray[np.int64]:
    """The row of the table for each patch, -1 where there is none; SlideError for a row that is of no patch."""
    assert qc.places is not None
    off = np.flatnonzero((qc.places % sides_px0).any(axis=1) | (qc.places + sides_px0 > size_px0).any(axis=1))
    if len(off):
        x, y = qc.places[off[0]].tolist()
        wide, high = sides_px0
        raise SlideError(
            f"{qc.what}: no patch begins at {x}, {y} ({len(off)} of {len(qc.places)} rows): patches of {wide} by "
            f"{high} level-0 pixels begin at multiples of that; score the patches of a tiled store, or use another "
            "--mpp or --patch"
        )
    row = {(x, y): number for number, (x, y) in enumerate(qc.places.tolist())}
    return np.array(
        [row.get(place, -1) for place in zip(x_px0.tolist(), y_px0.tolist(), strict=True)], np.int64
    )
