"""What ``store verify`` checks of the teacher's attention: there where the manifest says, and probabilities."""

import numpy as np
import numpy.typing as npt

from stores.errors import StoreError
from stores.format import attention, features, layout
from stores.format.array_kinds import ATTENTION
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
    for file, values, mine, place in check.chunks_beside(name, spec, listed, "attention is lost"):
        check.judge_beside(file, "attention", values, mine, place)
        ok = np.flatnonzero((mine == 2) & np.isfinite(values).all(axis=1)).astype(np.int32)
        try:
            attention.take_rows(values, ok, 0, file)
        except StoreError:
            check.add(file, "has attention that is no probability", "features", **place)
