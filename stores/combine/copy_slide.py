"""Copy one slide from one or more stores into a new one, with fewer or more seeds where asked.

Only committed data is copied, by file name. Chunks of an interrupted run are left out, and so are files whose names
the format does not have.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from stores.errors import CorruptStore
from stores.format import arrays, attention, features, layout, manifest, recipe, tokens
from stores.format.chunks import require_loose
from stores.io import files
from stores.io.location import StoreLike, read_file
from stores.io.ranges import ranges_of
from stores.io.staging import copy_file
from stores.io.text import counted, first_of, human_bytes

SEED_AXIS = ("features", "stats", "scales", *tokens.LEAVES, attention.LEAF)
"""Arrays whose first axis is the seed; the second is cut into the blocks of the slide."""
_PLAIN = ("coords", "standard")
_NDIM = {"features": 3, "stats": 4, "scales": 2, "coords": 2, "standard": 2, "pixels": 4}
_NDIM |= {"positions": 3, "tokens": 4, "attention": 3}
_THREADS = 8  # copies wait for fsync, or for the network

Key = tuple[int, int]
"""(block, seed)"""


@dataclass(slots=True)
class Shared:
    """What a merge or subset made."""

    store: str
    """Folder of the new store."""
    slides: int = 0
    patches: int = 0
    files: int = 0
    """Those that were copied or cut."""
    bytes: int = 0
    """Size of the new store."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Name, recipe digest and number of slides of each store."""
    left_out: list[str] = field(default_factory=list)
    """Files that no store has, or of slides that the table does not list: they were not copied."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What a training on the splits cannot do, a line each."""
    recipe_digest: str | None = None
    """None while there is no teacher."""
    seeds: list[int] = field(default_factory=list)
    views: int = 0
    """Those that have features."""
    complete: float = 0.0
    """Share of patches times seeds that is committed."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same to read."""
        sources = ", ".join(f"{source['name']} ({source['slides']})" for source in self.sources)
        return [
            f"{self.store}: {counted(self.slides, 'slide')}, {counted(self.patches, 'patch', 'patches')}, "
            f"{counted(self.views, 'view')} under {counted(len(self.seeds), 'seed')}, "
            f"{human_bytes(self.bytes)}; slides from: {sources}",
            *(f"note: {text}" for text in self.notes),
            *(f"warning: {text}" for text in self.warnings),
            *first_of("left out, not a file of the format or of a listed slide", self.left_out),
        ]


