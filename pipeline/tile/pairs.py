"""Pairs in a list of tiles: tiles of one place, scanned by several scanners or stained in several ways.

The column ``pair`` has one value for all tiles of a place: two, or as many as there are scanners. A pair stays within
one split and one patient, so that no place is in training and validation.
"""

from collections import Counter
from collections.abc import Sequence

from pipeline.tiles.table import TileList
from stores.errors import OptionError
from stores.format.tiles import PAIR, PATIENT
from stores.io.text import counted, visible


def require_whole_pairs(listed: TileList, splits: Sequence[str]) -> None:
    """Raise OptionError when a pair is in two splits, or of two patients.

    Parameters
    ----------
    splits
        That of each tile.
    """
    pairs = listed.columns.get(PAIR)
    if pairs is None:
        return
    patients = listed.columns.get(PATIENT, [""] * len(listed))
    first: dict[str, int] = {}
    for i, pair in enumerate(pairs):
        before = first.setdefault(pair, i) if pair else i
        one, other = visible(listed.names[before]), visible(listed.names[i])
        if splits[before] != splits[i]:
            raise OptionError(
                f"pair {pair}: {one} is in split {splits[before]}, {other} in {splits[i]}: a training would see what "
                "it is validated on; give all tiles of a pair one patient_id, or one split"
            )
        if patients[before] != patients[i]:
            raise OptionError(
                f"pair {pair}: {one} is of {_patient(patients[before])}, {other} of {_patient(patients[i])}: tiles of "
                "a pair show one place; give each pair a name of its own"
            )


def _patient(name: str) -> str:
    return f"patient {name}" if name else "no patient"


def describe_pairs(listed: TileList, kept: Sequence[int]) -> list[str]:
    """What there is to say of the pairs of a list.

    Parameters
    ----------
    kept
        Numbers of the tiles that can be used.
    """
    pairs = listed.columns.get(PAIR)
    if pairs is None:
        return []
    sizes = Counter(pairs[i] for i in kept if pairs[i])
    whole = [size for size in sizes.values() if size > 1]
    alone = len(sizes) - len(whole)
    notes = []
    if whole:
        most = max(whole)
        size = "2" if most == 2 else f"{min(whole)} to {most}" if min(whole) < most else str(most)
        notes.append(f"{counted(len(whole), 'pair')} of {size} tiles")
    if alone:
        said = counted(alone, "pair has", "pairs have")
        notes.append(f"{said} one usable tile only, which is trained on as a tile without a pair")
    return notes
