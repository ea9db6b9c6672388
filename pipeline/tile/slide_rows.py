"""The row of a slide before the slide is opened: what the store knows, and what the user says of it now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tile.options import TileOptions
from pipeline.tile.qc import SlideQc
from pipeline.tile.slides_csv import Given
from pipeline.tile.splits import Splits
from stores.errors import OptionError
from stores.format import manifest, oblong
from stores.io.text import visible

_OVERRIDES = ("csv", "option")
"""Sources of an mpp that the user gave."""
_MEASURED = manifest.RESERVED - {"slide_id", "file_name", "patient_id", "split"}


@dataclass(frozen=True, slots=True)
class SlideWork:
    """A slide to tile."""

    slide_id: str
    path: Path
    row: Mapping[str, Any]
    """Its row of the slides table, as far as it is known before the slide is opened."""
    mpp: tuple[float, str] | None
    """A resolution that overrides the one in the slide, and its source."""
    done: bool = False
    """Whether it was tiled before, and `row` is whole."""
    is_oblong: bool = False
    """Whether its pixels were resampled to square ones before."""
    qc: SlideQc | None = None
    """What ``--qc`` says of it."""

    def __str__(self) -> str:
        return self.slide_id


def slide_work(
    store: Path,
    slide_id: str,
    path: Path,
    given: Given,
    splits: Splits,
    old: Mapping[str, Any] | None,
    options: TileOptions,
) -> SlideWork:
    if old is None:
        row = new_row(slide_id, path, given, splits)
        return SlideWork(slide_id, path.absolute(), row, given.mpp.get(slide_id))
    row = _known_row(store, old, path, given, splits, options)
    mpp = given.mpp.get(slide_id)
    if mpp is None and old["mpp_source"] in _OVERRIDES:
        mpp = old["mpp"], old["mpp_source"]
    is_oblong = old.get(oblong.MPP_Y) is not None
    same = mpp is None or (mpp[0] == old["mpp"] and not is_oblong)
    done = old["status"] == manifest.OK and same and _frame(old, options) == old.get("mask_frame")
    return SlideWork(slide_id, path.absolute(), row, mpp, done, is_oblong)


def new_row(slide_id: str, path: Path, given: Given, splits: Splits) -> dict[str, Any]:
    patient_id, split = splits.patients[slide_id], splits.of(slide_id)
    row = {**given.cells.get(slide_id, {}), "slide_id": slide_id, "file_name": path.name}
    mpp, source = given.mpp.get(slide_id, (None, None))
    return {**row, "mpp": mpp, "mpp_source": source, "patient_id": patient_id, "split": split, "n_patches": 0}


def _known_row(
    store: Path,
    old: Mapping[str, Any],
    path: Path,
    given: Given,
    splits: Splits,
    options: TileOptions,
) -> dict[str, Any]:
    """The row of a slide that the store knows, with what the user says of it now; what nobody says stays.

    Raises
    ------
    OptionError
        When patient, split or mpp would change, and views were committed with the old one.
    """
    slide_id = old["slide_id"]
    cells = given.cells.get(slide_id, {})
    own = {name: value for name, value in cells.items() if name != "mpp"}
    row = {**old, **own, "file_name": path.name, "split": splits.of(slide_id)}
    mpp, source = given.mpp.get(slide_id, (old["mpp"], ""))
    mpp_flag = "--slide-mpp" if source == "option" else "--slides-csv"
    for name, now, flag in (
        ("patient_id", row["patient_id"], "--slides-csv"),
        ("split", row["split"], "--slides-csv"),
        ("mpp", mpp, mpp_flag),
        (oblong.MPP_Y, None if slide_id in given.mpp else old.get(oblong.MPP_Y), mpp_flag),
        ("mask_frame", _frame(old, options), "--mask-frame"),
    ):
        if old["status"] == manifest.OK and now != old.get(name) and _has_views(store, slide_id):
            raise OptionError(
                f"slide {slide_id}: its views are committed with {name} {old[name]!r}, {flag} says {now!r}; "
                "correct that, or use another --store"
            )
    if old["status"] == manifest.OK:
        return row
    known = {name: value for name, value in row.items() if name not in _MEASURED}
    if slide_id in given.mpp:
        known |= {"mpp": mpp, "mpp_source": source}
    elif old["mpp_source"] in _OVERRIDES:
        known |= {"mpp": old["mpp"], "mpp_source": old["mpp_source"]}
    return known


def _frame(old: Mapping[str, Any], options: TileOptions) -> str | None:
    """The frame of a slide's mask, as the options have it now; None where it has no mask."""
    frame = old.get("mask_frame")
    return frame if frame is None or options.mask_frame == "auto" else options.mask_frame


def _has_views(store: Path, slide_id: str) -> bool:
    return next(manifest.commits(store, slide_id), None) is not None


def failed(row: Mapping[str, Any], reason: object) -> dict[str, Any]:
    return {**row, "status": "failed", "reason": visible(reason), "n_patches": 0}


def require_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if old.get(name) != new.get(name):
            raise OptionError(
                f"slide {old['slide_id']}: tiled with {name} {old.get(name)!r}, now {new.get(name)!r}; use another "
                "--store"
            )


def require_one_spelling(rows: Mapping[str, Mapping[str, Any]], given: Given) -> None:
    """Raise OptionError when a patient of the CSV differs from another in case alone."""
    of_table = {i: cells["patient_id"] for i, cells in given.cells.items() if "patient_id" in cells}
    spelled = {patient_id.casefold(): patient_id for patient_id in of_table.values()}
    for slide_id, row in rows.items():
        patient_id = spelled.get(row["patient_id"].casefold(), row["patient_id"])
        if patient_id != row["patient_id"]:
            raise OptionError(
                f"--slides-csv: patient {patient_id!r}, and {row['patient_id']!r} of slide {slide_id} in the store; "
                "write one patient in one way"
            )
