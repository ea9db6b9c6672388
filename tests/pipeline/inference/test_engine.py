"""An engine hands whole blocks to its sink, and nothing once it is closed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.extract.block import kept_of_teacher
from pipeline.inference.encoding import EncodedBlock
from pipeline.inference.engine import Channel, Engine
from pipeline.inference.loaded import EncoderSpec, load_on_device
from pipeline.inference.task import Task
from pipeline.slides.sources import StoreSource
from stores.errors import ClusterError
from stores.format import features, manifest, recipe
from tests.tools.settings import TEACHER


@dataclass
class Held:
    """A sink that keeps blocks in memory."""

    blocks: list[EncodedBlock] = field(default_factory=list)

    def tokens(self, seed: int, index: int, values: npt.NDArray[np.float16]) -> None:
        raise AssertionError("no tokens are asked for")

    def commit(self, block: EncodedBlock) -> None:
        self.blocks.append(block)


@pytest.fixture
def engine(store: Path) -> Any:
    spec = EncoderSpec(TEACHER.teacher, random_weights=0, device="cpu", batch_size=TEACHER.batch_size)
    kept = kept_of_teacher(recipe.load_complete(store), False)
    found = Engine([Channel(load_on_device(spec), kept)], threads=1)
    yield found
    found.close()


def task_of(store: Path) -> Task:
    row = manifest.read_slides(store)[0]
    source, n_patches = StoreSource(row["slide_id"], store), row["n_patches"]
    return Task(source, row["fingerprint"], row["split"], n_patches, 0, range(2), range(n_patches))


def test_a_sink_gets_the_block_that_the_store_has(engine: Engine, store: Path) -> None:
    task, held = task_of(store), Held()
    patches = manifest.read_patches(store, task.source.slide_id)
    outcome = engine.run(task, patches, held, lambda count: None)
    (block,) = held.blocks
    assert outcome.views == block.views.num_rows == 2 * task.n_patches
    stored = features.open_features(store, task.source.slide_id)
    for seed in range(2):
        np.testing.assert_array_equal(block.features[seed], stored.read_block(seed, 0))


def test_a_block_that_is_whole_when_the_run_ends_is_not_written(engine: Engine, store: Path) -> None:
    """Its worker was given up, and another may own the chunk by now."""
    task, held, done = task_of(store), Held(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done == task.n_views:
            engine.close()

    patches = manifest.read_patches(store, task.source.slide_id)
    with pytest.raises(ClusterError, match="the run has ended"):
        engine.run(task, patches, held, advance)
    assert not held.blocks
