"""``store reindex``: rebuild derived files, without slides or teacher.

Derived files are checksums that older versions or other programs did not write, commit records that were written seed
by seed, block statistics, and the index. Chunks that no commit record lists are named, and removed only when asked.
Committed data is never removed: a commit record goes only when another has all of its rows. No other program may write
to the store, or read it, at the same time.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stores.errors import CorruptStore, StoreError
from stores.format import arrays, features, layout, manifest, recipe
from stores.format.chunks import read_chunk
from stores.format.encoding import Form
from stores.format.index import Index, drop_index, index_problems, make_index, read_index, write_index
from stores.format.metadata import ArraySpec
from stores.format.statistics import mean_and_variance
from stores.io import files
from stores.io.location import read_file
from stores.io.lock import only_writer
from stores.io.progress import SILENT, Reporter
from stores.io.text import counted, first_of
from stores.verify import join_commits


@dataclass(slots=True)
class Reindexed:
    """What was done, or with `dry_run` would be done."""

    store: str
    dry_run: bool = False
    done: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """Chunks that no commit record lists."""
    pruned: bool = False
    """Whether they were removed."""
    strays: list[str] = field(default_factory=list)
    """Files whose names the format does not have; they are left alone."""
    problems: list[str] = field(default_factory=list)
    """Contradictions that no other file resolves."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same to read."""
        verb = "would be " if self.dry_run else ""
        gone = "removed" if self.pruned else "--prune removes it"
        todo = len(self.done) if self.dry_run else 0
        outcome = f"{counted(todo, 'thing')} to do" if todo else "everything is up to date"
        if self.problems:
            outcome = f"{len(self.problems)} wrong, and no other file resolves it"
        return [
            *(f"{verb}done: {text}" for text in self.done),
            *first_of(f"no commit record lists it, {gone}", self.leftovers),
            *first_of("left alone, not a file of the format", self.strays),
            *(f"wrong: {text}" for text in self.problems),
            f"{self.store}: {outcome}",
        ]


def reindex(store: Path, dry_run: bool = False, prune: bool = False, report: Reporter = SILENT) -> Reindexed:
    """Rebuild what is needed; with `dry_run`, only report it. Call it again after an interruption.

    Parameters
    ----------
    prune : bool
        Remove leftovers: chunks that an interrupted extraction wrote and never committed.
    report : Reporter
        Advances by usable slide.

    Raises
    ------
    OptionError
        When the store is sealed, or another command writes into it.
    """
    recipe.load(store)
    if dry_run:
        return _reindex(store, True, prune, len(files.unfinished(store)), report)
    with only_writer(store) as writer:
        return _reindex(store, False, prune, writer.swept, report)


def _reindex(store: Path, dry_run: bool, prune: bool, unfinished: int, report: Reporter) -> Reindexed:
    stored = recipe.load(store)
    layout.require_unsealed(store)
    listed = layout.list_files(store)
    result = Reindexed(str(store), dry_run, pruned=prune and not dry_run)
    if unfinished:
        result.done.append(f"{counted(unfinished, 'unfinished file')} removed")
    before, n_before = _index(store), len(result.done)
    run = _Run(store, dry_run, result, listed)
    run.whole_store(stored)
    rows = manifest.read_slides(store)
    usable = [row for row in rows if row["status"] == manifest.OK]
    report.start("reindex", len(usable))
    mine = layout.by_slide(listed)
    for row in usable:
        slide = _Slide(run, row["slide_id"], mine.get(row["slide_id"], []))
        slide.check_rows(row["n_patches"])
        slide.join_records()
        if stored.compact is None:  # a compact copy keeps the statistics of what it was made from
            slide.statistics()
        slide.find_leftovers()
        report.advance(1, row["slide_id"])
    for slide_id in sorted(set(mine) - {row["slide_id"] for row in rows}):
        result.problems.append(
            f"slide {slide_id}: {counted(len(mine[slide_id]), 'file')}, but not in the slides table"
        )
    changes = len(result.done) > n_before or (prune and bool(result.leftovers))
    if result.pruned and result.leftovers:
        drop_index(store)
        for name in result.leftovers:
            (store / name).unlink()
    if not result.problems:  # of a store that contradicts itself there is nothing short to be said
        with run.problem():
            run.index(None if changes else before)
    return result


