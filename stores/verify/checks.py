"""What ``store verify`` checks of one slide: its manifest rows, arrays and chunks against each other."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stores.errors import G2LError, StoreError
from stores.format import arrays, features, layout, manifest, recipe
from stores.format.array_kinds import COMPACT, COORDS, FEATURES, PIXELS, SCALES, STANDARD, STATS, ArrayKind
from stores.format.chunks import is_in_shard, read_chunk
from stores.format.committed import patches_problems, record_problems
from stores.format.figures import Figures
from stores.format.index import Record
from stores.format.metadata import ANY, SEEDS, loose
from stores.format.shards import file_of, read_index, shard_fault
from stores.format.statistics import all_finite, are_statistics_of
from stores.io.files import first_line
from stores.io.location import StoreLike, read_file
from stores.io.text import counted
from stores.verify.findings import Finding


@dataclass(slots=True)
class StoreCheck:
    """What the checks of every slide share."""

    store: StoreLike
    listed: dict[str, int]
    slides: dict[str, dict[str, Any]]
    stored: recipe.Recipe | None
    partial: bool
    n_seeds: int = 0
    found: list[Finding] = field(default_factory=list)

    def add(self, file: str, problem: object, kind: str, slide_id: str | None = None, **place: Any) -> None:
        """Note a finding. The path of the store is removed from the message of an error."""
        text = str(problem).replace(f"{self.store}/", "")
        text = text.removeprefix(f"{file}: ")
        self.found.append(Finding(file, text, kind, slide_id, **place))

    @contextlib.contextmanager
    def unexpected(self, file: str, slide_id: str | None = None) -> Iterator[None]:
        """Make a finding of any exception: what no check foresaw must not hide what the others find."""
        try:
            yield
        except Exception as error:
            # whatever a library raises on bytes that nobody thought of, also MemoryError
            said = first_line(error)
            known = isinstance(error, G2LError)
            problem = said if known else f"{type(error).__name__}: {said}"
            self.add(file, f"could not be checked: {problem}", "unreadable", slide_id)


@dataclass(frozen=True, slots=True)
class SlideFiles:
    """What is known of a slide before its files are read; small and picklable."""

    slide_id: str
    row: dict[str, Any] | None
    """Of the slides table; None when it does not list the slide."""
    sizes: dict[str, int]
    """Of the slide's files."""
    stored: recipe.Recipe | None
    partial: bool
    n_seeds: int
    indexed: bool = False
    """Whether the store has an index to compare the slide's records with."""

    def __str__(self) -> str:
        return self.slide_id


@dataclass(frozen=True, slots=True)
class SlideFindings:
    """The result of reading every byte of a slide."""

    slide_id: str
    findings: list[Finding]
    views: int
    records: list[Record] = field(default_factory=list)
    """What an index says of its records, where they were asked for."""
    figures: Figures = field(default_factory=Figures)
    """Those of its views, likewise."""


