"""Gene expression from morphology: the regression of the HEST benchmark.

Features standardised, PCA to 256 numbers, ridge regression of log1p expression (of 50 genes there) with
``alpha = 100 / (n_features * n_genes)``, no intercept, lsqr; Pearson's correlation of every gene on the test fold,
mean over genes, mean over folds (mahmoodlab/HEST, ``trainer.py``; n_features after PCA).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from pipeline.metrics.checks import require_features
from stores.errors import EvaluationError

COMPONENTS = 256


@dataclass(frozen=True, slots=True)
class GeneFold:
    """Correlations on one fold."""

    pearson: npt.NDArray[np.float64]
    """(n_genes,); NaN where a gene or its prediction is constant over the test samples."""

    @property
    def mean(self) -> float:
        """Over the genes that have a correlation."""
        known = self.pearson[np.isfinite(self.pearson)]
        if not len(known):
            raise EvaluationError("hest: every gene is constant over the test samples of a fold")
        return float(known.mean())


def hest_fold(
    train: npt.NDArray[Any],
    train_genes: npt.NDArray[Any],
    test: npt.NDArray[Any],
    test_genes: npt.NDArray[Any],
    components: int = COMPONENTS,
) -> GeneFold:
    """Fit on training samples, correlate on test samples.

    Parameters
    ----------
    train, test : (n, d)
        Embeddings.
    train_genes, test_genes : (n, n_genes)
        Expression, as log1p of counts.
    """
    for name, x, genes in (("train", train, train_genes), ("test", test, test_genes)):
        require_features(f"embeddings ({name})", x, 2)
        require_features(f"genes ({name})", genes, 2)
        if len(x) != len(genes):
            raise EvaluationError(
                f"{name}: {len(x)} embeddings and {len(genes)} rows of genes; one each is needed"
            )
    if train.shape[1] != test.shape[1] or train_genes.shape[1] != test_genes.shape[1]:
        raise EvaluationError("train and test differ in the length of embeddings or in the genes")
    scaler = StandardScaler().fit(train.astype(np.float64))
    pca = PCA(min(components, *train.shape), random_state=0)
    x = pca.fit_transform(scaler.transform(train.astype(np.float64)))
    alpha = 100 / (x.shape[1] * train_genes.shape[1])
    model = Ridge(alpha=alpha, fit_intercept=False, solver="lsqr", max_iter=1000, random_state=0)
    model.fit(x, train_genes.astype(np.float64))
    predicted = model.predict(pca.transform(scaler.transform(test.astype(np.float64))))
    return GeneFold(_pearson(predicted.reshape(test_genes.shape), test_genes.astype(np.float64)))


def _pearson(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each column."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    spread = np.sqrt((a * a).sum(axis=0)) * np.sqrt((b * b).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 1e-12, (a * b).sum(axis=0) / spread, np.nan))


def hest(
    x: npt.NDArray[Any], genes: npt.NDArray[Any], folds: Sequence[Any], components: int = COMPONENTS
) -> list[GeneFold]:
    """`hest_fold` with every value of `folds` (a patient, for instance) as the test fold once."""
    names = sorted(set(folds))
    if len(names) < 2:
        raise EvaluationError(f"folds: {len(names)} different; at least two are needed")
    column = np.array(folds)
    return [
        hest_fold(
            x[column != name], genes[column != name], x[column == name], genes[column == name], components
        )
        for name in names
    ]