def _index(store: Path) -> Index | None:
    """The index that is there; None when it is damaged or does not fit, or there is none."""
    with contextlib.suppress(StoreError):
        raw = read_file(store, layout.INDEX, layout.limit_bytes(layout.INDEX))
        return read_index(store) if raw is not None and manifest.checksum_matches(raw) else None
    return None


@dataclass(frozen=True, slots=True)
class _Run:
    store: Path
    dry_run: bool
    result: Reindexed
    listed: dict[str, int]

    def does(self, what: str) -> bool:
        """Note a piece of work; whether to do it."""
        self.result.done.append(what)
        if not self.dry_run:
            drop_index(self.store)
        return not self.dry_run

    def whole_store(self, stored: recipe.Recipe) -> None:
        if "digest" not in files.read_json(self.store / layout.RECIPE, inside=self.store) and self.does(
            f"{layout.RECIPE}: digest added"
        ):
            recipe.save(self.store, stored)
        for name in self.listed:
            known = layout.classify(name)
            if known is None:
                self.result.strays.append(name)
            elif name.endswith(".parquet") and name != layout.INDEX:
                self._checksum(name, known.kind)

    def _checksum(self, name: str, kind: str) -> None:
        schemas = {"patches": manifest.PATCHES_SCHEMA, "commit": manifest.VIEWS_SCHEMA}
        raw = read_file(self.store, name, layout.limit_bytes(name))
        if manifest.checksum_matches(raw or b"") is None and self.does(f"{name}: checksum added"):
            with self.problem():
                manifest.add_checksum(self.store / name, schemas.get(kind, manifest.SLIDES_SCHEMA))

    def index(self, before: Index | None) -> None:
        """Write the index unless it was there `before` and says what the records say."""
        if before is not None and not any(index_problems(before, make_index(self.store))):
            return
        if any(manifest.commits(self.store)) and self.does(f"{layout.INDEX} written"):
            write_index(self.store)

    @contextlib.contextmanager
    def problem(self) -> Iterator[None]:
        """Note what is damaged and continue with the rest."""
        try:
            yield
        except StoreError as error:
            text = str(error).replace(f"{self.store}/", "")
            if text not in self.result.problems:
                self.result.problems.append(text)


