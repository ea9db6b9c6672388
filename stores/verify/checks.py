"""What ``store verify`` checks of one slide: its manifest rows, arrays and chunks against each other."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stores.errors import StoreError
from stores.format import arrays, features, layout, manifest, recipe
from stores.format.chunks import read_chunk
from stores.format.metadata import ANY, FLOAT16, ONE_BYTE, PLAIN, SEEDS, Codecs
from stores.io.location import StoreLike, read_file
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

    def __str__(self) -> str:
        return self.slide_id


@dataclass(frozen=True, slots=True)
class SlideFindings:
    """The result of reading every byte of a slide."""

    slide_id: str
    findings: list[Finding]
    views: int


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

    def read_patches(self, n_rows: int) -> manifest.Patches | None:
        """The table of patches, None when it is unreadable; it must have `n_rows` rows."""
        file = layout.patches_file(self.slide_id)
        try:
            patches = manifest.read_patches(self.state.store, self.slide_id)
        except StoreError as error:
            self.add(file, error, "patches")
            return None
        if len(patches) != n_rows:
            self.add(file, f"{len(patches)} patches, slides.parquet says {n_rows}", "patches")
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
        rows, seeds = table["row"].to_numpy(), table["seed"].to_numpy()
        n_rows = listed.shape[1]
        block = features.block_range(n_rows, commit.block) if n_rows else range(0)
        place: dict[str, Any] = {"block": commit.block, "seeds": commit.seeds, "rows": block}

        def wrong(problem: str) -> None:
            self.add(file, problem, "commit", **place)

        if not block or not len(rows):
            return wrong("is of a block that the slide does not have, or empty")
        if rows.min() < block.start or rows.max() >= block.stop:
            return wrong(
                f"lists rows {rows.min()}-{rows.max()}, the block has {block.start}-{block.stop - 1}"
            )
        if sorted(set(seeds.tolist())) != list(commit.seeds):
            return wrong(f"lists seeds {sorted(set(seeds.tolist()))}, its name says {list(commit.seeds)}")
        order = seeds.astype(np.int64) * (1 << 32) + rows
        if (np.diff(order) <= 0).any():
            return wrong("rows are not in order of seed, then row, each once")
        status = table["status"].to_pylist()
        if not set(status) <= {manifest.OK, manifest.BAD_READ}:
            return wrong(f"status {min(set(status) - {manifest.OK, manifest.BAD_READ})!r:.40}")
        ok = np.array(status) == manifest.OK
        if (table["view_crc32"].is_null().to_numpy() == ok).any():
            wrong("view_crc32 is empty where status is ok, or the other way round")
        for name, expected in (("slide_id", self.slide_id), ("split", self.row["split"])):
            if set(table[name].to_pylist()) != {expected}:
                wrong(f"{name} {min(set(table[name].to_pylist()) - {expected})!r:.40}, expected {expected!r}")
        if patches is not None:
            for name in ("x_px0", "y_px0", "tissue"):
                if not np.array_equal(table[name].to_numpy(), getattr(patches, name)[rows]):
                    wrong(f"{name} differs from that of the patches")
        if listed[seeds, rows].any():
            wrong("lists views that another record lists too")
        listed[seeds, rows] = np.where(ok, 2, 1)

    def check_missing(self, listed: npt.NDArray[np.int8]) -> None:
        """Views that no commit record lists, unless the store is known to be unfinished."""
        if self.state.partial:
            return
        for seed, block, rows in self.blocks(listed):
            absent = np.flatnonzero(listed[seed, rows.start : rows.stop] == 0)
            if len(absent) and (block, seed) not in self.broken:
                gap = range(rows.start + int(absent[0]), rows.start + int(absent[-1]) + 1)
                problem = f"{len(absent)} views have no commit record: lost, or never extracted"
                place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": gap}
                self.add(layout.views_folder(self.slide_id), problem, "missing", **place)

    def blocks(self, listed: npt.NDArray[np.int8]) -> Iterator[tuple[int, int, range]]:
        """Seed, block and rows of every block that the slide has."""
        n_rows = listed.shape[1]
        for seed in range(self.state.n_seeds):
            for block in range(features.n_blocks(n_rows) if n_rows else 0):
                yield seed, block, features.block_range(n_rows, block)

    def array_of(
        self, name: str, kind: str, shape: tuple[int, ...], codecs: Codecs, fill: Any
    ) -> arrays.ArraySpec | None:
        """The array's metadata, when they are what the format says for this shape."""
        file = layout.metadata_file(name)
        try:
            spec = arrays.read_metadata(self.state.store, name)
            found = json.loads(read_file(self.state.store, file, 1 << 20) or b"")
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
        if found.get("codecs") not in codecs or found.get("fill_value") != fill or found.get("attributes"):
            self.add(file, f"codecs, fill value or attributes are not those of {kind}", "metadata")
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
        if self.array_of(name, "coords", shape, PLAIN, 0) is None:
            return
        try:
            found = features.read_coords(self.state.store, self.slide_id)
        except StoreError as error:
            return self.add(layout.chunk_file(name, (0, 0)), error, "coords")
        if layout.chunk_file(name, (0, 0)) not in self.state.listed:
            return self.add(layout.chunk_file(name, (0, 0)), "is missing", "coords")
        if patches is not None and not np.array_equal(
            found, np.stack([patches.x_px0, patches.y_px0], axis=1)
        ):
            self.add(layout.chunk_file(name, (0, 0)), "differs from the patches of the manifest", "coords")

    def check_features(self, listed: npt.NDArray[np.int8]) -> None:
        """Features and statistics are there and readable where `listed` says so, and nowhere else."""
        store, n_rows = self.state.store, listed.shape[1]
        teacher = self.state.stored.teacher if self.state.stored else None
        dim = teacher.dim if teacher else ANY
        name = layout.feature_array(self.slide_id, "features")
        compact = self.state.stored is not None and self.state.stored.compact is not None
        codecs = FLOAT16
        if compact:
            codecs = ONE_BYTE
        spec = self.array_of(name, "features", (SEEDS, n_rows, dim), codecs, -128 if compact else "NaN")
        stats_name = layout.feature_array(self.slide_id, "stats")
        blocks = features.n_blocks(n_rows) if n_rows else 0
        stats = self.array_of(stats_name, "stats", (SEEDS, blocks, 2, dim), PLAIN, "NaN")
        arrays_of = {name: spec, stats_name: stats}
        self.strays(arrays_of)
        if spec is not None:
            if compact:
                scales, standard = (layout.feature_array(self.slide_id, n) for n in ("scales", "standard"))
                arrays_of = {scales: self.array_of(scales, "scales", spec.shape[:2], PLAIN, "NaN")}
                arrays_of[standard] = self.array_of(standard, "standard", (2, spec.shape[2]), PLAIN, "NaN")
                self.strays(arrays_of)
            try:
                opened = features.open_features(store, self.slide_id) if compact else None
            except StoreError as error:
                return self.add(name, error, "metadata")
            for seed, block, rows in self.blocks(listed):
                self._chunk(spec, opened, seed, block, rows, listed[seed, rows.start : rows.stop])
        if stats is not None:
            for seed, block, rows in self.blocks(listed):
                self._stats_chunk(stats, seed, block, rows, bool(listed[seed, rows.start : rows.stop].any()))

    def strays(self, arrays_of: dict[str, arrays.ArraySpec | None]) -> None:
        """Chunk files outside of the grid of their array."""
        for name, spec in arrays_of.items():
            for file in self.files if spec is not None else ():
                array, index = layout.parse_chunk(file) or ("", ())
                if array == name and spec is not None:
                    grid = [-(-n // c) for n, c in zip(spec.shape, spec.chunks, strict=True)]
                    if len(index) != len(grid) or any(i >= n for i, n in zip(index, grid, strict=True)):
                        self.add(file, f"is a chunk outside of the array's {grid}", "stray")

    def _chunk(
        self,
        spec: arrays.ArraySpec,
        opened: features.SlideFeatures | None,
        seed: int,
        block: int,
        rows: range,
        listed: npt.NDArray[np.int8],
    ) -> None:
        name = layout.feature_array(self.slide_id, "features")
        file = layout.chunk_file(name, (seed, block, 0))
        place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": rows}
        if file not in self.state.listed:
            if (listed == 2).any():
                self.add(file, "is missing: committed features are lost", "features", **place)
            return
        if not listed.any():
            if not self.state.partial and (block, seed) not in self.broken:
                self.add(file, "holds features that no commit record lists", "features", **place)
            return
        try:
            if opened is not None:
                values = opened.read_block(seed, block)
            else:
                chunk = read_chunk(self.state.store, name, spec, (seed, block, 0))
                if chunk is None:
                    raise StoreError("was listed, and is gone")
                values = chunk[0, : len(rows)]
        except StoreError as error:
            return self.add(file, error, "features", **place)
        self.judge_rows(file, "features", values, listed, place)

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
        self, spec: arrays.ArraySpec, seed: int, block: int, rows: range, committed: bool
    ) -> None:
        name = layout.feature_array(self.slide_id, "stats")
        file = layout.chunk_file(name, (seed, block, 0, 0))
        place: dict[str, Any] = {"block": block, "seeds": range(seed, seed + 1), "rows": rows}
        if not committed:
            return
        try:
            chunk = read_chunk(self.state.store, name, spec, (seed, block, 0, 0))
        except StoreError as error:
            return self.add(file, error, "stats", **place)
        if chunk is None:
            self.add(file, "is missing: the statistics of a committed block", "stats", **place)

    def check_pixels(self, listed: npt.NDArray[np.int8]) -> None:
        """Pixels, where the store keeps them, are there and readable for every listed patch."""
        name = layout.pixel_array(self.slide_id)
        if not self._has(name):
            if any(file.startswith(f"{name}/") for file in self.files):
                self.add(layout.metadata_file(name), "is missing", "metadata")
            return
        patch_px = self.state.stored.patch.size_px if self.state.stored else ANY
        shape = (listed.shape[1], patch_px, patch_px, 3)
        spec = self.array_of(name, "pixels", shape, ONE_BYTE, 0)
        if spec is None:
            return
        self.strays({name: spec})
        size = spec.chunks[0]
        for index in range(-(-spec.shape[0] // size)):
            rows = range(index * size, min((index + 1) * size, spec.shape[0]))
            if not listed[:, rows.start : rows.stop].any():
                continue
            place: dict[str, Any] = {"block": rows.start // features.block_rows(spec.shape[0]), "rows": rows}
            file = layout.chunk_file(name, (index, 0, 0, 0))
            try:
                chunk = read_chunk(self.state.store, name, spec, (index, 0, 0, 0))
            except StoreError as error:
                self.add(file, error, "pixels", **place)
                continue
            if chunk is None and (listed[:, rows.start : rows.stop] == 2).any():
                self.add(file, "is missing: pixels of committed patches", "pixels", **place)