class Source:
    """A store as a merge or subset reads it.

    Raises
    ------
    StoreError
        When it is no store.
    CorruptStore
        When there is a symbolic link in it.
    """

    def __init__(self, store: StoreLike) -> None:
        self.store = store
        self.recipe = recipe.load(store)
        self.rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
        self.listed = layout.list_files(store)
        self.files = layout.by_slide(self.listed)
        self._metadata: dict[str, dict[str, Any]] = {}

    def __str__(self) -> str:
        return str(self.store)

    @property
    def unknown(self) -> list[str]:
        """Files that are never copied."""
        kinds = {name: layout.classify(name) for name in self.listed}
        return sorted(
            name
            for name, known in kinds.items()
            if known is None or (known.slide_id is not None and known.slide_id not in self.rows)
        )

    def about(self) -> dict[str, Any]:
        """What a new store records of this one: a name and no path, because stores are passed on."""
        name = str(self.store).rstrip("/").rpartition("/")[2]
        return {"name": name, "recipe": self.recipe.digest(), "slides": len(self.rows)}

    def identity(self) -> str:
        """Digest that changes when a file of the store does: an interrupted copy continues from the same state only."""
        digest = hashlib.sha256()
        for name, size in sorted(self.listed.items()):
            changed = os.stat(self.store / name).st_mtime_ns if isinstance(self.store, Path) else 0
            digest.update(f"{name}\0{size}\0{changed}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def commits(self, slide_id: str) -> dict[Key, manifest.Commit]:
        """The commit record of each (block, seed) of a slide, by the names of the records."""
        found = manifest.commits(self.store, slide_id)
        return {(commit.block, seed): commit for commit in found for seed in commit.seeds}

    def has(self, array: str) -> bool:
        """Whether the store has an array of this name."""
        return layout.metadata_file(array) in self.listed

    def metadata(self, array: str) -> dict[str, Any]:
        """The ``zarr.json`` of an array, after the checks of every reader; OptionError when it is packed."""
        if array not in self._metadata:
            spec = arrays.read_metadata(self.store, array)
            require_loose(spec, f"{self}/{array}")
            leaf = array.rpartition("/")[2] if array.startswith(f"{layout.FEATURES}/") else "pixels"
            if len(spec.shape) != _NDIM[leaf]:
                raise CorruptStore(f"{self}/{array}: {len(spec.shape)} dimensions, expected {_NDIM[leaf]}")
            if len(self._metadata) > 100:  # enough for a few slides; a store may have thousands
                self._metadata.clear()
            raw = read_file(self.store, layout.metadata_file(array), layout.MAX_METADATA_BYTES)
            self._metadata[array] = json.loads(raw or b"")
        return self._metadata[array]

    def copy(self, names: Iterable[str], stage: Path, result: Shared) -> None:
        """Copy files as they are, with threads."""
        sized = [(name, self.listed[name]) for name in sorted(set(names))]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as pool:
            for _ in pool.map(lambda one: copy_file(self.store, one[0], one[1], stage), sized):
                result.files += 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A slide of a new store: its row, and where its files come from."""

    row: dict[str, Any]
    base: Source
    """The store that its patches and picture come from."""
    views: Mapping[Key, Source] = field(default_factory=dict)
    """The source of the views and features of a (block, seed); others are not copied."""
    pixels: Mapping[int, Source] = field(default_factory=dict)
    """The source of the pixels of a block; empty to copy none."""
    tokens: bool = True
    """Whether patch tokens are copied, where there are any."""
    attention: bool = True
    """Whether the teacher's attention is copied, where there is any."""


def from_one(
    source: Source,
    slide_id: str,
    n_seeds: int | None = None,
    with_pixels: bool = True,
    with_tokens: bool = True,
    with_attention: bool = True,
) -> Choice:
    """A slide as one store has it, up to `n_seeds` seeds."""
    row = source.rows[slide_id]
    if row["status"] != manifest.OK:
        return Choice(row, source)
    keys = [key for key in source.commits(slide_id) if n_seeds is None or key[1] < n_seeds]
    kept = with_pixels and source.has(layout.pixel_array(slide_id))
    of_block = {block: source for block, _ in keys if kept}
    return Choice(row, source, dict.fromkeys(keys, source), of_block, with_tokens, with_attention)


def copy_slide(slide_id: str, choice: Choice, n_seeds: int | None, stage: Path, result: Shared) -> None:
    """Copy the files of a slide into `stage`: chunks first, commit records last, as in every store.

    Parameters
    ----------
    n_seeds : int, optional
        Number of seeds that the arrays keep; all by default.
    """
    usable = choice.row["status"] == manifest.OK
    kinds = ("patches", "picture") if usable else ("picture",)
    for source, names in _chunks_by_source(slide_id, choice, n_seeds, stage):
        source.copy(names, stage, result)
    base = choice.base.files.get(slide_id, ())
    choice.base.copy([n for n in base if getattr(layout.classify(n), "kind", "") in kinds], stage, result)
    _copy_commits(slide_id, choice, stage, result)


def _chunks_by_source(
    slide_id: str, choice: Choice, n_seeds: int | None, stage: Path
) -> Iterator[tuple[Source, list[str]]]:
    """Files of arrays to copy, by source. Metadata with another number of seeds are written here."""
    names: dict[Source, list[str]] = {source: [] for source in set(choice.views.values())}
    if names:
        arrays.ensure_group(stage, layout.FEATURES)
        arrays.ensure_group(stage, layout.slide_group(slide_id))
        first = next(iter(choice.views.values()))
        for leaf in _PLAIN:
            array = layout.feature_array(slide_id, leaf)
            names[first] += [n for n in first.files[slide_id] if n.startswith(f"{array}/")]
        leaves = [s for s in SEED_AXIS if s == "features" or first.has(layout.feature_array(slide_id, s))]
        leaves = [s for s in leaves if choice.tokens or s not in tokens.LEAVES]
        leaves = [s for s in leaves if choice.attention or s != attention.LEAF]
        for leaf in leaves:
            array = layout.feature_array(slide_id, leaf)
            widest = max(names, key=functools.partial(_seeds_of, array))
            about = widest.metadata(array)
            if n_seeds is not None and n_seeds < about["shape"][0]:
                about = about | {"shape": [n_seeds, *about["shape"][1:]]}
                files.write_text(stage / layout.metadata_file(array), json.dumps(about, indent=2))
            else:
                names[widest].append(layout.metadata_file(array))
        for key, source in choice.views.items():
            names[source] += _chunks_of(slide_id, leaves, key, source)
    yield from names.items()
    if choice.pixels:
        yield from _pixel_chunks(slide_id, choice.pixels, stage)


def _seeds_of(array: str, source: Source) -> int:
    return int(source.metadata(array)["shape"][0])


def _chunks_of(slide_id: str, leaves: Sequence[str], key: Key, source: Source) -> Iterator[str]:
    block, seed = key
    for leaf in leaves:
        array = layout.feature_array(slide_id, leaf)
        about = source.metadata(array)
        size = about["chunk_grid"]["configuration"]["chunk_shape"][1]
        rows = range(block, block + 1) if leaf == "stats" else features.block_range(about["shape"][1], block)
        for across in range(rows.start // size, math.ceil(rows.stop / size)):
            index = (seed, across, 0, 0)[: len(about["shape"])]
            name = layout.chunk_file(array, index)
            if name in source.listed:
                yield name
            elif leaf != "stats" and _has_ok(source.commits(slide_id)[key], seed, across * size, size):
                raise CorruptStore(f"{source}/{name}: is missing: committed {leaf} are lost")


def _pixel_chunks(
    slide_id: str, of_block: Mapping[int, Source], stage: Path
) -> Iterator[tuple[Source, list[str]]]:
    array = layout.pixel_array(slide_id)
    first = next(iter(of_block.values()))
    about = first.metadata(array)
    size, n_rows = about["chunk_grid"]["configuration"]["chunk_shape"][0], about["shape"][0]
    arrays.ensure_group(stage, layout.PIXELS)
    yield first, [layout.metadata_file(array)]
    for block, source in of_block.items():
        rows = features.block_range(n_rows, block)
        names = [
            layout.chunk_file(array, (i, 0, 0, 0))
            for i in range(rows.start // size, math.ceil(rows.stop / size))
        ]
        absent = [name for name in names if name not in source.listed]
        records = [commit for (b, _), commit in source.commits(slide_id).items() if b == block]
        if absent and any(_has_ok(commit, commit.seeds.start) for commit in records[:1]):
            raise CorruptStore(f"{source}/{absent[0]}: is missing: pixels of committed patches")
        yield source, [name for name in names if name in source.listed]


def _has_ok(commit: manifest.Commit, seed: int, start: int = 0, count: int = 1 << 31) -> bool:
    """Whether a record lists a view of the seed, among some rows, that has features."""
    rows = manifest.ok_rows(commit.read(["seed", "row", "status"]), seed)
    return bool(((rows >= start) & (rows < start + count)).any())


def _copy_commits(slide_id: str, choice: Choice, stage: Path, result: Shared) -> None:
    """Copy records whose seeds are all wanted as files, and cut the others to the wanted seeds."""
    wanted: dict[tuple[Source, Path], list[int]] = {}
    commits: dict[Path, manifest.Commit] = {}
    whole: dict[Source, list[str]] = {}
    for source in set(choice.views.values()):
        for key, commit in source.commits(slide_id).items():
            if choice.views.get(key) is source:
                wanted.setdefault((source, commit.path), []).append(key[1])
                commits[commit.path] = commit
    for (source, path), seeds in sorted(wanted.items(), key=lambda item: str(item[0][1])):
        commit = commits[path]
        if len(seeds) == len(commit.seeds):
            whole.setdefault(source, []).append(commit.file)
            continue
        table = commit.read()
        for part in ranges_of(seeds):
            mine = pc.and_(pc.greater_equal(table["seed"], part.start), pc.less(table["seed"], part.stop))
            manifest.write_commit(stage, slide_id, commit.block, part, table.filter(mine))
            result.files += 1
    for source, names in whole.items():
        source.copy(names, stage, result)