@dataclass(frozen=True, slots=True)
class _Slide:
    run: _Run
    slide_id: str
    files: Sequence[str]

    def check_rows(self, n_patches: int) -> None:
        """Number of patches, in the slides table and in the arrays."""
        store, problems = self.run.store, self.run.result.problems
        with self.run.problem():
            patches = manifest.read_patches(store, self.slide_id)
            if len(patches) != n_patches:
                problems.append(
                    f"slide {self.slide_id}: {len(patches)} patches, the slides table says {n_patches}"
                )
            if self._has(layout.feature_array(self.slide_id, "coords")):
                coords = patches.coords
                if not np.array_equal(features.read_coords(store, self.slide_id), coords):
                    problems.append(f"slide {self.slide_id}: coords of the features are not its patches")

    def _has(self, array: str) -> bool:
        return layout.metadata_file(array) in self.run.listed

    def join_records(self) -> None:
        """Join commit records of a block; see `stores.verify.join_commits` for why the order is safe."""
        store = self.run.store
        with self.run.problem():
            for parts in join_commits.joinable(list(manifest.commits(store, self.slide_id))):
                seeds = range(parts[0].seeds.start, parts[-1].seeds.stop)
                what = f"{len(parts)} commit records joined to seeds {seeds[0]}-{seeds[-1]}"
                if self.run.does(f"slide {self.slide_id} block {parts[0].block}: {what}"):
                    join_commits.join(store, parts)
            for part, wider in join_commits.replaced(store, self.slide_id):
                names = f"{part.path.name}", f"{wider.path.name}"
                if not join_commits.has_all(wider, part):
                    self.run.result.problems.append(
                        f"slide {self.slide_id}: {names[0]} does not count beside {names[1]}, but says otherwise"
                    )
                elif self.run.does(f"slide {self.slide_id}: {names[0]} removed, {names[1]} has its views"):
                    part.path.unlink()

    def statistics(self) -> None:
        """Mean and variance of every committed block, from the features."""
        name = layout.feature_array(self.slide_id, "stats")
        with self.run.problem():
            commits = list(manifest.commits(self.run.store, self.slide_id))
            if not commits:
                return
            opened = features.open_features(self.run.store, self.slide_id)
            form = features.forms(opened.n_rows, opened.n_seeds, opened.dim)["stats"]
            spec = self._stats_spec(name, form)
            for commit in commits:
                table = commit.read(["seed", "row", "status"])
                for seed in commit.seeds:
                    with self.run.problem():
                        values = _committed(opened, table, seed, commit.block)
                        if not self._stats_are(name, spec, values, seed, commit.block) and self.run.does(
                            f"slide {self.slide_id} block {commit.block} seed {seed}: statistics computed again"
                        ):
                            features.write_stats(self.run.store, self.slide_id, seed, commit.block, values)

    def _stats_spec(self, name: str, form: Form) -> ArraySpec | None:
        """The array's metadata. An array that is absent, or not as the format says, is created again."""
        with contextlib.suppress(StoreError):
            spec = arrays.read_metadata(self.run.store, name)
            if (spec.shape, spec.chunks, spec.dtype) == (form.shape, form.chunks, np.float64):
                return spec
        if self.run.does(f"slide {self.slide_id}: array of statistics created again"):
            arrays.write_metadata(self.run.store, name, form.metadata())  # each chunk is written again
        return None

    def _stats_are(
        self,
        name: str,
        spec: ArraySpec | None,
        values: npt.NDArray[np.float16],
        seed: int,
        block: int,
    ) -> bool:
        if spec is None:
            return False
        try:
            found = read_chunk(self.run.store, name, spec, (seed, block, 0, 0))
        except StoreError:
            return False
        # another processor adds in another order, which is no reason to write
        expected = mean_and_variance(values)
        return found is not None and np.allclose(found[0, 0], expected, rtol=1e-9, atol=1e-12, equal_nan=True)

    def find_leftovers(self) -> None:
        """Chunks of blocks that no commit record lists."""
        committed: set[tuple[int, int]] = set()
        with self.run.problem():
            committed = {
                (seed, c.block) for c in manifest.commits(self.run.store, self.slide_id) for seed in c.seeds
            }
            blocks = {block for _, block in committed}
            per_block = self._chunks_per_block(layout.pixel_array(self.slide_id), 0)
            per_token_block = self._chunks_per_block(layout.feature_array(self.slide_id, "tokens"), 1)
            for name in self.files:
                chunk = layout.parse_chunk(name)
                if chunk is None:
                    continue
                array, at = chunk
                if self._is_packed(array):  # a shard holds many, and only whole files are removed
                    continue
                leaf = array.rpartition("/")[2]
                if array == layout.pixel_array(self.slide_id):
                    listed = per_block == 0 or at[0] // per_block in blocks
                elif leaf == "tokens":
                    listed = per_token_block == 0 or (at[0], at[1] // per_token_block) in committed
                else:
                    listed = (
                        leaf not in ("features", "stats", "positions", "attention") or at[:2] in committed
                    )
                if not listed:
                    self.run.result.leftovers.append(name)

    def _is_packed(self, array: str) -> bool:
        return self._has(array) and arrays.read_metadata(self.run.store, array).shard is not None

    def _chunks_per_block(self, name: str, axis: int) -> int:
        """Of an array whose rows are along `axis`; 0 when there is none."""
        if not self._has(name):
            return 0
        spec = arrays.read_metadata(self.run.store, name)
        if axis >= len(spec.shape):
            raise CorruptStore(f"{name}: {len(spec.shape)} dimensions")
        return max(features.block_rows(spec.shape[axis]) // spec.chunks[axis], 1)


def _committed(
    opened: features.SlideFeatures, table: pa.Table, seed: int, block: int
) -> npt.NDArray[np.float16]:
    """The features of a block, NaN in rows that are not committed; CorruptStore when a committed one is lost."""
    span = features.block_range(opened.n_rows, block)
    rows = manifest.ok_rows(table, seed)
    inside = rows[(rows >= span.start) & (rows < span.stop)] - span.start
    values = opened.read_block(seed, block)
    features.require_finite(values[inside], f"slide {opened.slide_id} seed {seed} block {block}")
    kept = np.full_like(values, np.nan)
    kept[inside] = values[inside]
    return kept
