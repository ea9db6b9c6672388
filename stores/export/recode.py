"""A slide's features in another form: byte shuffle and zstd, or int8. Every chunk file appears whole, by rename.

A file that exists is complete, so an interrupted copy continues at the next one, with the same bytes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from zarr.codecs import ZstdCodec

from stores.errors import CorruptStore
from stores.format import features, int8, layout, manifest, recipe, tokens
from stores.format.encoding import BYTE_SHUFFLE, Encoder, Form
from stores.format.metadata import GROUP
from stores.format.statistics import RunningStats
from stores.io import files
from stores.io.location import StoreLike

_ENTROPY = ZstdCodec(level=3, checksum=False)
"""Levels 1 to 9 are equal within 0.1 %: there is nothing to find but the uneven use of the 255 values."""


@dataclass(frozen=True, slots=True)
class Block:
    """What is committed of one (seed, block) of a slide."""

    seed: int
    block: int
    rows: npt.NDArray[np.int32]
    """Ascending, of status ok."""

    def offsets(self, slide: features.SlideFeatures) -> npt.NDArray[np.int32]:
        """Places of the rows in the block."""
        whole = features.block_range(slide.n_rows, self.block)
        if len(self.rows) and (self.rows[0] < whole.start or self.rows[-1] >= whole.stop):
            raise CorruptStore(
                f"{slide.slide_id} block {self.block}: the manifest lists rows that the block does not have"
            )
        return self.rows - np.int32(whole.start)


def committed_blocks(store: StoreLike, slide_id: str) -> list[Block]:
    """All that is committed of a slide, by seed and block."""
    found: dict[tuple[int, int], list[npt.NDArray[np.int32]]] = {}
    for commit in manifest.commits(store, slide_id):
        table = commit.read(["row", "seed", "status"])
        for seed in commit.seeds:
            found.setdefault((seed, commit.block), []).append(manifest.ok_rows(table, seed))
    return [Block(*key, np.unique(np.concatenate(found[key]))) for key in sorted(found)]


class ArrayWriter:
    """An array of a store, written whole chunk by whole chunk; one that is there already is kept."""

    def __init__(self, stage: Path, name: str, form: Form) -> None:
        self._stage, self._name = stage, name
        metadata = form.metadata()
        self._encoder = Encoder(metadata)
        self._put(layout.metadata_file(name), metadata)

    def _put(self, file: str, raw: bytes) -> None:
        if not (self._stage / file).is_file():
            files.write_bytes(self._stage / file, raw)

    def has(self, *index: int) -> bool:
        """Whether a chunk is there."""
        return (self._stage / layout.chunk_file(self._name, index)).is_file()

    def write(self, index: tuple[int, ...], values: npt.NDArray[Any]) -> None:
        """Write a chunk; at the edge of the array `values` ends with it."""
        self._put(layout.chunk_file(self._name, index), self._encoder.chunk(index, values))


def write_groups(stage: Path, slide_id: str) -> None:
    """Write the groups of a slide's arrays without attributes: those of the source may hold any text."""
    for group in (layout.FEATURES, layout.slide_group(slide_id)):
        files.write_json(stage / layout.metadata_file(group), GROUP)


def _blocks_of(
    slide: features.SlideFeatures, blocks: list[Block]
) -> Iterator[tuple[Block, npt.NDArray[np.float16], npt.NDArray[np.int32]]]:
    """(block, its features, offsets of committed rows); CorruptStore when one of these is not finite."""
    for block in blocks:
        values, offsets = slide.read_block(block.seed, block.block), block.offsets(slide)
        what = f"slide {slide.slide_id} seed {block.seed} block {block.block}"
        features.require_finite(values[offsets], what)
        yield block, values, offsets


