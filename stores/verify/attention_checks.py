"""What ``store verify`` checks of the teacher's attention: there where the manifest says, and probabilities."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stores.errors import StoreError
from stores.format import attention, features, layout
from stores.format.array_kinds import ATTENTION
from stores.format.chunks import read_chunk
from stores.format.metadata import SEEDS
from stores.verify.checks import SlideCheck


def check_attention(check: SlideCheck, listed: npt.NDArray[np.int8]) -> None:
    """Note what is wrong with the attention of a slide; nothing when the recipe has none and none is there.

    Parameters
    ----------
    listed : int8 (seed, row)
        0: not listed, 1: bad read, 2: ok.
    """
    if check.state.stored is None:
        return
    about, name = check.state.stored.attention, layout.feature_array(check.slide_id, attention.LEAF)
    if about is None:
        for file in check.files:
            if file.startswith(f"{name}/"):
                check.add(file, "is of attention, which the recipe does not have", "stray")
        return
    n_rows, count = listed.shape[1], about.grid**2
    spec = check.array_of(name, ATTENTION, (SEEDS, n_rows, count), (1, features.block_rows(n_rows), count))
    if spec is None:
        return
    check.strays({name: spec})
    for seed, block, rows in check.blocks(listed):
        file = layout.chunk_file(name, (seed, block, 0))
        mine = listed[seed, rows.start : rows.stop]
        place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": rows}
        if file not in check.state.listed:
            if (mine == 2).any():
                check.add(file, "is missing: committed attention is lost", "features", **place)
            continue
        try:
            chunk = read_chunk(check.state.store, name, spec, (seed, block, 0))
            if chunk is None:
                raise StoreError("was listed, and is gone")
        except StoreError as error:
            check.add(file, error, "features", **place)
            continue
        values = chunk[0, : len(rows)]
        if mine.any() or not (check.state.partial or (block, seed) in check.broken):
            check.judge_rows(file, "attention", values, mine, place)
        ok = np.flatnonzero((mine == 2) & np.isfinite(values).all(axis=1)).astype(np.int32)
        try:
            attention.take_rows(values, ok, 0, file)
        except StoreError:
            check.add(file, "has attention that is no probability", "features", **place)
