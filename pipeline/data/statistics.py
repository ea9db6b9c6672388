"""Mean and variance of the targets, from the statistics that a store keeps of each block."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stores import sampler
from stores.format import features
from stores.format.statistics import RunningStats
from stores.io.location import StoreLike


def statistics(
    store: StoreLike, units: Sequence[sampler.Segment]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per-dimension mean and variance of the targets of `units`, (dim,) each, from the store's block statistics.

    Raises
    ------
    CorruptStore
        When statistics of a block are missing, damaged or impossible.
    """
    running = RunningStats()
    by_slide: dict[str, npt.NDArray[np.float64]] = {}
    for unit in units:
        slide_id, block = unit.commit.slide_id, unit.commit.block
        if slide_id not in by_slide:
            by_slide = {slide_id: features.read_stats(store, slide_id)}  # units of a slide follow each other
        for seed in unit.seeds:
            dim = len(running.mean) if running.count else None
            of_block = features.stats_of_block(by_slide[slide_id], slide_id, seed, block, dim)
            running.add(len(unit.rows), *of_block)
    return running.mean, running.variance