def _shuffled(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Form:
    return Form(shape, chunks, "float16", math.nan, (BYTE_SHUFFLE,))


def write_lossless(store: StoreLike, slide_id: str, blocks: list[Block], stage: Path, new_id: str) -> None:
    """Write a slide's features with byte shuffle and zstd; values stay as they are.

    Raises
    ------
    CorruptStore
        When a committed row of the source is not finite.
    """
    slide = features.open_features(store, slide_id)
    name = layout.feature_array(new_id, "features")
    array = ArrayWriter(stage, name, _shuffled(slide.spec.shape, slide.spec.chunks))
    missing = [block for block in blocks if not array.has(block.seed, block.block, 0)]
    for block, values, _ in _blocks_of(slide, missing):
        array.write((block.seed, block.block, 0), values[None])


def write_lossless_tokens(
    store: StoreLike, slide_id: str, blocks: list[Block], stage: Path, new_id: str, about: recipe.Tokens
) -> None:
    """The same for a slide's tokens; their positions are small, and copied as they are.

    Raises
    ------
    CorruptStore
        When a committed row of the source is not finite.
    """
    opened = tokens.open_tokens(store, slide_id, about)
    name, size = layout.feature_array(new_id, "tokens"), opened.chunk_rows
    array = ArrayWriter(stage, name, _shuffled(opened.tokens.shape, opened.tokens.chunks))
    for block in blocks:
        for index in opened.chunks_of(block.block):
            offsets = block.rows[block.rows // size == index] - index * size
            if len(offsets) and not array.has(block.seed, index, 0, 0):
                values = opened.read_chunk(block.seed, index)
                what = f"tokens of slide {slide_id} seed {block.seed} block {block.block}"
                features.require_finite(values[offsets], what)
                array.write((block.seed, index, 0, 0), values[None])


def write_int8(
    store: StoreLike, slide_id: str, blocks: list[Block], stage: Path, new_id: str, cost: int8.Cost
) -> None:
    """Write a slide's features in int8, and add to `cost` what a reader of the copy gets.

    The source is read twice: for its statistics, then for its values.

    Raises
    ------
    CorruptStore
        When a committed row of the source is not finite.
    """
    slide = features.open_features(store, slide_id)
    seeds, rows, dim = slide.spec.shape
    size = slide.spec.chunks[1]
    name = {leaf: layout.feature_array(new_id, leaf) for leaf in ("features", "scales", "standard")}
    standard = _standard(slide, blocks)
    ArrayWriter(stage, name["standard"], Form((2, dim), (2, dim), "float32", math.nan)).write(
        (0, 0), standard
    )
    scales = ArrayWriter(stage, name["scales"], Form((seeds, rows), (1, size), "float32", math.nan))
    form = Form((seeds, rows, dim), (1, size, dim), "int8", int8.ABSENT, (_ENTROPY,))
    array = ArrayWriter(stage, name["features"], form)
    written = features.open_features(stage, new_id)
    for block, values, offsets in _blocks_of(slide, blocks):
        at = block.seed, block.block
        if not (array.has(*at, 0) and scales.has(*at)):
            listed = np.full_like(values, np.nan)  # rows that are not committed may hold anything
            listed[offsets] = values[offsets]
            quantised, scale = int8.quantise(listed, standard)
            scales.write(at, scale[None])
            array.write((*at, 0), quantised[None])
        what = f"{new_id} seed {block.seed} block {block.block} in int8"
        rebuilt = features.require_finite(written.read_block(*at)[offsets], what)
        cost.add(block.seed, values[offsets], rebuilt)


def _standard(slide: features.SlideFeatures, blocks: list[Block]) -> npt.NDArray[np.float32]:
    """Mean and standard deviation of each dimension over all committed rows of all seeds, float32 (2, dim)."""
    running = RunningStats()
    for _, values, offsets in _blocks_of(slide, blocks):
        if len(offsets):
            wide = values[offsets].astype(np.float64)
            running.add(len(wide), wide.mean(axis=0), wide.var(axis=0))
    if not running.count:
        return np.stack([np.zeros(slide.dim, np.float32), np.ones(slide.dim, np.float32)])
    return np.stack([running.mean, np.sqrt(running.variance)]).astype(np.float32)
