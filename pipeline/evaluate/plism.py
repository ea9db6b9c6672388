"""Robustness to scanners and stainings, as owkin/plism-benchmark measures it.

The PLISM data set is one piece of tissue in 13 stainings on 7 scanners, 91 slides of the same 16,278 tiles. For every
pair of slides: the mean cosine similarity of matched tiles, and top-k accuracy: both slides' tiles are pooled, and a
hit is a tile whose match is among its k nearest, itself left out; both directions are averaged. Medians over pairs:
across scanners (same staining), across stainings (same scanner), both, and all. The leaderboard's figure is the
mean of four medians: cosine over all pairs, and top-10 across scanners, across stainings and across both.

The benchmark computes in float16 on half of the tiles by default, a list that stands in its repository; here neighbours
are exact, and a subset is the user's list or drawn from a seed.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.checks import require_features, row_blocks
from pipeline.metrics.neighbours import nearest
from stores.errors import EvaluationError, StoreError
from stores.io.files import first_line
from stores.io.foreign import open_regular

KS = (1, 3, 5, 10)
GROUPS = ("across scanners", "across stainings", "across both", "all")
_ID_COLUMNS = 3
_MAX_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Pair:
    """The figures of two slides."""

    slide_a: str
    slide_b: str
    cosine: float
    top: Mapping[int, float]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of pairs to which it belongs."""
        (staining_a, scanner_a), (staining_b, scanner_b) = origin(self.slide_a), origin(self.slide_b)
        found = ["all"]
        if staining_a == staining_b:
            found.append("across scanners")
        if scanner_a == scanner_b:
            found.append("across stainings")
        if staining_a != staining_b and scanner_a != scanner_b:
            found.append("across both")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Plism:
    """The result over all pairs."""

    pairs: Sequence[Pair]
    medians: Mapping[str, Mapping[str, float]]
    """By group, then by figure (``cosine``, ``top_10``, ...); a group without pairs is left out."""
    leaderboard: float | None
    """None when a group or top-10 is missing."""


def origin(slide: str) -> tuple[str, str]:
    """Staining and scanner of a slide's name.

    >>> origin("GMH_S60_to_GMH_S60.tif")
    ('GMH', 'S60')
    """
    parts = slide.split("_")
    if len(parts) < 2 or not parts[0] or not parts[1]:
        raise EvaluationError(f"slide {slide!r}: expected STAINING_SCANNER_..., as GMH_S60_to_GMH_S60.tif")
    return parts[0], parts[1]


def compare(
    slide_a: str,
    a: npt.NDArray[Any],
    slide_b: str,
    b: npt.NDArray[Any],
    ks: Sequence[int] = KS,
    device: str = "cpu",
) -> Pair:
    """The figures of two slides with the same tiles in the same order, (n, d) each."""
    if a.shape != b.shape:
        raise EvaluationError(f"{slide_a} {a.shape} and {slide_b} {b.shape}: the same tiles are expected")
    require_features(slide_a, a)
    require_features(slide_b, b)
    cosine, *top = cosines_and_hits(a, b, ks, device).mean(axis=0).tolist()
    return Pair(slide_a, slide_b, cosine, dict(zip(ks, top, strict=True)))


