"""The CSV of slides: mpp, patients, splits and the user's own columns."""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stores.errors import OptionError, StoreError
from stores.format import manifest
from stores.io import files
from stores.io.foreign import read_csv

_TCGA_PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")


def read_slides_csv(path: Path | None) -> dict[str, dict[str, str]]:
    """Rows of ``--slides-csv`` by slide id; empty cells are left out.

    Raises
    ------
    OptionError
        When the file is absent, has no column slide_id, or a value in it is not allowed.
    """
    if path is None:
        return {}
    try:
        names, rows = read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error, StoreError) as error:
        raise OptionError(f"--slides-csv {path}: cannot be read ({files.first_line(error)})") from None
    if "slide_id" not in names:
        raise OptionError(f"--slides-csv {path}: no column slide_id; found {', '.join(names) or 'nothing'}")
    reserved = sorted(
        set(names) & set(manifest.SLIDES_SCHEMA.names) - {"slide_id", "mpp", "patient_id", "split"}
    )
    if reserved:
        raise OptionError(f"--slides-csv {path}: column {reserved[0]!r} is measured by g2l; rename it")
    result: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        slide_id = row["slide_id"]
        if slide_id in result:
            raise OptionError(f"--slides-csv {path} line {number}: slide_id {slide_id!r} occurs twice")
        result[slide_id] = {key: value for key, value in row.items() if key and value not in (None, "")}
        split = result[slide_id].get("split", "train")
        if split not in manifest.SPLITS:
            allowed = ", ".join(manifest.SPLITS)
            raise OptionError(f"--slides-csv {path} line {number}: split {split!r}; allowed: {allowed}")
    return result


def mpp_overrides(
    given: Sequence[str], table: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[float, str]]:
    """Level-0 mpp by slide id with its source; the option ``--slide-mpp ID=MPP`` overrides the CSV."""
    pairs = [(slide_id, row["mpp"], "csv") for slide_id, row in table.items() if "mpp" in row]
    for text in given:
        slide_id, equals, value = text.rpartition("=")
        if not equals:
            raise OptionError(
                f"--slide-mpp {text}: expected ID=MPP, with the micrometres per pixel of level 0"
            )
        pairs.append((slide_id, value, "option"))
    result = {}
    for slide_id, value, source in pairs:
        try:
            result[slide_id] = (float(value), source)
        except ValueError:
            raise OptionError(f"mpp of {slide_id}: {value!r} is not a number") from None
    return result


def split_of(patient_id: str, val: float) -> str:
    """The split of a patient: a hash of the id against the share, so that adding slides moves nobody.

    >>> split_of("patient-1", 0.0), split_of("patient-1", 0.999999)
    ('train', 'val')
    """
    digest = hashlib.blake2b(patient_id.encode(), digest_size=8, person=b"g2l-split").digest()
    return "val" if int.from_bytes(digest, "big") < val * 2**64 else "train"


def patient_of(slide_id: str) -> str:
    """The patient a slide is of, when no CSV says it: the TCGA barcode's patient, otherwise the slide itself."""
    match = _TCGA_PATIENT.match(slide_id)
    return match.group() if match else slide_id
