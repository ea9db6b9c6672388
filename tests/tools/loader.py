"""Options of a small loader, and its first batches."""

import itertools
from pathlib import Path

from pipeline.data.loader import Batch, LoaderOptions, ViewLoader
from pipeline.slides.sources import StoreSource
from pipeline.views.policy import POLICIES
from stores import sampler

POLICY = POLICIES["g2l"]
OPTIONS = LoaderOptions(batch_size=7, window=40, views_per_read=2, seed=3, check_views="all", threads=2)


def stream(store: Path, options: LoaderOptions, start: int, batches: int) -> list[Batch]:
    units = sampler.find_units(store, "train", None)
    sources = {unit.commit.slide_id: StoreSource(unit.commit.slide_id, store) for unit in units}
    with ViewLoader(store, units, sources, POLICY, options, start) as loader:
        taken = list(itertools.islice(loader, batches))
    return [
        Batch(b.epoch, b.views.copy(), b.targets.copy(), b.tokens.copy(), b.positions.copy()) for b in taken
    ]


def joined(batches: list[Batch]) -> tuple[bytes, bytes]:
    return b"".join(b.views.tobytes() for b in batches), b"".join(b.targets.tobytes() for b in batches)
