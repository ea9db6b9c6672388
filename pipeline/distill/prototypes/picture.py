"""A picture of fitted prototypes: how many vectors each one has."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stores.io.files import replacing


def draw_prototypes(
    path: Path, shown: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]
) -> None:
    """Write a PNG of prototypes: how evenly they are used, and how near the vectors are.

    Parameters
    ----------
    shown
        By space: vectors of each prototype, int64 (K,), and the cosine of each vector to its own, float32 (N,).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    use, near = figure.subplots(1, 2)
    for i, (name, (usage, cosine)) in enumerate(shown.items()):
        colour = f"C{i}"
        use.plot(np.sort(usage)[::-1] / max(usage.sum(), 1), color=colour, label=name)
        near.hist(
            cosine, bins=60, range=(min(0.0, float(cosine.min())), 1.0), color=colour, alpha=0.6, label=name
        )
    use.axhline(1 / len(usage), color="0.6", lw=0.8, label="evenly used")
    use.set(title="share of the vectors", xlabel="prototype, largest first", yscale="log")
    near.set(title="cosine to the nearest prototype", ylabel="vectors")
    for axes in (use, near):
        axes.legend(frameon=False, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
