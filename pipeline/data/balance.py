"""Which views belong to one slide or to one patient, so that a training sees each of them equally often."""

from collections.abc import Mapping, Sequence
from typing import Any

from stores.format import manifest, tiles
from stores.io.location import StoreLike
from stores.sampler import Segment

BALANCES = ("none", "slide", "patient")
_PATIENT = "patient_id"


def group_units(store: StoreLike, units: Sequence[Segment], balance: str) -> dict[str, list[Segment]]:
    """The units by slide or patient, under its id, in the order of the first unit of each; empty for ``none``.

    Tiles that were put together for their split alone are of the patients that stand beside them; those without one are
    of one patient together.

    Parameters
    ----------
    balance : str
        One of `BALANCES`.
    """
    groups: dict[str, list[Segment]] = {}
    if balance == "slide":
        for unit in units:
            groups.setdefault(unit.commit.slide_id, []).append(unit)
    if balance == "patient":
        rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
        of_tiles: dict[str, list[str]] = {}
        for unit in units:
            slide_id = unit.commit.slide_id
            row = rows[slide_id]
            if row["vendor"] != tiles.VENDOR:
                groups.setdefault(row[_PATIENT], []).append(unit)
                continue
            if slide_id not in of_tiles:
                of_tiles[slide_id] = _patients_of_tiles(store, row)
            patients = [of_tiles[slide_id][number] for number in unit.rows]
            for patient_id in dict.fromkeys(patients):
                chosen = unit.rows[[other == patient_id for other in patients]]
                groups.setdefault(patient_id, []).append(Segment(unit.commit, unit.seeds, chosen))
    return groups


def _patients_of_tiles(store: StoreLike, row: Mapping[str, Any]) -> list[str]:
    """The patient of each patch of a group of tiles."""
    patches = manifest.read_patches(store, row["slide_id"])
    if _PATIENT not in patches.further:
        return [row[_PATIENT]] * len(patches)
    known = manifest.read_further(store, row["slide_id"], (_PATIENT,))[_PATIENT].to_pylist()
    return [patient_id or row[_PATIENT] for patient_id in known]


def described(groups: Sequence[Sequence[Segment]], balance: str) -> str:
    """What an epoch shows of the groups, in one line.

    >>> described([], "none")
    ''
    """
    if not groups:
        return ""
    if len(groups) == 1:
        return f"balance {balance}: there is one {balance} only, so it changes nothing"
    sizes = [sum(unit.n_views for unit in group) for group in groups]
    share = sum(sizes) / len(sizes)
    return (
        f"balance {balance}: {share:,.0f} views of each of {len(sizes)} {balance}s in an epoch; the views of the "
        f"smallest ({min(sizes):,}) come {share / min(sizes):.3g} times each, of the largest ({max(sizes):,}) "
        f"{share / max(sizes):.3g} times"
    )
