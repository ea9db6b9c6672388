"""PLISM's figures on registered tiles of one's own: against loops, and what is refused."""

import itertools
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.evaluate.compare import paired
from pipeline.evaluate.embeddings import Embeddings
from pipeline.evaluate.options import PairsOptions
from pipeline.evaluate.pairs import run_pairs
from stores.errors import EvaluationError, OptionError

OPTIONS = PairsOptions(k=(1, 3), replicates=50, group="image")
SITES = "abc"


def made(x: npt.NDArray[Any], **other: list[Any]) -> Embeddings:
    """Three scanners of each place, four places an image."""
    n = len(x) // 3
    columns: dict[str, list[Any]] = {
        "path": [f"{site}{i}" for i in range(n) for site in SITES],
        "pair": [f"n{i}" for i in range(n) for _ in SITES],
        "site": [site for _ in range(n) for site in SITES],
        "image": [f"i{i // 4}" for i in range(n) for _ in SITES],
    }
    return Embeddings("made", "e", x.astype(np.float32), columns | other)


def random_places(n: int = 20, noise: float = 1.0) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(0)
    return np.repeat(rng.normal(size=(n, 8)), 3, axis=0) + noise * rng.normal(size=(3 * n, 8))


def reference(x: npt.NDArray[np.float64], k: int) -> tuple[float, float]:
    """Median over pairs of scanners of mean cosine, and of top-k accuracy in the pool of both."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines, tops = [], []
    for a, b in itertools.combinations(range(3), 2):
        pool = np.concatenate([unit[a::3], unit[b::3]])
        n, hits = len(pool) // 2, 0
        for i, one in enumerate(pool):
            order = [j for j in np.argsort(-(pool @ one), kind="stable") if j != i]
            hits += (i + n) % (2 * n) in order[:k]
        cosines.append(float((pool[:n] * pool[n:]).sum(axis=1).mean()))
        tops.append(hits / (2 * n))
    return float(np.median(cosines)), float(np.median(tops))


def test_figures_are_those_of_loops() -> None:
    x = random_places()
    found = run_pairs(made(x), OPTIONS)
    values = {(row.figure, row.k): row for row in found.rows}
    for k in (1, 3):
        cosine, top = reference(x.astype(np.float32).astype(np.float64), k)
        assert values["top-k", k].value == pytest.approx(top)
        assert values["cosine", None].value == pytest.approx(cosine, abs=1e-6)
    one = values["top-k", 1]
    assert one.value is not None
    assert one.low is not None
    assert one.high is not None
    assert one.low < one.value < one.high
    assert found.samples == 20
    assert found.notes[-1] == "samples are places; medians over 3 pairs of site; intervals by image"


def test_a_collapsed_encoder_has_the_best_cosine_and_the_worst_ranks() -> None:
    x = random_places()
    collapsed = 0.01 * np.random.default_rng(1).normal(size=x.shape) + 1
    good, bad = run_pairs(made(x), OPTIONS), run_pairs(made(collapsed), OPTIONS)
    figures = [{(row.figure, row.k): row.value or 0.0 for row in of.rows} for of in (good, bad)]
    assert figures[1]["cosine", None] > 0.99 > figures[0]["cosine", None]
    assert figures[1]["top-k", 1] < 0.2 < figures[0]["top-k", 1]
    assert figures[1]["effective_rank", None] < 2 < figures[0]["effective_rank", None]
    assert good.judged is not None
    assert bad.judged is not None
    differences, n = paired(good.judged, bad.judged, np.random.default_rng(0), 50)
    assert n == 20
    assert differences[1].low > 0


def test_places_that_a_scanner_lacks_count_for_the_others() -> None:
    x = random_places()
    embeddings = made(x)
    kept = np.arange(len(x)) != 4  # scanner b of the second place
    found = run_pairs(embeddings.take(kept), OPTIONS)
    assert found.samples == 20
    lone = ~np.isin(np.arange(len(x)), (4, 5))
    assert run_pairs(embeddings.take(lone), OPTIONS).samples == 19
    empty = made(x, pair=["", *embeddings.columns["pair"][1:]])
    assert "1 samples without a pair were left out" in run_pairs(empty, OPTIONS).notes


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"site": ["a"] * 60}, {}, "site: one value only (a)"),
        ({"pair": ["n0"] * 60}, {}, "pair n0: two samples of site a; one of each is expected"),
        ({"pair": [f"n{i}" for i in range(60)]}, {}, "pair: no two samples of different site have one value"),
        ({"image": [f"i{i}" for i in range(60)]}, {}, "--group image: one place has 'i0' and 'i1'"),
        ({}, {"k": (40,)}, "k 40: no two sites have more than 20 places"),
    ],
)
def test_what_is_no_pair_is_refused(columns: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(EvaluationError, match=re.escape(said)):
        run_pairs(made(random_places(), **columns), PairsOptions(**{"group": "image", "k": (1,), **options}))


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(OptionError, match="--pair place: made has no such column"):
        run_pairs(made(random_places()), PairsOptions(pair="place"))
