"""How a block of stage one is checked, and how it is written: chunks first, its commit record last."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.extract.teacher import encode, encode_with_attention
from pipeline.inference.encoding import EncodedBlock, Kept
from pipeline.inference.facts import attention_recipe, reader_identity, token_recipe
from pipeline.inference.loaded import OnDevice
from pipeline.inference.task import Task
from pipeline.views.policy import Policy
from stores.format import attention, features, manifest, pixels, recipe
from stores.format.tokens import write_chunk, write_positions
from stores.io.files import require_free


@dataclass(frozen=True, slots=True)
class StoreStage:
    """Stage one into a store."""

    store: Path
    """Absolute: workers may stand in another folder."""
    stored: recipe.CompleteRecipe
    pixels: bool
    tokens: int | None
    attention: bool = False

    def kept(self, encoder: OnDevice) -> Kept:
        """Float16 features, pixels and tokens as asked.

        Raises
        ------
        RecipeMismatch
            When teacher or software of this process are not those of the recipe.
        """
        stored = self.stored
        tokens = token_recipe(encoder, self.tokens)
        looks = attention_recipe(encoder, self.attention)
        parts = stored.patch, encoder.identity, stored.policy, reader_identity()
        here = recipe.Recipe(*parts, tokens=tokens, attention=looks)
        recipe.require_same(stored, here, str(self.store))
        return kept_of_teacher(stored, self.pixels)

    def patches(self, task: Task) -> manifest.Patches:
        """The slide's patches in the manifest; CorruptStore when their number is not that of the slides table."""
        return manifest.read_patches(self.store, task.source.slide_id, task.n_patches)

    def sink(self, task: Task) -> "StoreSink":
        """What writes a task into the store."""
        return StoreSink(self.store, task)


def kept_of_teacher(stored: recipe.CompleteRecipe, with_pixels: bool) -> Kept:
    """What a store with this recipe keeps of its teacher's work."""
    work = encode if stored.attention is None else encode_with_attention
    policy = Policy.from_json(stored.policy)
    return Kept(policy, work, np.float16, with_pixels, stored.tokens, stored.attention)


@dataclass(frozen=True, slots=True)
class StoreSink:
    """Writes a task into a store; DiskFull when there is no room, and what was committed before is kept."""

    store: Path
    task: Task

    def tokens(self, seed: int, index: int, values: npt.NDArray[np.float16]) -> None:
        """Write a chunk of the task's tokens; `seed` counts from the task's first."""
        require_free(self.store, values.nbytes, f"{self.task}")
        write_chunk(self.store, self.task.source.slide_id, self.task.seeds[seed], index, values)

    def commit(self, block: EncodedBlock) -> None:
        """Write chunks, flush them, then publish the commit record: in this order a kill loses nothing."""
        store, task = self.store, self.task
        slide_id = task.source.slide_id
        kept = (block.features, block.pixels, block.attention)
        size = sum(array.nbytes for array in kept if array is not None)
        require_free(store, size, f"{task}")
        features.write_seeds(store, slide_id, task.seeds, task.block, block.features)
        if block.positions is not None:
            for seed, positions in zip(task.seeds, block.positions, strict=True):
                write_positions(store, slide_id, seed, task.block, positions)
        if block.attention is not None:
            for seed, values in zip(task.seeds, block.attention, strict=True):
                attention.write_block(store, slide_id, seed, task.block, values)
        if block.pixels is not None:
            start = features.block_range(task.n_patches, task.block).start
            pixels.write_rows(store, slide_id, start, block.pixels)
        manifest.write_commit(store, slide_id, task.block, task.seeds, block.views)
