"""Mean and variance of the targets, from the statistics that a store keeps of each block."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stores import sampler
from stores.errors import StoreError
from stores.format import features
from stores.format.statistics import RunningStats
from stores.io.location import StoreLike


def statistics(
    store: StoreLike, units: Sequence[sampler.Segment]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per-dimension mean and variance of the targets of `units`, (dim,) each, from the store's block statistics."""
    running = RunningStats()
    by_slide: dict[str, npt.NDArray[np.float64]] = {}
    for unit in units:
        slide_id, block = unit.commit.slide_id, unit.commit.block
        if slide_id not in by_slide:
            by_slide = {slide_id: features.read_stats(store, slide_id)}  # units of a slide follow each other
        for seed in unit.seeds:
            mean, variance = by_slide[slide_id][seed, block]
            running.add(len(unit.rows), mean, variance)
    if not np.isfinite(running.mean).all():
        raise StoreError(f"{store}: the statistics beside the features are incomplete; extract again")
    return running.mean, running.variance
