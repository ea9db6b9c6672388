"""What users know of slides: mpp, patients, splits and columns of their own, from a CSV and from options."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stores.errors import OptionError
from stores.format import manifest
from stores.format.committed import in_two_splits
from stores.io.progress import SILENT, Reporter
from stores.io.table import check_names, match_slides, read_table

_TCGA_PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")
_RESERVED = manifest.RESERVED - set(manifest.GIVEN)
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Given:
    """What a user says of the slides among the inputs."""

    cells: Mapping[str, Mapping[str, str]]
    """The cells of the CSV that are not empty, by slide id."""
    mpp: Mapping[str, tuple[float, str]]
    """Level-0 mpp by slide id, and its source: ``csv`` or ``option``."""


class SaysOfSlides(Protocol):
    """Options by which users say what they know of slides."""

    @property
    def slides_csv(self) -> Path | None:
        """A table."""

    @property
    def slide_mpp(self) -> Sequence[str]:
        """``ID=MPP``."""


def given_of(
    options: SaysOfSlides, slides: Mapping[str, Path], for_training: bool = True, report: Reporter = SILENT
) -> Given:
    """What ``--slides-csv`` and ``--slide-mpp`` say of slides.

    Parameters
    ----------
    slides
        The files by id.
    for_training : bool
        Refuse a patient in two splits, also of slides that are not among `slides`.

    Raises
    ------
    OptionError
        When the table or an option is wrong, or none of its ids is among `slides`.
    """
    table = read_slides_csv(options.slides_csv)
    if for_training:
        rows = [{"patient_id": "", "split": "", **cells, "slide_id": name} for name, cells in table.items()]
        require_one_split([row for row in rows if row["split"]], f"--slides-csv {options.slides_csv}: ")
    names = {slide_id: path.name for slide_id, path in slides.items()}
    what = f"--slides-csv {options.slides_csv}"
    meant = match_slides(table, names, what)
    lost = [slide_id for slide_id in table if slide_id not in meant]
    if lost:
        shown = ", ".join(lost[:_SHOWN])
        report.note(
            f"{what}: {len(lost)} of {len(table)} rows have no slide among the inputs, such as {shown}"
        )
        report.record("no slide", ids=lost)
    of_option = mpp_options(options.slide_mpp)
    known = match_slides(of_option, names, "--slide-mpp", some=False)
    for text in of_option:
        if text not in known:
            report.note(f"--slide-mpp {text}: there is no such slide among the inputs")
    cells = {meant[text]: row for text, row in table.items() if text in meant}
    mpp = {name: (_number(name, row["mpp"]), "csv") for name, row in cells.items() if "mpp" in row}
    return Given(
        cells, mpp | {known[text]: (mpp, "option") for text, mpp in of_option.items() if text in known}
    )


def read_slides_csv(path: Path | None) -> dict[str, dict[str, str]]:
    """Rows of ``--slides-csv`` by slide id as it stands there; empty cells are left out.

    Raises
    ------
    OptionError
        When the file is absent, has no column slide_id, names no slide, or a value in it is not allowed.
    """
    if path is None:
        return {}
    what = f"--slides-csv {path}"
    table = read_table(path, what, (*manifest.GIVEN, "label", "site", "group"))
    table.require("slide_id")
    check_names(what, table.names, manifest.GIVEN, _RESERVED)
    if not table.rows:
        raise OptionError(f"{what}: lists no slide")
    result: dict[str, dict[str, str]] = {}
    patients: dict[str, str] = {}
    for number, row in enumerate(table.rows):
        slide_id = row["slide_id"]
        if not slide_id:
            raise OptionError(f"{table.at(number)}: no slide_id")
        if slide_id in result:
            raise OptionError(f"{table.at(number)}: slide_id {slide_id!r} occurs twice")
        result[slide_id] = {key: value for key, value in row.items() if value}
        split = result[slide_id].get("split", "train")
        if split not in manifest.SPLITS:
            raise OptionError(f"{table.at(number)}: split {split!r}; allowed: {', '.join(manifest.SPLITS)}")
        patient_id = row.get("patient_id", "")
        other = patients.setdefault(patient_id.casefold(), patient_id)
        if other != patient_id:
            raise OptionError(
                f"{table.at(number)}: patient_id {patient_id!r}, and {other!r} above; write one patient in one way"
            )
    return result


def mpp_options(given: Sequence[str]) -> dict[str, float]:
    """Level-0 mpp by the id in ``--slide-mpp ID=MPP``."""
    result = {}
    for text in given:
        slide_id, equals, value = text.rpartition("=")
        if not equals:
            raise OptionError(
                f"--slide-mpp {text}: expected ID=MPP, with the micrometres per pixel of level 0"
            )
        result[slide_id] = _number(slide_id, value)
    return result


def _number(slide_id: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        remedy = "; write a point, not a comma" if "," in text else ""
        raise OptionError(f"mpp of {slide_id}: {text!r} is not a number{remedy}") from None


def require_one_split(rows: Iterable[Mapping[str, Any]], where: str = "") -> None:
    """Raise OptionError when a patient is in two splits; `where` begins the message."""
    for slide_id, problem in in_two_splits(list(rows), "patient_id", "patient"):
        raise OptionError(
            f"{where}slide {slide_id}: {problem}; give all slides of a patient one split in --slides-csv, or none"
        )


def patient_of(slide_id: str) -> str:
    """The patient a slide is of, when no CSV says it: the TCGA barcode's patient, otherwise the slide itself."""
    match = _TCGA_PATIENT.match(slide_id)
    return match.group() if match else slide_id
