"""Runs a stage in a process of its own and kills it at a random moment; a server that has imported all forks them."""

import contextlib
import importlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline import api
from pipeline.distill import train
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes import fit
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.embed.embed import embed
from pipeline.embed.options import EmbedOptions
from pipeline.encoders.torchvision_cpu import make_importable
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.importing.importer import import_features
from pipeline.importing.options import ImportOptions
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.remote import objects

Trained = Path | Sequence[tuple[str, float]]
"""What stage two is given: a store, or paths and URLs of several, with their weights."""
make_importable()
for name in ("timm.optim", "matplotlib.figure", "pandas"):  # pyarrow looks for pandas
    with contextlib.suppress(ImportError):
        importlib.import_module(name)  # what stages import when they need it: half of the time of a short run


def extract_job(slides: Path, store: Path, options: ExtractOptions, tiling: TileOptions) -> None:
    """Stage one, tiling included."""
    extract([slides], store, options, tiling, Silent())


def like_job(slides: Path, store: Path, like: Path, options: dict[str, Any]) -> None:
    """Stage one after another store."""
    api.extract([slides], store, like=like, **options)


def together_job(slides: Path, stores: dict[Path, dict[str, Any]], options: dict[str, Any]) -> None:
    """Stage one of several teachers."""
    api.extract([slides], stores, **options)


def embed_job(inputs: Sequence[Path], out: Path, options: EmbedOptions, tiling: TileOptions) -> None:
    """Embedding, tiling included."""
    embed(inputs, out, options, tiling, Silent())


def import_job(features: Path, slides: Path, store: Path, options: ImportOptions) -> None:
    """Import of features."""
    import_features(features, [slides], store, options, Silent())


def distill_job(store: Trained, run: Path, options: DistillOptions) -> None:
    """Stage two."""
    if isinstance(store, Path):
        train.distill(store, run, options, False, Silent())
    else:
        objects.FIRST_DELAY_S = 0.001
        api.distill(store, run, **{field.name: getattr(options, field.name) for field in fields(options)})


def prototypes_job(store: Path, out: Path, options: PrototypeOptions) -> None:
    """Prototypes, with a state after every window."""
    fit._STATE_EVERY = 1
    fit.fit(store, out, options, Silent())


def ranks_job(environment: dict[str, str], store: Trained, run: Path, options: DistillOptions) -> None:
    """Stage two as one of several processes."""
    os.environ |= environment
    distill_job(store, run, options)


def launcher_job(
    environments: Sequence[dict[str, str]], store: Trained, run: Path, options: DistillOptions
) -> None:
    """A launcher whose children do stage two together, as those of ``torchrun`` do; fails when one fails."""
    children = []
    for environment in environments:
        child = os.fork()
        if child == 0:
            try:
                ranks_job(environment, store, run, options)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        raise SystemExit(1)


def start(job: Callable[..., None], args: tuple[Any, ...]) -> Any:
    """A process that does a job."""
    context = multiprocessing.get_context("forkserver")
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
    marks: Callable[[], object] | None = None,
    changes: int = 1,
) -> int:
    """Start a job `times` times and kill it with SIGKILL; returns how often it was killed before it was done.

    The moments are spread over `span_s` seconds after a change in `folder`: the first, or a random one of the first
    `changes` of what `marks` returns, however long the machine takes for them. `after` looks at what is left.
    """
    rng, killed = random.Random(seed), 0
    look = marks or (lambda: _state(folder))
    for _ in range(times):
        before = look()
        process = start(job, args)
        for _ in range(rng.randint(1, changes)):
            while process.is_alive() and look() == before:
                time.sleep(0.002)
            before = look()
        process.join(timeout=span_s * rng.random())
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
        assert process.exitcode in (0, -9)
        after()
    return killed


def _state(folder: Path) -> list[tuple[str, int]]:
    found = []
    # passes over folders that the job removes meanwhile, as glob does not
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found.append((f"{root}/{name}", os.stat(f"{root}/{name}").st_size))
    return sorted(found)
