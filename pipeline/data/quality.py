"""Leaves out views of patches that another tool judged as bad, by the columns ``qc_*`` of a store."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stores.errors import OptionError
from stores.format import manifest, qc
from stores.io.location import StoreLike
from stores.io.progress import Reporter
from stores.sampler import Segment


def within_limits(
    store: StoreLike, units: Sequence[Segment], limits: Sequence[qc.Limit], split: str, report: Reporter
) -> list[Segment]:
    """The units with the rows that all limits keep; what is left out is said, and why.

    Raises
    ------
    OptionError
        When a limit names a column that no slide of the units has, or nothing is left.
    """
    if not limits or not units:
        return list(units)
    rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
    keep: dict[str, npt.NDArray[np.bool_]] = {}
    beyond: Counter[qc.Limit] = Counter()
    unknown = 0
    there: set[str] = set()
    for slide_id in dict.fromkeys(unit.commit.slide_id for unit in units):
        row = rows[slide_id]
        patches = manifest.read_patches(store, slide_id, row["n_patches"])
        values = {limit.column: qc.values_of(row, patches, limit.column) for limit in limits}
        known = {name: found for name, found in values.items() if found is not None}
        judged = qc.judge(limits, known, len(patches))
        keep[slide_id] = judged.keep
        beyond.update(judged.beyond)
        unknown += judged.unknown
        there.update(patches.qc, (name for name, text in row.items() if text is not None))
    for limit in limits:
        if limit.column not in there:
            names = sorted(name.removeprefix(manifest.QC) for name in there if name.startswith(manifest.QC))
            names = [name for name in names if f"{manifest.QC}{name}" not in qc.OURS]
            raise OptionError(
                f"{limit}: {store} has no column {limit.column} in the split {split}; it has: "
                f"{', '.join(names) or 'none'}; `g2l tile --qc` writes them"
            )
    found = []
    for unit in units:
        chosen = unit.rows[keep[unit.commit.slide_id][unit.rows]]
        if len(chosen):
            found.append(Segment(unit.commit, unit.seeds, chosen))
    n_patches, n_left_out = sum(map(len, keep.values())), sum(int((~of).sum()) for of in keep.values())
    why = qc.described(beyond, unknown)
    if not found:
        raise OptionError(
            f"{' '.join(map(str, limits))}: no view of the split {split} of {store} is left ({why})"
        )
    said = f": {why}" if why else ""
    report.note(f"QC: {n_left_out:,} of {n_patches:,} patches of the split {split} left out{said}")
    return found
