"""PathoROB's own protocol of the robustness index (Kömen et al., arXiv 2507.17845), by data set.

The index is version 2, ``SO / (SO + OS)``, summed over all samples, over the k nearest neighbours outside a sample's
own slide. Their code (bifold-pathomics/PathoROB, ``robustness_index.py``) fixes k for each data set, the median over
models of the k at which kNN predicts biology best; leaves out samples of the subset ``OOD``; and evaluates TCGA in
pairs, two classes from two centres at a time: neighbours come from the same subset, and the counts of all subsets are
added up. A patch of TCGA is in several subsets, and counts in each.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluate.embeddings import Embeddings
from pipeline.evaluate.options import RobustnessOptions
from pipeline.metrics.checks import codes_of
from stores.errors import OptionError
from stores.io.table import read_table

SUBSET, OUTSIDE = "subset", "OOD"
_KEY = ("slide_id", "patch_id")
_LABEL, _SITE, _GROUP = "biological_class", "medical_center", "slide_id"


@dataclass(frozen=True, slots=True)
class Preset:
    """How a data set of PathoROB is evaluated."""

    k: int
    paired: bool
    """Whether neighbours come from the own subset only."""


PRESETS: Mapping[str, Preset] = {
    "pathorob-camelyon": Preset(11, paired=False),
    "pathorob-tcga": Preset(61, paired=True),
    "pathorob-tolkach-esca": Preset(46, paired=False),
}


def prepare(
    embeddings: Embeddings, options: RobustnessOptions, notes: list[str]
) -> tuple[Embeddings, RobustnessOptions]:
    """The samples of a preset, and the options with what it fixes; adds to `notes` what was left out.

    ``--labels`` takes the metadata of PathoROB's repository (``subset, slide_id, patch_id, biological_class,
    medical_center``), which name a sample by slide and patch, and in TCGA one sample several times.

    Raises
    ------
    OptionError
        When a column is missing, or the metadata name none of the samples.
    """
    preset = PRESETS[str(options.preset)]
    if options.labels is not None:
        embeddings = _joined(embeddings, options.labels, notes)
    if preset.paired or SUBSET in embeddings.columns:
        subset = embeddings.column(SUBSET, f"preset {options.preset}: column")
        outside = np.array([value == OUTSIDE for value in subset])
        if outside.any():
            notes.append(f"{int(outside.sum())} samples of subset {OUTSIDE} were left out")
            embeddings = embeddings.take(~outside)
    own = {
        name: theirs
        for name, theirs in (("label", _LABEL), ("site", _SITE))
        if getattr(options, name) == name and name not in embeddings.columns
    }
    kind = f"in pairs, by {SUBSET}" if preset.paired else "all samples at once"
    notes.append(f"PathoROB's protocol: k = {preset.k}, {kind}; its index is robustness_v2")
    fixed: dict[str, Any] = {"preset": None, "labels": None, "group": _GROUP, "k": (preset.k,)}
    return embeddings, dataclasses.replace(options, **(fixed | own))


def subsets_of(embeddings: Embeddings, preset: str) -> npt.NDArray[np.int64] | None:
    """The number of the subset that each sample is evaluated in; None where all are one."""
    if not PRESETS[preset].paired:
        return None
    return codes_of(SUBSET, embeddings.column(SUBSET, f"preset {preset}: column"), len(embeddings))[0]


def _joined(embeddings: Embeddings, table: Path, notes: list[str]) -> Embeddings:
    """The samples in the order of the table's rows, one for each row that has an embedding."""
    what = f"--labels {table}"
    given = read_table(table, what, (*_KEY, SUBSET, _LABEL, _SITE))
    for name in _KEY:
        given.require(name)
    own = zip(*(map(str, embeddings.column(name, "labels: column")) for name in _KEY), strict=True)
    place = {key: i for i, key in enumerate(own)}
    if len(place) < len(embeddings):
        raise OptionError(f"{embeddings.source}: two samples of one {' and '.join(_KEY)}")
    keys = [(row[_KEY[0]], row[_KEY[1]]) for row in given.rows]
    seen: set[tuple[str, ...]] = set()
    for number, (key, row) in enumerate(zip(keys, given.rows, strict=True)):
        one = (*key, row.get(SUBSET, ""))
        if one in seen:
            raise OptionError(f"{given.at(number)}: {', '.join(one)} occurs twice")
        seen.add(one)
    known = [i for i, key in enumerate(keys) if key in place]
    if not known:
        raise OptionError(f"{what}: names none of the samples of {embeddings.source}")
    if len(known) < len(keys):
        notes.append(
            f"{len(keys) - len(known)} of {len(keys)} rows of {table.name} have no embedding: "
            "this is no figure of the whole data set"
        )
    unused = len(place) - len({keys[i] for i in known})
    if unused:
        notes.append(f"{unused} samples are not in {table.name} and were left out")
    chosen = embeddings.take(np.array([place[keys[i]] for i in known]))
    added = {name: [given.rows[i][name] for i in known] for name in given.names if name not in _KEY}
    return dataclasses.replace(chosen, columns={**chosen.columns, **added})
