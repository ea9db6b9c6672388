"""Robustness to scanners and stainings on registered tiles of one's own: PLISM's figures, for any list with pairs.

Tiles of one place have one value in the column ``pair``, and the scanner or staining of each stands in ``site``. For
every two sites: the mean cosine of matched tiles, and top-k accuracy as in `pipeline.evaluate.plism`: the tiles of both
are pooled, and a hit is a tile whose match is among its k nearest, itself left out; both directions are averaged. The
result is the median over the pairs of sites. A cosine rises for encoders that give all tiles the same; ranks do not,
and the effective rank falls.
"""

import functools
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluate.embeddings import Embeddings, joined, with_value
from pipeline.evaluate.options import PairsOptions
from pipeline.evaluate.plism import cosines_and_hits
from pipeline.evaluate.result import Judged, Result, Row, row_of
from pipeline.metrics.bootstrap import Statistic, bootstrap
from pipeline.metrics.rank import effective_rank
from stores.errors import EvaluationError

_WITHIN = ("x_px0", "y_px0")
"""Where a patch is in its tile, which is a part of its place where embeddings have it."""


def run_pairs(embeddings: Embeddings, options: PairsOptions) -> Result:
    """Matched cosine and top-k accuracy over all pairs of sites, with intervals over groups, and the effective rank."""
    options.validate()
    result = Result("pairs", embeddings.encoder, embeddings.source, 0, options)
    embeddings = joined(embeddings, options.labels, result.notes)
    embeddings = with_value(embeddings, options.pair, "pair", result.notes)
    rows, sites, places = _table(embeddings, options)
    ks = sorted(set(options.k))
    figures, pairs = _by_sites(embeddings.x, rows, sites, ks, options.device)
    statistic = _median_over_sites(figures)
    groups, name = _groups(embeddings, rows, options)
    codes = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    rng = np.random.default_rng([options.seed, 5])
    titles: list[tuple[str, int | None]] = [("cosine", None), *(("top-k", k) for k in ks)]
    found = bootstrap(statistic, len(rows), codes, rng, options.replicates)
    result.rows += [row_of(title, e, k) for (title, k), e in zip(titles, found, strict=True)]
    result.rows.append(Row("effective_rank", effective_rank(embeddings.x[rows[rows >= 0]])))
    result.samples = len(rows)
    result.judged = Judged(_samples(places, groups), titles, statistic)
    result.notes.append(
        f"samples are places; medians over {len(pairs)} pairs of {options.site}; intervals by {name}"
    )
    return result


def _table(
    embeddings: Embeddings, options: PairsOptions
) -> tuple[npt.NDArray[np.int64], list[str], list[tuple[str, ...]]]:
    """The sample of each place under each site, (places, sites), -1 for none; the sites, and names of the places."""
    within = [name for name in _WITHIN if name in embeddings.columns]
    columns = [embeddings.column(options.pair, "pair"), *(embeddings.columns[name] for name in within)]
    keys = list(zip(*(map(str, column) for column in columns), strict=True))
    site_of = [str(value) for value in embeddings.column(options.site, "site")]
    sites, places = sorted(set(site_of)), sorted(set(keys))
    if len(sites) < 2:
        raise EvaluationError(f"{options.site}: one value only ({sites[0]}); pairs are of two sites or more")
    at = {key: number for number, key in enumerate(places)}
    rows = np.full((len(places), len(sites)), -1, np.int64)
    for row, (key, site) in enumerate(zip(keys, site_of, strict=True)):
        place = at[key], sites.index(site)
        if rows[place] >= 0:
            raise EvaluationError(
                f"{options.pair} {', '.join(key)}: two samples of {options.site} {site}; one of each is expected"
            )
        rows[place] = row
    whole = (rows >= 0).sum(axis=1) > 1
    if not whole.any():
        raise EvaluationError(f"{options.pair}: no two samples of different {options.site} have one value")
    return rows[whole], sites, [place for place, kept in zip(places, whole, strict=True) if kept]


def _by_sites(
    x: npt.NDArray[Any], rows: npt.NDArray[np.int64], sites: Sequence[str], ks: Sequence[int], device: str
) -> tuple[npt.NDArray[np.float64], list[tuple[str, str]]]:
    """Figures of each place for every two sites, (pairs, places, 1 + k), NaN where one has it not; and these pairs."""
    found, pairs = [], []
    for a, b in itertools.combinations(range(len(sites)), 2):
        both = (rows[:, (a, b)] >= 0).all(axis=1)
        if 2 * both.sum() <= max(ks):
            continue
        of_pair = np.full((len(rows), 1 + len(ks)), np.nan)
        of_pair[both] = cosines_and_hits(x[rows[both, a]], x[rows[both, b]], ks, device)
        found.append(of_pair)
        pairs.append((sites[a], sites[b]))
    if not found:
        raise EvaluationError(
            f"k {max(ks)}: no two sites have more than {max(ks) // 2} places; use a smaller k"
        )
    return np.stack(found), pairs


def _median_over_sites(figures: npt.NDArray[np.float64]) -> Statistic:
    there = np.isfinite(figures)

    def statistic(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        of_place = weights[None, :, None] * there
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(there, figures * of_place, 0).sum(axis=1) / of_place.sum(axis=1)
        return np.median(means, axis=0)

    return statistic


def _groups(
    embeddings: Embeddings, rows: npt.NDArray[np.int64], options: PairsOptions
) -> tuple[list[str], str]:
    """What each place belongs to, and the name of it: by itself where there is no column for it."""
    first = [int(row[row >= 0][0]) for row in rows]
    if options.group in (None, "none"):
        return [str(number) for number in range(len(rows))], "place"
    values = embeddings.column(str(options.group), "group")
    for row, one in zip(rows, first, strict=True):
        other = next((i for i in row[row >= 0].tolist() if values[i] != values[one]), None)
        if other is not None:
            raise EvaluationError(
                f"--group {options.group}: one place has {values[one]!r} and {values[other]!r}; give a column that is "
                "the same for all samples of a place, such as the patient"
            )
    return [str(values[i]) for i in first], str(options.group)


def _samples(
    places: Sequence[tuple[str, ...]], groups: Sequence[str]
) -> Callable[[], Sequence[tuple[Hashable, str, str]]]:
    return functools.partial(list, [(place, "", group) for place, group in zip(places, groups, strict=True)])
