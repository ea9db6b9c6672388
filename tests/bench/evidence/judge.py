"""What a student is judged by: tiles of a fold that it never saw, beside labelled tiles of the other folds.

Everything is looked at through the stored views: seed 0 is the centre crop, seeds 1 to 3 are draws of the augmentation.
"""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from pipeline.data.committed import BlockCache
from pipeline.data.loader import load_views
from pipeline.data.sources import find_sources
from pipeline.encoders.apply import embed
from pipeline.encoders.encoder import Encoder
from pipeline.evaluate.linear import Fold, logistic_probe
from pipeline.metrics.cka import linear_cka, minibatch_cka
from pipeline.metrics.knn import knn_predict
from pipeline.metrics.neighbours import nearest
from pipeline.views.policy import Policy
from stores import sampler
from stores.format import manifest, recipe
from stores.io.files import replacing
from tests.bench.evidence.tissue import FOLDS, SETS
from tests.bench.experiments import mapped_cosine

K = 5
DRAWN = 3
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Views:
    """All patches under one seed, in an order that all seeds share."""

    pixels: npt.NDArray[np.uint8]
    targets: npt.NDArray[Any]


@dataclass(frozen=True)
class Judge:
    """A store of all the tissue, and the table that it was made from."""

    store: Path
    table: Path

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """What the table says of each patch, in the order of `views`."""
        with self.table.open(newline="") as file:
            by_name = {row["path"]: row for row in csv.DictReader(file)}
        names = [name for unit in self._units for name in _files(self.store, unit)]
        return [by_name[name] for name in names]

    @cached_property
    def views(self) -> tuple[Views, ...]:
        """Under seeds 0 to 3; rendered once, and then mapped by every process."""
        return tuple(self._of_seed(seed) for seed in range(1 + DRAWN))

    def _of_seed(self, seed: int) -> Views:
        paths = [self.store.parent / f"{what}-{seed}.npy" for what in ("views", "targets")]
        if not all(path.exists() for path in paths):
            stored = recipe.load(self.store)
            assert stored.policy is not None
            sources = find_sources(self.store, stored, {unit.commit.slide_id for unit in self._units}, [])
            policy = Policy.from_json(stored.policy)
            batch = load_views(self.store, self._units, sources, policy, seed, 1 << 30, 1)
            arrays: tuple[npt.NDArray[Any], ...] = (batch.views, batch.targets)
            for path, array in zip(paths, arrays, strict=True):
                with replacing(path) as partial, partial.open("wb") as file:
                    np.save(file, array)
        return Views(*(np.load(path, mmap_mode="r") for path in paths))

    @cached_property
    def _units(self) -> list[sampler.Segment]:
        return sampler.find_units(self.store, "train", None)

    def features(self, student: Encoder, drawn: int = DRAWN) -> list[npt.NDArray[np.float32]]:
        """Of all patches, under seeds 0 to `drawn`."""
        device = torch.device("cpu")
        views = self.views[: 1 + drawn]
        return [embed(student, of_seed.pixels, 64, device, torch.float32).numpy() for of_seed in views]

    def figures(self, features: list[npt.NDArray[np.float32]], fold: int) -> dict[str, Any]:
        """How a student that never saw `fold` does on it.

        Returns
        -------
        dict
            ``cka``, ``cka_unbiased``, ``cosine`` (to standardised targets, after the ridge regression of the training
            patches) on all held-out patches; ``same`` (share of held-out patches whose drawn view has its own centre
            crop as the nearest of all held-out ones); and for each labelled set ``SET``: ``image``, and for each tile
            0 or 1 whether ``knn``, ``knn_drawn`` (the query drawn, the reference not) and ``linear`` are right. Without
            features of drawn views there is no ``same`` and no ``knn_drawn``.
        """
        held = self._held(fold)
        x = features[0].astype(np.float64)[held]
        result: dict[str, Any] = self.agreement(features[0], self.views[0].targets, fold)
        if features[1:]:
            found = [nearest(x, drawn[held], 1)[:, 0] == np.arange(len(x)) for drawn in features[1:]]
            result["same"] = float(np.mean(found))
        for of in SETS:
            result[of.name] = self._labelled(features, of.name, fold)
        return result

    def agreement(self, features: npt.NDArray[Any], targets: npt.NDArray[Any], fold: int) -> dict[str, float]:
        """``cka``, ``cka_unbiased`` and ``cosine`` of `figures`, for the centre crops and a teacher's targets."""
        held = self._held(fold)
        plain, wide = features.astype(np.float64), targets.astype(np.float64)
        x, y = plain[held], wide[held]
        return {
            "cka": linear_cka(x, y),
            "cka_unbiased": minibatch_cka(x, y, len(x), np.random.default_rng(0)),
            "cosine": mapped_cosine(plain[~held], wide[~held], x, y),
        }

    def targets(self, store: Path) -> npt.NDArray[Any]:
        """What the teacher of another store of the same patches says of their centre crops, in the order of `rows`."""
        cache, found = BlockCache(store), dict[str, npt.NDArray[Any]]()
        for unit in sampler.find_units(store, "train", 1):
            of_unit = cache.stored(unit.commit, unit.rows.astype(np.int32), 0)[0]
            found.update(zip(_files(store, unit), of_unit, strict=True))
        return np.stack([found[row["path"]] for row in self.rows])

    def _held(self, fold: int) -> npt.NDArray[np.bool_]:
        return np.array([row["fold"] == str(fold) for row in self.rows])

    def _labelled(self, features: list[npt.NDArray[np.float32]], name: str, fold: int) -> dict[str, Any]:
        judged = np.array([row["judged"] == name for row in self.rows])
        rows = [row for row in self.rows if row["judged"] == name]
        labels = np.unique([row["label"] for row in rows], return_inverse=True)[1].astype(np.int64)
        folds = np.array([int(row["fold"]) for row in rows])
        query, chosen = folds == fold, folds == (fold + 1) % FOLDS
        x = [of_seed[judged] for of_seed in features]
        known, of_known = x[0][~query], labels[~query]
        probe = logistic_probe(
            x[0],
            labels,
            Fold(*(np.flatnonzero(which) for which in (~query & ~chosen, chosen, query))),
            int(labels.max()) + 1,
        )
        right = {
            "knn": [knn_predict(known, of_known, x[0][query], K) == labels[query]],
            "knn_drawn": [knn_predict(known, of_known, drawn[query], K) == labels[query] for drawn in x[1:]],
            "linear": [probe.scores.argmax(axis=1) == labels[query]],
        }
        images = [row["image"] for row, asked in zip(rows, query, strict=True) if asked]
        means = {what: np.mean(found, axis=0).tolist() for what, found in right.items() if found}
        return {"image": images, **means}


def _files(store: Path, unit: sampler.Segment) -> list[str]:
    """The names of the files that the rows of a unit were read from."""
    path = manifest.patches_path(store, unit.commit.slide_id)
    names = pq.read_table(str(path), columns=["file"])["file"].to_pylist()
    return [names[row] for row in unit.rows.tolist()]
