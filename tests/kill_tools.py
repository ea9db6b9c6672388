"""Runs a stage in a process of its own and kills it at a random moment; a server that has imported all forks them."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.distill import train
from pipeline.embed.embed import embed
from pipeline.extract import extract
from pipeline.options import DistillOptions, EmbedOptions, ExtractOptions, TileOptions
from pipeline.progress import Silent


def extract_job(slides: Path, store: Path, options: ExtractOptions, tiling: TileOptions) -> None:
    """Stage one, tiling included."""
    extract([slides], store, options, tiling, Silent())


def embed_job(inputs: Sequence[Path], out: Path, options: EmbedOptions, tiling: TileOptions) -> None:
    """Embedding, tiling included."""
    embed(inputs, out, options, tiling, Silent())


def distill_job(store: Path, run: Path, options: DistillOptions) -> None:
    """Stage two."""
    train.distill(store, run, options, False, Silent())


def ranks_job(environment: dict[str, str], store: Path, run: Path, options: DistillOptions) -> None:
    """Stage two as one of several processes."""
    os.environ |= environment
    distill_job(store, run, options)


def start(job: Callable[..., None], args: tuple[Any, ...]) -> Any:
    """A process that does a job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.kill_tools"])
    process = context.Process(target=job, args=args)
    process.start()
    return process


def kill_at_random(
    job: Callable[..., None],
    args: tuple[Any, ...],
    times: int,
    seed: int,
    folder: Path,
    span_s: float,
    after: Callable[[], None],
) -> int:
    """Start a job `times` times and kill it with SIGKILL; returns how often it was killed before it was done.

    The moments are spread over `span_s` seconds from the first change in `folder` on; `after` looks at what is left.
    """
    rng, killed = random.Random(seed), 0
    for _ in range(times):
        before = _state(folder)
        process = start(job, args)
        while process.is_alive() and _state(folder) == before:
            time.sleep(0.002)
        process.join(timeout=span_s * rng.random())
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
        assert process.exitcode in (0, -9)
        after()
    return killed


def _state(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in folder.glob("**/*") if path.is_file())
