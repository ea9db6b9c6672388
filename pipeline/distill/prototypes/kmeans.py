"""Spherical k-means by minibatches: vectors of norm 1, assigned by cosine (Dhillon & Modha 2001; Sculley 2010).

A prototype moves by ``n_new / n_ever`` of the way to the mean of the vectors that a batch assigns to it, and is
normalised to 1. A prototype without any vector in an epoch starts again at the vector that fits worst.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_ROWS = 1024
"""One thread computes a whole chunk, so the number of threads, ours or a library's, changes no byte on a CPU."""


class Chunks:
    """Work on the rows of a tensor, chunk by chunk: in threads on a CPU, one after another on a GPU."""

    def __init__(self, threads: int, device: torch.device) -> None:
        self.device = device
        self._pool = None
        if device.type == "cpu":
            self._pool = ThreadPoolExecutor(
                threads, "k-means", initializer=torch.set_num_threads, initargs=(1,)
            )

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, fn: Callable[[Tensor], Any], rows: Tensor) -> list[Any]:
        """The result of `fn` for each chunk, in order."""
        parts: Sequence[Tensor] = rows.split(CHUNK_ROWS)
        return list(map(fn, parts) if self._pool is None else self._pool.map(fn, parts))


class SphericalKMeans:
    """Prototypes that move with each batch of vectors.

    Parameters
    ----------
    prototypes : float32 (K, D), of norm 1
    counts : int64 (K,)
        Number of vectors that each prototype has received so far.
    used : int64 (K,)
        The same, in the current epoch.
    """

    def __init__(self, prototypes: Tensor, counts: Tensor, used: Tensor, chunks: Chunks) -> None:
        self.prototypes, self.counts, self.used = prototypes, counts, used
        self._chunks = chunks

    @classmethod
    def begin(cls, prototypes: Tensor, chunks: Chunks) -> "SphericalKMeans":
        """Begin with chosen vectors as prototypes."""
        none = torch.zeros(len(prototypes), dtype=torch.int64, device=prototypes.device)
        return cls(prototypes, none, none.clone(), chunks)

    def nearest(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest prototype of each vector, int64 (N,), and the cosine to it, float32 (N,)."""

        def of(part: Tensor) -> tuple[Tensor, Tensor]:
            cosine, index = (part @ self.prototypes.T).max(dim=1)
            return index, cosine

        index, cosine = zip(*self._chunks.map(of, x_ND), strict=True)
        return torch.cat(index), torch.cat(cosine)

    def step(self, x_ND: Tensor) -> float:
        """Move the prototypes by a batch; returns the mean cosine of its vectors to their prototypes before that."""
        index, cosine = self.nearest(x_ND)
        new = torch.bincount(index, minlength=len(self.prototypes))
        sums = torch.zeros_like(self.prototypes).index_add_(0, index, x_ND)
        self.counts += new
        self.used += new
        hit = new > 0
        share = (new[hit] / self.counts[hit]).float()[:, None]
        means = sums[hit] / new[hit][:, None]
        self.prototypes[hit] = functional.normalize(self.prototypes[hit] * (1 - share) + means * share, dim=1)
        return float(cosine.mean())

    def end_epoch(self, x_ND: Tensor) -> int:
        """Start unused prototypes again at the vectors of a batch that fit worst; returns how many were unused.

        When the batch has fewer vectors than that, some prototypes stay where they are.
        """
        unused = torch.nonzero(self.used == 0).flatten()
        if len(unused):
            _, cosine = self.nearest(x_ND)
            worst = torch.argsort(cosine, stable=True)[: len(unused)]
            self.prototypes[unused[: len(worst)]] = x_ND[worst]
            self.counts[unused] = 0
        self.used.zero_()
        return len(unused)
