"""A few figures on the features of a store: from the statistics of its blocks, and the tissue of its patches."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stores.errors import CorruptStore
from stores.format import features, layout, manifest
from stores.format.statistics import RunningStats
from stores.io.location import StoreLike

CONSTANT = 1e-6
"""A dimension with a smaller standard deviation counts as constant."""
NAMES = frozenset(
    (
        "views",
        "mean_min",
        "mean_max",
        "mean_abs_mean",
        "std_min",
        "std_median",
        "std_max",
        "constant_dimensions",
    )
)
"""What `Figures.to_json` always has; where there are centre crops, also those of `TISSUE`."""
TISSUE = {f"tissue_p{q:02d}": q for q in (5, 50, 95)}
COLUMNS = ("row", "seed", "status", "tissue")
"""Columns of a commit record that `Figures.add` takes."""


@dataclass(slots=True)
class Figures:
    """Mean and variance of each dimension over the committed views that were added, and the shares of tissue."""

    stats: RunningStats = field(default_factory=RunningStats)
    tissue: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """Of patches with a committed view of seed 0."""

    def add(self, commit: manifest.Commit, table: pa.Table, stats: npt.NDArray[np.float64]) -> None:
        """Add the views of a commit record.

        Parameters
        ----------
        stats
            Of the slide, as `stores.format.features.read_stats` returns them.

        Raises
        ------
        CorruptStore
            When statistics of a committed block are missing or damaged, or impossible for float16 features.
        """
        ok = pc.equal(table["status"], manifest.OK).to_numpy()
        seeds = table["seed"].to_numpy()
        for seed in commit.seeds:
            n_rows = int((ok & (seeds == seed)).sum())
            if n_rows:
                dim = len(self.stats.mean) if self.stats.count else None
                found = features.stats_of_block(stats, commit.slide_id, seed, commit.block, dim)
                self.stats.add(n_rows, *found)
        if commit.seeds.start == 0:
            self.tissue.append(table["tissue"].to_numpy()[seeds == 0])

    def take_in(self, other: "Figures") -> None:
        """Add the views of other figures, which come after these.

        Raises
        ------
        CorruptStore
            When their features have another length.
        """
        if self.stats.count and other.stats.count and len(self.stats.mean) != len(other.stats.mean):
            raise CorruptStore("statistics of slides have different numbers of dimensions")
        self.stats.add(other.stats.count, other.stats.mean, other.stats.variance)
        self.tissue += other.tissue

    def to_json(self, store: StoreLike) -> dict[str, float] | None:
        """The figures; None while there are no features."""
        running = self.stats
        if not running.count:
            return None
        std = np.sqrt(running.variance)
        share = np.concatenate(self.tissue) if self.tissue else np.zeros(0, np.float32)
        if not np.isfinite(share).all():
            raise CorruptStore(f"{store}/{layout.VIEWS}: a share of tissue is not a number")
        found = {
            "views": running.count,
            "mean_min": float(running.mean.min()),
            "mean_max": float(running.mean.max()),
            "mean_abs_mean": float(np.abs(running.mean).mean()),
            "std_min": float(std.min()),
            "std_median": float(np.median(std)),
            "std_max": float(std.max()),
            "constant_dimensions": int((std < CONSTANT).sum()),
        }
        if len(share):
            found |= {name: float(np.quantile(share, q / 100)) for name, q in TISSUE.items()}
        return found