def cosines_and_hits(
    a: npt.NDArray[Any], b: npt.NDArray[Any], ks: Sequence[int], device: str = "cpu"
) -> npt.NDArray[np.float64]:
    """Of each two matched tiles their cosine and, for each k, the share of hits in both directions: (n, 1 + k)."""
    n = len(a)
    out = np.empty((n, 1 + len(ks)))
    for rows in row_blocks(n, a.shape[1] * 24):
        wide_a, wide_b = a[rows].astype(np.float64), b[rows].astype(np.float64)
        norms = np.linalg.norm(wide_a, axis=1) * np.linalg.norm(wide_b, axis=1)
        out[rows, 0] = (wide_a * wide_b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    pooled = np.concatenate([a, b])
    own = np.arange(2 * n)
    found = nearest(pooled, pooled, max(ks), (own, own), device)
    hit = found == np.roll(own, n)[:, None]  # the match of tile i of one slide is tile i of the other
    for at, k in enumerate(ks, 1):
        out[:, at] = hit[:, :k].any(axis=1).reshape(2, n).mean(axis=0)
    return out


def summarise(pairs: Sequence[Pair]) -> Plism:
    """Medians by group and the leaderboard's figure."""
    medians: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        chosen = [pair for pair in pairs if group in pair.groups]
        if not chosen:
            continue
        medians[group] = {"cosine": float(np.median([pair.cosine for pair in chosen]))} | {
            f"top_{k}": float(np.median([pair.top[k] for pair in chosen])) for k in chosen[0].top
        }
    leaderboard = None
    if len(medians) == len(GROUPS) and "top_10" in medians["all"]:
        parts = [medians["all"]["cosine"], *(medians[group]["top_10"] for group in GROUPS[:3])]
        leaderboard = float(np.mean(parts))
    return Plism(list(pairs), medians, leaderboard)


def tile_subset(n: int, wanted: int | None, listed: Path | None, seed: int) -> npt.NDArray[np.int64] | None:
    """Row numbers of the tiles to compare: those of a file, `wanted` drawn from a seed, or None for all."""
    if listed is not None:
        try:
            index = _mapped(listed)
        except (OSError, ValueError, StoreError) as error:
            raise EvaluationError(f"{listed}: not a .npy file of numbers ({first_line(error)})") from None
        whole = (
            index.ndim == 1 and np.issubdtype(index.dtype, np.integer) and len(np.unique(index)) == len(index)
        )
        if not whole or not len(index) or index.min() < 0 or index.max() >= n:
            raise EvaluationError(f"{listed}: expected different row numbers from 0 to {n - 1}")
        return index.astype(np.int64)
    if wanted is None or wanted >= n:
        return None
    return np.sort(np.random.Generator(np.random.Philox(seed)).permutation(n)[:wanted])


def plism(
    folder: Path,
    ks: Sequence[int] = KS,
    n_tiles: int | None = None,
    tiles: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    start: Callable[[int], None] = lambda total: None,
    advance: Callable[[int], None] = lambda done: None,
) -> Plism:
    """Compare all pairs of slides below a folder of ``SLIDE/features.npy``.

    Parameters
    ----------
    folder
        As plism-benchmark and ``embed --format plism`` write it: float32 (tiles, 3 + d), three columns of tile ids.
    n_tiles
        How many tiles to compare, drawn from `seed`. None compares all.
    tiles
        A .npy file with the row numbers of the tiles to compare, such as the benchmark's own lists.

    Raises
    ------
    EvaluationError
        When a file is not of this kind or the tiles of two slides differ.
    """
    paths = sorted(folder.glob("*/features.npy"))
    if len(paths) < 2:
        raise EvaluationError(f"{folder}: {len(paths)} slides with a features.npy; at least two are needed")
    slides = [path.parent.name for path in paths]
    for slide in slides:
        origin(slide)
    ids: npt.NDArray[Any] | None = None
    loaded = []
    for path in paths:
        values = _load(path)
        if ids is None:
            ids, chosen = values[:, :_ID_COLUMNS], tile_subset(len(values), n_tiles, tiles, seed)
        elif not np.array_equal(ids, values[:, :_ID_COLUMNS]):
            raise EvaluationError(f"{path}: has other tiles, or in another order, than {paths[0]}")
        loaded.append(values)
    every = list(itertools.combinations(range(len(paths)), 2))
    start(len(every))
    pairs = []
    for i, j in every:
        a, b = (
            np.ascontiguousarray(loaded[n][slice(None) if chosen is None else chosen, _ID_COLUMNS:])
            for n in (i, j)
        )
        pairs.append(compare(slides[i], a, slides[j], b, ks, device))
        advance(1)
    return summarise(pairs)


def _mapped(path: Path) -> npt.NDArray[Any]:
    """A .npy file as a memory map: its header then asks for no more than the file has."""
    open_regular(path, _MAX_BYTES).close()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a header that needs parsing again
            values: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # the header is a Python literal: its parser has errors of its own
        raise ValueError(first_line(error)) from None
    return values


def _load(path: Path) -> npt.NDArray[Any]:
    """The file as a memory map: all slides together would be 4.5 GB at 768 numbers a tile."""
    try:
        values = _mapped(path)
    except (OSError, ValueError, StoreError) as error:
        raise EvaluationError(f"{path}: not a .npy file of numbers ({first_line(error)})") from None
    if values.ndim != 2 or values.shape[1] <= _ID_COLUMNS or not np.issubdtype(values.dtype, np.floating):
        raise EvaluationError(f"{path}: {values.dtype} {values.shape}; floats (tiles, 3 + d) are expected")
    if values.nbytes > _MAX_BYTES:
        raise EvaluationError(f"{path}: {values.nbytes} bytes, which no such file has")
    return values
