"""How well batches mix slides, against a perfect shuffle: a number, and docs/concepts/shuffle.png with --write.

    python -m tests.bench.bench_shuffle

A made-up cohort: 200 slides of 300 to 20,000 patches (log-normal, as cohorts are), 4 seeds; no pixels are read. For
every batch the number of slides in it is compared with what drawing views at random would give.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stores import sampler
from stores.format import features, manifest
from tests.bench.measure import Ratio

SLIDES, SEEDS, BATCHES = 200, 4, 400


def cohort() -> list[sampler.Segment]:
    """Units of a store that nobody has."""
    rng = np.random.default_rng(0)
    sizes = np.clip(np.exp(rng.normal(8.3, 0.8, SLIDES)), 300, 20_000).astype(int)
    units = []
    for number, size in enumerate(sizes.tolist()):
        for block in range(features.n_blocks(size)):
            rows = np.array(features.block_range(size, block), np.int32)
            commit = manifest.Commit(f"{number}", block, range(SEEDS), Path())
            units.append(sampler.Segment(commit, tuple(range(SEEDS)), rows))
    return units


def slides_of(units: list[sampler.Segment], window: int, n_views: int) -> npt.NDArray[np.int64]:
    """The slide of each view of the stream, from its beginning."""
    found: list[npt.NDArray[np.int64]] = []
    for part in sampler.Stream(units, 0, window).windows():
        here = np.empty(part.n_views, np.int64)
        for share in part.shares:
            here[share.places] = int(share.segment.commit.slide_id)
        found.append(here)
        if sum(map(len, found)) >= n_views:
            break
    return np.concatenate(found)[:n_views]


def distinct(slides: npt.NDArray[np.int64], batch: int) -> npt.NDArray[np.int64]:
    """How many slides each batch is from."""
    return np.array([len(set(part.tolist())) for part in slides.reshape(-1, batch)])


def dominance(slides: npt.NDArray[np.int64], batch: int) -> float:
    """Mean share of a batch that is from its commonest slide."""
    return float(np.mean([np.bincount(part).max() / batch for part in slides.reshape(-1, batch)]))


def main(picture: Path | None = None) -> list[Ratio]:
    """Measure, print, draw."""
    found = []
    units = cohort()
    weights = np.array([unit.n_views for unit in units])
    owner = np.array([int(unit.commit.slide_id) for unit in units])
    rng = np.random.default_rng(1)
    curves = {}
    print(
        f"{SLIDES} slides, {weights.sum():,} views; slides in a batch: mean (5th percentile), share of the commonest"
    )
    for batch in (32, 256):
        n_views = batch * BATCHES
        perfect = owner[rng.choice(len(units), n_views, p=weights / weights.sum())]
        rows = {"perfect shuffle": perfect}
        for window in (512, 2048, 8192, 32768):
            rows[f"window {window:,}"] = slides_of(units, window, n_views)
        for name, slides in rows.items():
            counts = distinct(slides, batch)
            curves[batch, name] = counts
            ratio = counts.mean() / distinct(perfect, batch).mean()
            print(
                f"batch {batch:>3} {name:<16} {counts.mean():6.1f} ({np.percentile(counts, 5):.0f}), "
                f"{ratio:.2f} of perfect, {dominance(slides, batch):.1%}"
            )
            if name != "perfect shuffle":
                found.append(Ratio(f"shuffle, batch {batch}, {name}, against a perfect one", [ratio]))
    if picture is not None:
        draw(curves, picture)
    return found


def draw(curves: dict[tuple[int, str], npt.NDArray[np.int64]], path: Path) -> None:
    """Histograms of the number of slides in a batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, batch in zip(figure.subplots(1, 2), (32, 256), strict=True):
        for number, ((size, name), counts) in enumerate(curves.items()):
            if size != batch:
                continue
            values, n = np.unique(counts, return_counts=True)
            plain = name.startswith("perfect")
            axes.plot(
                values, n / n.sum(), "--" if plain else "-", lw=2 if plain else 1.4,
                color="k" if plain else f"C{number % 5 - 1}", label=name,
            )  # fmt: skip
        axes.set(title=f"batches of {batch}", xlabel="slides in a batch", ylabel="share of batches")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", type=Path, help="Picture to write.")
    main(parser.parse_args().write)
