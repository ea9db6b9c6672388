"""One block of stage one, from reading to its commit record. A process has one `Station` for all of its blocks."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.encoders.encoder import token_grid
from pipeline.extract.options import ExtractOptions
from pipeline.extract.teacher import encode, load_teacher
from pipeline.inference.engine import Block, Outcome, Station
from pipeline.inference.facts import TeacherFacts, _Loaded, facts_of, reader_identity
from pipeline.inference.loaded import OnDevice
from pipeline.inference.task import Task
from pipeline.runtime import work
from pipeline.views.draw import TOKEN_RULE
from pipeline.views.policy import Policy
from stores.errors import CorruptStore, OptionError
from stores.format import features, manifest, pixels, recipe
from stores.format.tokens import write_chunk, write_positions
from stores.io.files import require_free


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs to know beside its task."""

    job: str
    store: Path
    """Absolute: workers may stand in another folder."""
    options: ExtractOptions
    processes: int | None
    """That share a machine's CPUs, see `pipeline.runtime.work.threads_of`."""


def describe_teacher(job: str, options: ExtractOptions) -> TeacherFacts:
    """Load the teacher where the work will be, or find it loaded, and say what it is."""
    teacher = _teacher(job, options)
    return facts_of(teacher, token_recipe(teacher, options.tokens))


def _teacher(job: str, options: ExtractOptions) -> OnDevice:
    def load() -> _Loaded:
        return _Loaded(load_teacher(work.with_number(options, torch.cuda.device_count())))

    loaded: _Loaded = work.station(job, ("teacher", options), load)
    return loaded.teacher


def extract_block(setup: Setup, task: Task, advance: work.Advance) -> Outcome:
    """Do a task from reading to its commit record; the work of `pipeline.extract.extract`."""
    station: Station = work.station(setup.job, ("extract", setup), functools.partial(_open_station, setup))
    patches = manifest.read_patches(setup.store, task.source.slide_id)
    if len(patches) != task.n_patches:
        raise CorruptStore(
            f"{manifest.patches_path(setup.store, task.source.slide_id)}: {len(patches)} patches, "
            f"the slides table has {task.n_patches}"
        )
    write = functools.partial(write_block, setup.store, task)
    return station.run(task, patches, write, advance, functools.partial(write_tokens, setup.store, task))


def _open_station(setup: Setup) -> Station:
    stored = recipe.load(setup.store)
    teacher = _teacher(setup.job, setup.options)
    assert stored.policy is not None  # the recipe is settled before any task is made
    options = setup.options
    tokens = token_recipe(teacher, options.tokens)
    here = recipe.Recipe(stored.patch, teacher.identity, stored.policy, reader_identity(), tokens=tokens)
    recipe.require_same(stored, here, str(setup.store))
    policy = Policy.from_json(stored.policy)
    threads = work.threads_of(options.threads, setup.processes)
    return teacher_station(teacher, policy, options.pixels, threads, options.readers, tokens)


def token_recipe(teacher: OnDevice, count: int | None) -> recipe.Tokens | None:
    """What the recipe says of the tokens that ``--tokens`` asks for.

    Raises
    ------
    EncoderError
        When the teacher has no grid of patch tokens.
    OptionError
        When its views have fewer.
    """
    if count is None:
        return None
    grid, dim = token_grid(teacher.encoder)
    if count > grid**2:
        raise OptionError(
            f"--tokens {count}: a view of {teacher.identity.name} has {grid}x{grid}; allowed is 1 to {grid**2}"
        )
    return recipe.Tokens(count, grid, dim, TOKEN_RULE)


def teacher_station(
    teacher: OnDevice,
    policy: Policy,
    keep: bool,
    threads: int,
    readers: str = "threads",
    tokens: recipe.Tokens | None = None,
) -> Station:
    """A station whose features are what the store keeps of the teacher's."""
    kept = functools.partial(encode, teacher)
    return Station(teacher, kept, np.float16, policy, keep, threads, readers, tokens)


def write_tokens(store: Path, task: Task, seed: int, index: int, values: npt.NDArray[np.float16]) -> None:
    """Write a chunk of a task's tokens; `seed` counts from the task's first.

    Raises
    ------
    DiskFull
        When there is no room for it.
    """
    require_free(store, values.nbytes, f"{task}")
    write_chunk(store, task.source.slide_id, task.seeds[seed], index, values)


def write_block(store: Path, task: Task, block: Block) -> None:
    """Write chunks, flush them, then publish the commit record: in this order a kill loses nothing.

    Chunks of tokens are there already: `write_tokens` wrote them as they became full.

    Raises
    ------
    DiskFull
        When there is no room for the block; what was committed before is kept.
    """
    slide_id = task.source.slide_id
    size = block.features.nbytes + (0 if block.pixels is None else block.pixels.nbytes)
    require_free(store, size, f"{task}")
    features.write_seeds(store, slide_id, task.seeds, task.block, block.features)
    if block.positions is not None:
        for seed, positions in zip(task.seeds, block.positions, strict=True):
            write_positions(store, slide_id, seed, task.block, positions)
    if block.pixels is not None:
        start = features.block_range(task.n_patches, task.block).start
        pixels.write_rows(store, slide_id, start, block.pixels)
    manifest.write_commit(store, slide_id, task.block, task.seeds, block.views)
