"""The protocols on a million embeddings of 1,536 numbers: minutes, and memory beyond the embeddings themselves.

``python -m tests.bench.bench_evaluate [--samples N] [--dim D]``. The embeddings are random around as many centres as
there are classes times sites, in float32, 6.1 GB at full size; every protocol runs in a process of its own, so that its
peak memory is its own.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluate.robustness import robustness
from pipeline.metrics.cka import linear_cka, minibatch_cka
from pipeline.metrics.knn import knn_votes

QUERIES, K, SLIDES = 10_000, 20, 1000


def embeddings(
    n: int, dim: int, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], Any, Any]:
    """Embeddings, labels, sites and slides; made in blocks, so that making them takes no more than they do."""
    rng = np.random.Generator(np.random.SFC64(seed))
    slides = np.sort(rng.integers(0, SLIDES, n))
    labels, sites = rng.integers(0, 5, n), rng.integers(0, 7, SLIDES)[slides]
    centres = rng.standard_normal((5, 7, dim), np.float32)
    x = np.empty((n, dim), np.float32)
    for start in range(0, n, 50_000):
        part = slice(start, start + 50_000)
        rng.standard_normal(out=x[part], dtype=np.float32)
        x[part] *= 8
        x[part] += centres[labels[part], sites[part]]
    return x, labels, sites, slides


def knn(n: int, dim: int) -> Callable[[], str]:
    x, labels, _, slides = embeddings(n, dim)
    chosen = np.random.default_rng(1).permutation(n)[: min(QUERIES, n)]

    def run() -> str:
        voted = knn_votes(x, labels, x[chosen], [K], (slides, slides[chosen]))[:, 0]
        return f"accuracy {np.mean(voted == labels[chosen]):.3f}"

    return run


def cka(n: int, dim: int) -> Callable[[], str]:
    x = embeddings(n, dim)[0]
    turn = np.random.default_rng(2).standard_normal((dim, dim // 2), np.float32)
    y = np.concatenate([x[start : start + 50_000] @ turn for start in range(0, n, 50_000)])
    return lambda: f"CKA {linear_cka(x, y):.4f} to {y.shape[1]} numbers"


def cka_batches(n: int, dim: int) -> Callable[[], str]:
    x = embeddings(n, dim)[0]
    y = x[:, : dim // 2].copy()
    return lambda: f"CKA {minibatch_cka(x, y, 1024, np.random.default_rng(0)):.4f} in batches of 1,024"


def robust(n: int, dim: int) -> Callable[[], str]:
    x, labels, sites, slides = embeddings(n, dim)

    def run() -> str:
        rng = np.random.default_rng(0)
        (found,) = robustness(x, labels, sites, slides, [K], rng, queries=QUERIES)
        return f"v1 {found.v1.value:.4f}, v2 {found.v2.value:.4f} ({found.v2.low:.4f} to {found.v2.high:.4f})"

    return run


PROTOCOLS = {"knn": knn, "cka": cka, "cka in batches": cka_batches, "robustness": robust}


def measure(name: str, n: int, dim: int, line: Any) -> None:
    """Run a protocol and send seconds, bytes beyond its inputs, and what it found."""
    work = PROTOCOLS[name](n, dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    said = work()
    seconds = time.perf_counter() - began
    line.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--only", choices=sorted(PROTOCOLS))
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name in [chosen.only] if chosen.only else PROTOCOLS:
        ours, theirs = context.Pipe()
        process = context.Process(target=measure, args=(name, chosen.samples, chosen.dim, theirs))
        process.start()
        theirs.close()
        seconds, extra, said = ours.recv()
        process.join()
        print(f"{name}: {seconds:.0f} s, {extra / 1e9:.2f} GB beyond the embeddings; {said}", flush=True)


if __name__ == "__main__":
    main()
