"""PLISM's figures against their definition, and folders as plism-benchmark has them."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.plism import compare, plism
from stores.errors import EvaluationError

NAMES = ("GM_S60_to_GMH_S60.tif", "GM_AT2_to_GMH_S60.tif", "HR_S60_to_GMH_S60.tif", "HR_AT2_to_GMH_S60.tif")


def naive(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], k: int) -> tuple[float, float]:
    """Mean cosine of matched tiles; share of tiles whose match is among their k nearest of all 2n, without itself."""
    n = len(a)
    pooled = [*a, *b]

    def cosine(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
        return float((p * q).sum() / (np.sqrt((p * p).sum()) * np.sqrt((q * q).sum())))

    hits = []
    for i in range(2 * n):
        others = sorted((-round(cosine(pooled[i], pooled[j]), 12), j) for j in range(2 * n) if j != i)
        hits.append((i + n) % (2 * n) in [j for _, j in others[:k]])
    return float(np.mean([cosine(a[i], b[i]) for i in range(n)])), float(
        np.mean(hits[:n]) + np.mean(hits[n:])
    ) / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 25), st.floats(0, 3), st.integers(0, 99), st.booleans())
def test_a_pair_equals_its_definition(n: int, noise: float, seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, 4))
    if tied:
        a = rng.integers(1, 3, (n, 2)).astype(float)
    b = a + noise * rng.normal(size=a.shape)
    pair = compare(NAMES[0], a, NAMES[1], b, [1, 3, 10])
    for k in (1, 3, 10):
        cosine, top = naive(a, b, k)
        assert pair.cosine == pytest.approx(cosine)
        assert pair.top[k] == pytest.approx(top)


def write(folder: Path, n: int = 30) -> dict[str, npt.NDArray[np.float32]]:
    """Four slides: what the scanner does is small, what the staining does is large."""
    rng = np.random.default_rng(0)
    tissue, staining = rng.normal(size=(n, 8)), rng.normal(size=(n, 8))
    values = {}
    for name in NAMES:
        x = tissue + 1.5 * (name[0] == "H") * staining + 0.5 * rng.normal(size=(n, 8))
        ids = np.stack([np.full(n, 16), np.arange(n), np.arange(n)[::-1]], axis=1)
        values[name] = x.astype(np.float32)
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "features.npy", np.concatenate([ids, x], axis=1).astype(np.float32))
    return values


def test_medians_and_the_leaderboards_figure(tmp_path: Path) -> None:
    values = write(tmp_path)
    result = plism(tmp_path, ks=(1, 10))
    assert len(result.pairs) == 6
    expected: dict[str, list[tuple[float, float]]] = {}
    for a, b in itertools.combinations(sorted(NAMES), 2):
        figures = naive(values[a].astype(float), values[b].astype(float), 10)
        same_staining, same_scanner = a[:2] == b[:2], a.split("_")[1] == b.split("_")[1]
        group = {(True, False): "across scanners", (False, True): "across stainings"}.get(
            (same_staining, same_scanner), "across both"
        )
        expected.setdefault(group, []).append(figures)
        expected.setdefault("all", []).append(figures)
    for group, of_pairs in expected.items():
        cosine, top = np.median(of_pairs, axis=0)
        assert result.medians[group]["cosine"] == pytest.approx(cosine)
        assert result.medians[group]["top_10"] == pytest.approx(top)
    assert result.leaderboard == pytest.approx(
        np.mean(
            [
                np.median([c for c, _ in expected["all"]]),
                *(np.median([t for _, t in expected[group]]) for group in expected if group != "all"),
            ]
        )
    )
    assert result.medians["across scanners"]["top_1"] > result.medians["across stainings"]["top_1"]


def test_a_subset_of_tiles(tmp_path: Path) -> None:
    values = write(tmp_path)
    np.save(tmp_path / "tiles.npy", np.arange(0, 30, 2))
    listed = plism(tmp_path, ks=(1,), tiles=tmp_path / "tiles.npy")
    a, b = listed.pairs[0].slide_a, listed.pairs[0].slide_b
    assert listed.pairs[0].cosine == pytest.approx(
        naive(values[a][::2].astype(float), values[b][::2].astype(float), 1)[0]
    )
    drawn = plism(tmp_path, ks=(1,), n_tiles=15)
    assert drawn.pairs == plism(tmp_path, ks=(1,), n_tiles=15).pairs
    assert drawn.pairs != plism(tmp_path, ks=(1,), n_tiles=15, seed=1).pairs
    assert plism(tmp_path, ks=(1,), n_tiles=99).pairs == plism(tmp_path, ks=(1,)).pairs
    assert drawn.leaderboard is None  # no top-10
    np.save(tmp_path / "tiles.npy", np.array([0, 0, 99]))
    with pytest.raises(EvaluationError, match="expected different row numbers from 0 to 29"):
        plism(tmp_path, tiles=tmp_path / "tiles.npy")


def test_folders_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"0 slides with a features\.npy; at least two"):
        plism(tmp_path)
    write(tmp_path)
    path = tmp_path / NAMES[0] / "features.npy"
    good = np.load(path)
    for bad, message in (
        (good[::-1], "has other tiles, or in another order, than"),
        (good[:, :3], r"float32 \(30, 3\); floats"),
        (good.astype(int), r"int64 \(30, 11\); floats"),
        (np.where(good == good[5, 6], np.nan, good), "the embedding of sample 5 is not finite"),
        (np.array([{}], object), "not a .npy file of numbers"),
    ):
        np.save(path, bad, allow_pickle=True)
        with pytest.raises(EvaluationError, match=message):
            plism(tmp_path)
    (tmp_path / "nonsense").mkdir()
    (tmp_path / "nonsense" / "features.npy").write_bytes(b"")
    with pytest.raises(EvaluationError, match="slide 'nonsense': expected STAINING_SCANNER"):
        plism(tmp_path)