@dataclass(slots=True)
class SlideCheck:
    """The checks of one usable slide."""

    state: StoreCheck
    slide_id: str
    row: dict[str, Any]
    commits: list[tuple[manifest.Commit, pa.Table]]
    files: list[str]
    """Those of this slide."""
    n_ok: int = 0
    broken: set[tuple[int | None, int]] = field(default_factory=set)
    """(block, seed) whose commit record cannot be relied on."""

    def add(self, file: str, problem: object, kind: str, **place: Any) -> None:
        """Note a finding of this slide."""
        self.state.add(file, problem, kind, self.slide_id, **place)

    def _has(self, array: str) -> bool:
        return layout.metadata_file(array) in self.state.listed

    def read_patches(self) -> manifest.Patches | None:
        """The table of patches, None when it is unreadable."""
        file = layout.patches_file(self.slide_id)
        try:
            patches = manifest.read_patches(self.state.store, self.slide_id)
        except StoreError as error:
            self.add(file, error, "patches")
            return None
        stored = self.state.stored
        for problem in patches_problems(patches, self.row, None if stored is None else stored.patch):
            self.add(file, problem, "patches")
        return patches

    def check_commit(
        self,
        commit: manifest.Commit,
        table: pa.Table,
        patches: manifest.Patches | None,
        listed: npt.NDArray[np.int8],
    ) -> None:
        """Rows of a commit record against its name, the slide and its patches; they are entered in `listed`."""
        file = commit.file
        n_rows = listed.shape[1]
        block = features.block_range(n_rows, commit.block) if n_rows else range(0)
        place: dict[str, Any] = {"block": commit.block, "seeds": commit.seeds, "rows": block}
        problems, usable = record_problems(commit, table, self.row, n_rows, patches)
        for problem in problems:
            self.add(file, problem, "commit", **place)
        if not usable:
            return
        ok = pc.equal(table["status"], manifest.OK).to_numpy()
        rows, seeds = table["row"].to_numpy(), table["seed"].to_numpy()
        if listed[seeds, rows].any():
            self.add(file, "lists views that another record lists too", "commit", **place)
        listed[seeds, rows] = np.where(ok, 2, 1)

    def check_missing(self, listed: npt.NDArray[np.int8]) -> None:
        """Views that no commit record lists, unless the store is known to be unfinished."""
        if self.state.partial:
            return
        for seed, block, rows in self.blocks(listed):
            absent = np.flatnonzero(listed[seed, rows.start : rows.stop] == 0)
            if len(absent) and (block, seed) not in self.broken:
                gap = range(rows.start + int(absent[0]), rows.start + int(absent[-1]) + 1)
                problem = f"{counted(len(absent), 'view has', 'views have')} no commit record: lost, or never extracted"
                place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": gap}
                self.add(layout.views_folder(self.slide_id), problem, "missing", **place)

    def blocks(self, listed: npt.NDArray[np.int8]) -> Iterator[tuple[int, int, range]]:
        """Seed, block and rows of every block that the slide has."""
        n_rows = listed.shape[1]
        for seed in range(self.state.n_seeds):
            for block in range(features.n_blocks(n_rows) if n_rows else 0):
                yield seed, block, features.block_range(n_rows, block)

    def array_of(
        self, name: str, kind: ArrayKind, shape: tuple[int, ...], chunks: tuple[int, ...]
    ) -> arrays.ArraySpec | None:
        """The array's metadata, when they are what the format says for this shape and these chunks."""
        file = layout.metadata_file(name)
        try:
            spec = arrays.read_metadata(self.state.store, name)
            found = loose(json.loads(read_file(self.state.store, file, layout.MAX_METADATA_BYTES) or b"{}"))
        except StoreError as error:
            self.add(file, error, "metadata")
            return None
        fits = len(spec.shape) == len(shape)
        for n, wanted in zip(spec.shape, shape, strict=False):
            fits = fits and (
                n == wanted or (wanted == ANY and n > 0) or (wanted == SEEDS and self._seeds_fit(n))
            )
        if not fits:
            names = {ANY: "any", SEEDS: f"{self._n_seeds()} or more seeds"}
            expected = ", ".join(str(names.get(n, n)) for n in shape)
            self.add(file, f"shape {spec.shape}, expected ({expected})", "metadata")
            return None
        if any(n != wanted for n, wanted in zip(spec.chunks, chunks, strict=True) if wanted != ANY):
            expected = ", ".join("any" if n == ANY else str(n) for n in chunks)
            self.add(file, f"chunks {spec.chunks}, expected ({expected})", "metadata")
            return None
        if spec.dtype != kind.dtype:
            self.add(file, f"data type {spec.dtype}, expected {kind.dtype}", "metadata")
            return None
        right = found.get("codecs") in kind.codecs and found.get("fill_value") == kind.fill
        if not right or found.get("attributes"):
            self.add(file, f"codecs, fill value or attributes are not those of {kind.leaf}", "metadata")
        return spec

    def _seeds_fit(self, n: int) -> bool:
        return self._n_seeds() <= n <= manifest.MAX_SEEDS

    def _n_seeds(self) -> int:
        """Committed seeds of this slide; others have more while an extraction with more seeds is unfinished."""
        return max((commit.seeds.stop for commit, _ in self.commits), default=0)

    def check_coords(self, patches: manifest.Patches | None) -> None:
        """The coordinates beside the features are those of the patches."""
        name = layout.feature_array(self.slide_id, "coords")
        shape = (ANY if patches is None else len(patches), 2)
        if self.array_of(name, COORDS, shape, shape) is None:
            return
        try:
            found = features.read_coords(self.state.store, self.slide_id)
        except StoreError as error:
            return self.add(layout.chunk_file(name, (0, 0)), error, "coords")
        if layout.chunk_file(name, (0, 0)) not in self.state.listed:
            return self.add(layout.chunk_file(name, (0, 0)), "is missing", "coords")
        if patches is not None and not np.array_equal(found, patches.coords):
            self.add(layout.chunk_file(name, (0, 0)), "differs from the patches of the manifest", "coords")

    def check_features(self, listed: npt.NDArray[np.int8]) -> None:
        """Features and statistics are there and readable where `listed` says so, and nowhere else."""
        store, n_rows = self.state.store, listed.shape[1]
        teacher = self.state.stored.teacher if self.state.stored else None
        dim = teacher.dim if teacher else ANY
        name = layout.feature_array(self.slide_id, "features")
        compact = self._is_compact(name)
        size = features.block_rows(n_rows)
        spec = self.array_of(name, COMPACT if compact else FEATURES, (SEEDS, n_rows, dim), (1, size, dim))
        stats_name = layout.feature_array(self.slide_id, "stats")
        blocks = features.n_blocks(n_rows) if n_rows else 0
        stats = self.array_of(stats_name, STATS, (SEEDS, blocks, 2, dim), (1, 1, 2, dim))
        arrays_of = {name: spec, stats_name: stats}
        self.strays(arrays_of)
        opened = None
        if spec is not None:
            if compact:
                scales, standard = (layout.feature_array(self.slide_id, n) for n in ("scales", "standard"))
                arrays_of = {scales: self.array_of(scales, SCALES, spec.shape[:2], (1, size))}
                arrays_of[standard] = self.array_of(
                    standard, STANDARD, (2, spec.shape[2]), (2, spec.shape[2])
                )
                self.strays(arrays_of)
            try:
                opened = features.open_features(store, self.slide_id)
            except StoreError as error:
                return self.add(name, error, "metadata")
        for seed, block, rows in self.blocks(listed):
            here = listed[seed, rows.start : rows.stop]
            values = None if opened is None else self._chunk(opened, seed, block, rows, here)
            if stats is not None:
                self._stats_chunk(stats, seed, block, rows, here, opened, values)

    def _is_compact(self, name: str) -> bool:
        """What the recipe says of the features; what their metadata say when it is unreadable."""
        if self.state.stored is not None:
            return self.state.stored.compact is not None
        with contextlib.suppress(StoreError):
            return arrays.read_metadata(self.state.store, name).dtype == np.int8
        return False

    def strays(self, arrays_of: dict[str, arrays.ArraySpec | None]) -> None:
        """Chunk files outside of the grid of their array; shards with bytes that no chunk of the array has."""
        for name, spec in arrays_of.items():
            for file in self.files if spec is not None else ():
                array, index = layout.parse_chunk(file) or ("", ())
                if array == name and spec is not None:
                    grid = [-(-n // c) for n, c in zip(spec.shape, spec.shard or spec.chunks, strict=True)]
                    if len(index) != len(grid) or any(i >= n for i, n in zip(index, grid, strict=True)):
                        self.add(file, f"is a chunk outside of the array's {grid}", "stray")
                    elif spec.shard is not None:
                        self._shard(file, spec, index)

    def _shard(self, file: str, spec: arrays.ArraySpec, index: tuple[int, ...]) -> None:
        try:
            entries = read_index(self.state.store, file, spec)
        except StoreError:
            return  # named for each of its chunks
        if entries is not None:
            fault = shard_fault(spec, index, entries, self.state.listed[file])
            if fault is not None:
                self.add(file, fault, "stray")

    def has_chunk(self, name: str, spec: arrays.ArraySpec, index: tuple[int, ...]) -> bool:
        """Whether there is a chunk, readable or not."""
        if file_of(name, spec, index) not in self.state.listed:
            return False
        if spec.shard is None:
            return True
        try:
            return is_in_shard(self.state.store, name, spec, index)
        except StoreError:
            return True

    def _chunk(
        self,
        opened: features.SlideFeatures,
        seed: int,
        block: int,
        rows: range,
        listed: npt.NDArray[np.int8],
    ) -> npt.NDArray[np.float16] | None:
        """The features of a block, None when there are none or they are unreadable."""
        name = layout.feature_array(self.slide_id, "features")
        file = file_of(name, opened.spec, (seed, block, 0))
        place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": rows}
        if not self.has_chunk(name, opened.spec, (seed, block, 0)):
            if (listed == 2).any():
                self.add(file, "is missing: committed features are lost", "features", **place)
            return None
        if not listed.any():
            if not self.state.partial and (block, seed) not in self.broken:
                self.add(file, "holds features that no commit record lists", "features", **place)
            return None
        try:
            if opened.scales is not None:
                values = opened.read_block(seed, block)
            else:
                chunk = read_chunk(self.state.store, name, opened.spec, (seed, block, 0))
                if chunk is None:
                    raise StoreError("was listed, and is gone")
                values = chunk[0, : len(rows)]
        except StoreError as error:
            self.add(file, error, "features", **place)
            return None
        self.judge_rows(file, "features", values, listed, place)
        return values

    def chunks_beside(
        self, name: str, spec: arrays.ArraySpec, listed: npt.NDArray[np.int8], lost: str
    ) -> Iterator[tuple[str, npt.NDArray[Any], npt.NDArray[np.int8], dict[str, Any]]]:
        """Each readable chunk of an optional array beside the features; findings for those that are not.

        Parameters
        ----------
        lost
            What a missing chunk means, such as ``tokens are lost``.

        Yields
        ------
        tuple
            File, values of the chunk's rows, what is `listed` of each, and their place for findings.
        """
        for seed, block, rows in self.blocks(listed):
            for start in range(rows.start, rows.stop, spec.chunks[1]):
                part = range(start, min(start + spec.chunks[1], rows.stop))
                at = (seed, start // spec.chunks[1], 0, 0)[: len(spec.chunks)]
                file = file_of(name, spec, at)
                mine = listed[seed, part.start : part.stop]
                place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": part}
                if not self.has_chunk(name, spec, at):
                    if (mine == 2).any():
                        self.add(file, f"is missing: committed {lost}", "features", **place)
                    continue
                try:
                    chunk = read_chunk(self.state.store, name, spec, at)
                    if chunk is None:
                        raise StoreError("was listed, and is gone")
                except StoreError as error:
                    self.add(file, error, "features", **place)
                    continue
                yield file, chunk[0, : len(part)], mine, place

    def judge_beside(
        self,
        file: str,
        what: str,
        values: npt.NDArray[np.float16],
        listed: npt.NDArray[np.int8],
        place: dict[str, Any],
    ) -> None:
        """`judge_rows` of an array beside the features, where anything is known of its rows."""
        known = not self.state.partial and (place["block"], place["seeds"].start) not in self.broken
        if known or listed.any():
            self.judge_rows(file, what, values.reshape(len(listed), -1), listed, place)

    def judge_rows(
        self,
        file: str,
        what: str,
        values: npt.NDArray[np.float16],
        listed: npt.NDArray[np.int8],
        place: dict[str, Any],
    ) -> None:
        """Rows (n, length) are finite where `listed` (n,) is 2, and only there; ``place["rows"]`` are their numbers."""
        rows: range = place["rows"]
        bits = np.ascontiguousarray(values).view(np.uint16)
        finite = ((bits & 0x7C00) != 0x7C00).all(axis=1)  # numpy's isfinite is 9 times slower
        for problem, at in (
            (f"committed rows without finite {what}", (listed == 2) & ~finite),
            (
                f"rows with {what}, although their status is bad_read or they are not listed",
                (listed != 2) & finite,
            ),
        ):
            if at.any():
                bad = np.flatnonzero(at)
                gap = range(rows.start + int(bad[0]), rows.start + int(bad[-1]) + 1)
                self.add(file, f"{len(bad)} {problem}", "features", **(place | {"rows": gap}))

    def _stats_chunk(
        self,
        spec: arrays.ArraySpec,
        seed: int,
        block: int,
        rows: range,
        listed: npt.NDArray[np.int8],
        opened: features.SlideFeatures | None,
        values: npt.NDArray[np.float16] | None,
    ) -> None:
        """The statistics of a committed block are there, and those of its features where these are readable."""
        name = layout.feature_array(self.slide_id, "stats")
        file = file_of(name, spec, (seed, block, 0, 0))
        place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": rows}
        if not listed.any():
            return
        try:
            chunk = read_chunk(self.state.store, name, spec, (seed, block, 0, 0))
        except StoreError as error:
            return self.add(file, error, "stats", **place)
        if chunk is None:
            return self.add(file, "is missing: the statistics of a committed block", "stats", **place)
        if opened is None or values is None:
            return
        ok = values[listed == 2]
        if ok.shape[1] != chunk.shape[3] or not all_finite(ok):
            return  # named before
        if not are_statistics_of(chunk[0, 0], ok, opened.rounding(seed, block)):
            self.add(file, "are not the mean and variance of the features", "stats", **place)

    def check_pixels(self, listed: npt.NDArray[np.int8]) -> None:
        """Pixels, where the store keeps them, are there and readable for every listed patch."""
        name = layout.pixel_array(self.slide_id)
        if not self._has(name):
            if any(file.startswith(f"{name}/") for file in self.files):
                self.add(layout.metadata_file(name), "is missing", "metadata")
            return
        patch_px = self.state.stored.patch.size_px if self.state.stored else ANY
        shape = (listed.shape[1], patch_px, patch_px, 3)
        spec = self.array_of(name, PIXELS, shape, (min(features.ROW_QUANTUM, shape[0]), *shape[1:]))
        if spec is None:
            return
        self.strays({name: spec})
        size = spec.chunks[0]
        for index in range(-(-spec.shape[0] // size)):
            rows = range(index * size, min((index + 1) * size, spec.shape[0]))
            if not listed[:, rows.start : rows.stop].any():
                continue
            place: dict[str, Any] = {"block": rows.start // features.block_rows(spec.shape[0]), "rows": rows}
            file = file_of(name, spec, (index, 0, 0, 0))
            try:
                chunk = read_chunk(self.state.store, name, spec, (index, 0, 0, 0))
            except StoreError as error:
                self.add(file, error, "pixels", **place)
                continue
            if chunk is None and (listed[:, rows.start : rows.stop] == 2).any():
                self.add(file, "is missing: pixels of committed patches", "pixels", **place)
