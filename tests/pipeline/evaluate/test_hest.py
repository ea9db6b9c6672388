"""HEST's regression against a solution of its formulas in numpy."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import pearsonr

from pipeline.evaluate.hest import hest, hest_fold
from stores.errors import EvaluationError

Floats = npt.NDArray[np.float64]


def data(n: int, d: int, n_genes: int, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 9, d) + 3
    genes = np.log1p(rng.poisson(np.exp(0.2 * x[:, :n_genes] / x[:, :n_genes].std(axis=0) + 1)))
    return x, genes


def naive(
    train: Floats, train_genes: Floats, test: Floats, test_genes: Floats, components: int
) -> list[float]:
    mean, std = train.mean(axis=0), train.std(axis=0)
    z, z_test = (train - mean) / std, (test - mean) / std
    _, _, directions = np.linalg.svd(z, full_matrices=False)
    a, b = z @ directions[:components].T, z_test @ directions[:components].T
    alpha = 100 / (a.shape[1] * train_genes.shape[1])
    weights = np.linalg.solve(a.T @ a + alpha * np.eye(a.shape[1]), a.T @ train_genes)
    return [float(pearsonr(b @ w, gene).statistic) for w, gene in zip(weights.T, test_genes.T, strict=True)]


@pytest.mark.parametrize(("n", "d", "components"), [(80, 30, 10), (40, 60, 256), (50, 5, 256)])
def test_a_fold_equals_its_formulas(n: int, d: int, components: int) -> None:
    x, genes = data(n + 30, d, 4, n)
    found = hest_fold(x[:n], genes[:n], x[n:], genes[n:], components)
    expected = naive(x[:n], genes[:n], x[n:], genes[n:], min(components, n, d))
    np.testing.assert_allclose(found.pearson, expected, atol=2e-3)
    assert found.mean == pytest.approx(np.mean(expected), abs=2e-3)


def test_every_patient_is_the_test_fold_once() -> None:
    x, genes = data(90, 8, 3, 0)
    patients = ["a", "b", "c"] * 30
    folds = hest(x, genes, patients)
    rows = np.array([p == "b" for p in patients])
    alone = hest_fold(x[~rows], genes[~rows], x[rows], genes[rows])
    assert len(folds) == 3
    np.testing.assert_array_equal(folds[1].pearson, alone.pearson)


def test_a_constant_gene_has_no_correlation() -> None:
    x, genes = data(90, 8, 3, 0)
    genes[60:, 1] = 2
    found = hest_fold(x[:60], genes[:60], x[60:], genes[60:])
    assert np.isnan(found.pearson).tolist() == [False, True, False]
    assert found.mean == pytest.approx(found.pearson[[0, 2]].mean())
    genes[60:] = 2
    with pytest.raises(EvaluationError, match="every gene is constant"):
        _ = hest_fold(x[:60], genes[:60], x[60:], genes[60:]).mean


def test_what_cannot_be_regressed() -> None:
    x, genes = data(20, 4, 2, 0)
    with pytest.raises(EvaluationError, match=r"genes \(test\): the embedding of sample 1 is not finite"):
        hest_fold(x, genes, x, np.where(np.arange(20)[:, None] == 1, np.nan, genes))
    with pytest.raises(EvaluationError, match="train: 20 embeddings and 19 rows of genes"):
        hest_fold(x, genes[1:], x, genes)
    with pytest.raises(EvaluationError, match="differ in the length of embeddings"):
        hest_fold(x, genes, x[:, 1:], genes)
    with pytest.raises(EvaluationError, match="folds: 1 different"):
        hest(x, genes, ["a"] * 20)
