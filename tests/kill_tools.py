"""Runs a stage in a process of its own and kills it at a random moment; a server that has imported all forks them."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.distill import train
from pipeline.extract import extract
from pipeline.options import DistillOptions, ExtractOptions, TileOptions
from pipeline.progress import Silent


def extract_job(slides: Path, store: Path, options: ExtractOptions, tiling: TileOptions) -> None:
    """Stage one, tiling included."""
    extract([slides], store, options, tiling, Silent())


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
    job: Callable[..., None], args: tuple[Any, ...], times: int, seed: int, after: Callable[[], None]
) -> int:
    """Start a job `times` times and kill it with SIGKILL; returns how often it was killed before it was done.

    The moments are spread over what an undisturbed run takes; `after` looks at what each has left.
    """
    rng, killed, longest = random.Random(seed), 0, 1.0
    for number in range(times):
        process = start(job, args)
        began = time.monotonic()
        process.join(timeout=longest * (number % 10 + rng.random()) / 10)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
        else:
            longest = max(0.3, time.monotonic() - began)
        assert process.exitcode in (0, -9)
        after()
    return killed
