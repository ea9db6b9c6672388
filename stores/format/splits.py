"""How many slides, patients and patches each split of a store has, and what is wrong with that for a training."""

from collections.abc import Iterable, Mapping
from typing import Any

from stores.format import manifest, tiles
from stores.io.text import counted

TRAIN, VAL = "train", "val"
REMEDY = "give splits in the table of slides or tiles (column split), or take more patients"
"""What helps where a split is empty. A larger ``--val`` moves no patient whose split is recorded."""
FEW_PATCHES = 100
"""A share that is measured on 100 patches has a standard error of up to 5 points."""


def count_splits(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int | None]]:
    """``patients``, ``slides`` and ``patches`` of each split, of usable slides.

    The number of patients is None where a group of tiles does not know its patients.
    """
    usable = [row for row in rows if row["status"] == manifest.OK]
    counts: dict[str, dict[str, int | None]] = {}
    for name in manifest.SPLITS:
        of_split = [row for row in usable if row["split"] == name]
        if of_split:
            patients = {row["patient_id"] for row in of_split}
            counts[name] = {
                "patients": None if any(map(_is_mixed, of_split)) else len(patients),
                "slides": len(of_split),
                "patches": sum(row["n_patches"] for row in of_split),
            }
    return counts


def _is_mixed(row: Mapping[str, Any]) -> bool:
    """Whether a row is a group of tiles that were put together for their split alone."""
    return row["vendor"] == tiles.VENDOR and row["patient_id"] == f"tiles-{row['split']}"


def split_warnings(counts: Mapping[str, Mapping[str, int | None]]) -> list[str]:
    """What a training on these splits cannot do, a line each."""
    if not counts:
        return []
    said = []
    if TRAIN not in counts:
        said.append(f"no patient trains: {REMEDY}")
    held_out = counts.get(VAL)
    if held_out is None:
        patients = counts.get(TRAIN, {}).get("patients")
        one = "there is one patient only, and " if patients == 1 and len(counts) == 1 else ""
        said.append(f"{one}no patient is held out, so that no training on this can be validated: {REMEDY}")
    elif held_out["patients"] == 1:
        said.append("one patient is held out: what is measured there need not hold for another patient")
    for name in (TRAIN, VAL):
        patches = counts.get(name, {}).get("patches")
        if patches is not None and patches < FEW_PATCHES:
            said.append(
                f"split {name} has {counted(patches, 'patch', 'patches')} only: figures on fewer than "
                f"{FEW_PATCHES} are rough"
            )
    return said


def split_lines(counts: Mapping[str, Mapping[str, int | None]]) -> list[str]:
    """The counts to read, a line for each split."""
    lines = []
    for name, count in counts.items():
        numbers = (count["patients"], count["slides"], count["patches"])
        names = (("patient",), ("slide",), ("patch", "patches"))
        said = [counted(n, *words) for n, words in zip(numbers, names, strict=True) if n is not None]
        lines.append(f"split {name}: {', '.join(said)}")
    return lines
