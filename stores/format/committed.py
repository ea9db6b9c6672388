"""What the tables of a store promise about each other: slides, patches, commit records.

The checks name every broken promise, for ``store verify``. `usable_slides` and `read_records` refuse the first one:
whatever trains on rows, or reads them for another purpose, reads them through these two.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stores.errors import CorruptStore, StoreError
from stores.format import features, layout, manifest, oblong, qc, tiles
from stores.format.index import CLAIMED, Index, Record, require_claimed
from stores.format.recipe import (
    AS_DECLARED,
    AS_IS_TOLERANCE,
    DECLARED_FACTOR,
    CompleteRecipe,
    Patch,
    load_complete,
)
from stores.io.location import StoreLike, entries

STATUSES = (manifest.OK, "failed", "no_tissue")
MPP_SOURCES = ("slide", "option", "csv")
GRID = "non-overlapping"
CHECKED = ("slide_id", "row", "x_px0", "y_px0", "seed", "split", "tissue", "status", "view_crc32")
"""The columns of a commit record that other tables have too, or that say whether a view exists."""
_OPEN_SLIDES = 64


def slides_problems(
    rows: Sequence[Mapping[str, Any]], patch: Patch | None = None
) -> Iterator[tuple[str | None, str]]:
    """(slide id, what is wrong) of a slides table; no slide id where the table as a whole is wrong.

    Parameters
    ----------
    patch
        Of the recipe; None leaves out what depends on it.
    """
    ids = [row["slide_id"] for row in rows]
    if ids != sorted(ids):
        yield None, "is not sorted by slide_id"
    for row in rows:
        for problem in _row_problems(row, patch):
            yield row["slide_id"], problem
    usable = [row for row in rows if row["status"] == manifest.OK]
    yield from in_two_splits(usable, "patient_id", "patient")
    yield from in_two_splits(usable, "fingerprint", "the slide file with the fingerprint")


def _row_problems(row: Mapping[str, Any], patch: Patch | None) -> Iterator[str]:
    for name, allowed in (("status", STATUSES), ("split", manifest.SPLITS)):
        if row[name] not in allowed:
            yield f"{name} {row[name]!r:.40}; allowed: {', '.join(allowed)}"
    if row["status"] in STATUSES and (row["n_patches"] > 0) != (row["status"] == manifest.OK):
        yield f"status {row['status']} with {row['n_patches']} patches"
    if row["mpp_source"] and row["mpp_source"] not in MPP_SOURCES:
        yield f"mpp_source {row['mpp_source']!r:.40}; allowed: {', '.join(MPP_SOURCES)}"
    positive = True
    for name in ("width_px0", "height_px0", "patch_px0", "mpp", "patch_mpp"):
        value = row[name]
        if value is not None and not (math.isfinite(value) and value > 0):
            positive = False
            yield f"{name} {value:g}; allowed is a number above 0"
    if positive and patch is not None and None not in (row["mpp"], row["patch_px0"], row["patch_mpp"]):
        side, mpp = row["patch_px0"], row["mpp"]
        expected = side * mpp / patch.size_px
        if not math.isclose(row["patch_mpp"], expected, rel_tol=1e-9):
            yield (
                f"patch_mpp {row['patch_mpp']:g}, but {side} level-0 pixels at {mpp:g} mpp are {patch.size_px} pixels "
                f"at {expected:g}"
            )
        elif patch.grid == AS_DECLARED:
            if not 1 / DECLARED_FACTOR <= expected / patch.mpp <= DECLARED_FACTOR:
                yield f"patches at {expected:g} mpp, the recipe says {patch.mpp:g}"
        elif abs(expected - patch.mpp) > AS_IS_TOLERANCE * patch.mpp + mpp / patch.size_px:
            yield f"patches at {expected:g} mpp, the recipe says {patch.mpp:g}"
    yield from _oblong_problems(row, patch)
    for name, value in row.items():
        if name not in manifest.SLIDES_SCHEMA.names and not isinstance(value, str | None):
            yield f"column {name!r:.40} holds {value!r:.40}; own columns are text"


def _oblong_problems(row: Mapping[str, Any], patch: Patch | None) -> Iterator[str]:
    """What is wrong with the resolution in y, where the slides table has one of its own."""
    try:
        mpp, (_, side) = oblong.mpp_in_y(row), oblong.sides_px0(row)
    except CorruptStore as error:
        yield str(error)
        return
    if mpp is None or patch is None:
        return
    expected = side * mpp / patch.size_px
    if patch.grid != GRID:
        yield f"{oblong.MPP_Y} {mpp:g}: patches of the grid {patch.grid} have one resolution"
    elif abs(expected - patch.mpp) > AS_IS_TOLERANCE * patch.mpp + mpp / patch.size_px:
        yield f"patches at {expected:g} mpp in y, the recipe says {patch.mpp:g}"


def in_two_splits(rows: Sequence[Mapping[str, Any]], column: str, what: str) -> Iterator[tuple[str, str]]:
    """(slide id, problem) for each value of a column that slides of two splits have; empty values do not count."""
    first: dict[str, Mapping[str, Any]] = {}
    named: set[str] = set()
    for row in rows:
        if row[column]:
            other = first.setdefault(row[column], row)
            if other["split"] != row["split"] and row[column] not in named:
                named.add(row[column])
                yield (
                    row["slide_id"],
                    f"{what} {row[column]:.40} is in split {row['split']} here and in {other['split']} as slide "
                    f"{other['slide_id']}: a training would see what it is validated on",
                )


def tiles_in_two_splits(store: StoreLike, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(slide id, problem) for the first tile of each group that a group of another split has, too.

    Parameters
    ----------
    rows
        Of usable groups of tiles. Patches that cannot be read are named by whoever reads them, and are left out here.
    """
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        try:
            found = manifest.read_patches(store, row["slide_id"]).tile
        except StoreError:
            continue
        shared = None
        for tile in [] if found is None else found.tolist():
            other = first.setdefault(tile, row)
            if other["split"] != row["split"] and shared is None:
                shared = tile, other
        if shared is not None:
            tile, other = shared
            yield (
                row["slide_id"],
                f"tile {tile:.40} is in split {row['split']} here and in {other['split']} in group "
                f"{other['slide_id']}: a training would see what it is validated on",
            )


def same_pictures(
    rows: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(row, row of the first such slide) of usable slides with equal fingerprints: one picture counts twice.

    Two splits are a problem of their own, which `slides_problems` names.
    """
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["status"] == manifest.OK and row["fingerprint"]:
            other = first.setdefault(row["fingerprint"], row)
            if other is not row:
                yield row, other


def same_picture(row: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What is said of a pair of `same_pictures`, after the first one's name."""
    where = f"both in split {row['split']}"
    if other["split"] != row["split"]:
        where = f"here in split {row['split']}, there in {other['split']}"
    return (
        f"is the same picture as slide {other['slide_id']} (equal fingerprints), {where}; leave one out with "
        "`g2l store subset`"
    )


def patches_problems(
    patches: manifest.Patches, row: Mapping[str, Any], patch: Patch | None = None
) -> Iterator[str]:
    """What is wrong with the patches of a slide, given its row of the slides table."""
    if len(patches) != row["n_patches"]:
        yield f"{len(patches)} patches, slides.parquet says {row['n_patches']}"
    try:
        sides = oblong.sides_px0(row)
    except CorruptStore as error:
        yield str(error)
        return
    if patch is not None and patch.grid == tiles.GRID:
        yield from tiles.problems(patches, row, sides[0])
    elif patch is not None and patches.tile is not None:
        yield f"has a column {manifest.TILE}, which only patches that were cut from tiles have"
    places = patches.x_px0.astype(np.int64) * (1 << 32) + patches.y_px0
    places.sort()  # np.unique takes ten times as long
    if patches.tile is None and (places[1:] == places[:-1]).any():
        yield "lists a patch twice"
    over_the_edge = patch is not None and patch.grid == AS_DECLARED  # as other tools cut
    sizes = row["width_px0"], row["height_px0"]
    for name, size, side in zip(("x_px0", "y_px0"), sizes, sides, strict=True):
        at = getattr(patches, name)
        within = 1 if over_the_edge else side
        if len(at) and (at.min() < 0 or (size is not None and int(at.max()) + within > size)):
            limit = "" if size is None else f" of {size} pixels"
            yield f"{name} from {at.min()} to {at.max()}: a patch of {side} pixels lies outside of the slide{limit}"
        elif patch is not None and patch.grid == GRID and (at % side).any():
            yield f"{name} {at[at % side > 0][0]} is not on the grid of {side} pixels from the level-0 origin"
    yield from qc.problems(patches)
    least = np.float32(0.0 if patch is None else patch.min_tissue)
    wrong = ~((patches.tissue >= least) & (patches.tissue <= 1))  # also where it is NaN
    if wrong.any():
        yield f"tissue {patches.tissue[wrong][0]:g} of {int(wrong.sum())} patches; allowed is {least:g} to 1"


def record_problems(
    commit: manifest.Commit,
    table: pa.Table,
    row: Mapping[str, Any],
    n_rows: int,
    patches: manifest.Patches | None,
) -> tuple[list[str], bool]:
    """What is wrong with a commit record, and whether its rows and seeds are numbers that the slide has.

    Parameters
    ----------
    table
        The columns `CHECKED`, or all.
    row
        Of the slides table.
    n_rows : int
        Patches of the slide.
    patches
        None when they are unreadable.
    """
    rows, seeds = table["row"].to_numpy(), table["seed"].to_numpy()
    problem = _numbers_problem(commit, rows, seeds, n_rows)
    if problem is not None:
        return [problem], False
    found = []
    ok = pc.equal(table["status"], manifest.OK)
    status = set(pc.unique(table["status"]).to_pylist()) - {manifest.OK, manifest.BAD_READ}
    if status:
        found.append(f"status {min(status)!r:.40}")
    if pc.any(pc.equal(table["view_crc32"].is_null(), ok)).as_py():
        found.append("view_crc32 is empty where status is ok, or the other way round")
    if len({part.tobytes() for part in np.split(np.asarray(ok), len(commit.seeds))}) > 1:
        found.append("its seeds list different rows as ok")  # a patch is read once for all of them
    for name in ("slide_id", "split"):
        other = set(pc.unique(table[name]).to_pylist()) - {row[name]}
        if other:
            found.append(f"{name} {min(other)!r:.40}, expected {row[name]!r}")
    if patches is not None:
        for name in ("x_px0", "y_px0", "tissue"):
            if not np.array_equal(table[name].to_numpy(), getattr(patches, name)[rows]):
                found.append(f"{name} differs from that of the patches")
    return found, True


def _numbers_problem(
    commit: manifest.Commit, rows: npt.NDArray[np.int32], seeds: npt.NDArray[np.int16], n_rows: int
) -> str | None:
    block = features.block_range(n_rows, commit.block) if n_rows else range(0)
    if not block or not len(rows):
        return "is of a block that the slide does not have, or empty"
    if rows.min() < block.start or rows.max() >= block.stop:
        return f"lists rows {rows.min()}-{rows.max()}, the block has {block.start}-{block.stop - 1}"
    listed = sorted(set(seeds.tolist()))
    if listed != list(commit.seeds):
        return f"lists seeds {listed}, its name says {list(commit.seeds)}"
    order = seeds.astype(np.int64) * (1 << 32) + rows
    if (np.diff(order) <= 0).any():
        return "rows are not in order of seed, then row, each once"
    of_seed = rows.reshape(len(listed), -1) if len(rows) % len(listed) == 0 else None
    if of_seed is None or (of_seed != of_seed[0]).any():
        return "its seeds list different rows"
    return None


def usable_slides(store: StoreLike, patch: Patch | None = None) -> dict[str, dict[str, Any]]:
    """The rows of the slides table that have patches, by slide id.

    Raises
    ------
    CorruptStore
        When the table breaks a promise, a tile is in two splits, or a slide that has commit records is not listed.
    """
    rows = manifest.read_slides(store)
    for slide_id, problem in slides_problems(rows, patch):
        raise _refused(store, layout.SLIDES, problem if slide_id is None else f"slide {slide_id}: {problem}")
    usable = {row["slide_id"]: row for row in rows if row["status"] == manifest.OK}
    if patch is not None and patch.grid == tiles.GRID:
        for slide_id, problem in tiles_in_two_splits(store, usable.values()):
            raise _refused(store, layout.SLIDES, f"group {slide_id}: {problem}")
    for name in sorted(entries(store, layout.VIEWS)):
        if name not in usable and next(manifest.commits(store, name), None) is not None:
            problem = f"does not list slide {name} as usable, but it has commit records"
            raise _refused(store, layout.SLIDES, problem)
    return usable


def read_records(
    store: StoreLike,
    row: Mapping[str, Any],
    patch: Patch | None = None,
    columns: Sequence[str] = (),
) -> Iterator[tuple[manifest.Commit, pa.Table]]:
    """The commit records of a usable slide with the columns `CHECKED` and `columns`.

    Raises
    ------
    CorruptStore
        When patches or a record break a promise.
    """
    slide_id = row["slide_id"]
    patches: manifest.Patches | None = None
    seen: dict[int, set[int]] = {}
    for commit in manifest.commits(store, slide_id):
        if patches is None:
            patches = manifest.read_patches(store, slide_id)
            for problem in patches_problems(patches, row, patch):
                raise _refused(store, layout.patches_file(slide_id), problem)
        table = commit.read([*CHECKED, *columns])
        problems, _ = record_problems(commit, table, row, len(patches), patches)
        again = seen.setdefault(commit.block, set()) & set(commit.seeds)
        seen[commit.block] |= set(commit.seeds)
        if again:
            problems.append("lists views that another record lists too")
        for problem in problems:
            raise _refused(store, commit.file, problem)
        yield commit, table


def listed_records(store: StoreLike, row: Mapping[str, Any], index: Index) -> list[Record]:
    """The commit records of a usable slide as the index has them, unread.

    Raises
    ------
    CorruptStore
        When two list one view, or one is of a block or of rows that the slide does not have.
    """
    found = list(index.of_slide.get(row["slide_id"], ()))
    seen: dict[int, set[int]] = {}
    for record in found:
        commit = record.commit
        if seen.setdefault(commit.block, set()) & set(commit.seeds):
            raise _refused(store, commit.file, "lists views that another record lists too")
        seen[commit.block] |= set(commit.seeds)
        block = features.block_range(row["n_patches"], commit.block)
        if not len(record.rows) or record.rows[0] < block.start or record.rows[-1] >= block.stop:
            problem = f"has rows for {commit.file} that are not of its block"
            raise _refused(store, layout.INDEX, f"{problem}; {manifest.UNLIKE_INDEX}")
    return found


class Promises:
    """What a store that is opened by its index has to prove when a commit record is read: all that `read_records` asks.

    Parameters
    ----------
    store
        With teacher features.
    """

    columns = tuple(dict.fromkeys((*CHECKED, *CLAIMED)))
    """Those that `require` takes."""

    def __init__(self, store: StoreLike) -> None:
        self._store = store
        self._slide = functools.lru_cache(_OPEN_SLIDES)(self._open_slide)

    @functools.cached_property
    def _stored(self) -> CompleteRecipe:
        return load_complete(self._store)

    @functools.cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        return {row["slide_id"]: row for row in manifest.read_slides(self._store)}

    def _open_slide(self, slide_id: str, n_seeds: int) -> manifest.Patches:
        """The patches of a slide, whose arrays are proved to belong to them."""
        patches = manifest.read_patches(self._store, slide_id)
        for problem in patches_problems(patches, self._rows[slide_id], self._stored.patch):
            raise _refused(self._store, layout.patches_file(slide_id), problem)
        features.require_slide(self._store, slide_id, patches.coords, n_seeds, self._stored.teacher.dim)
        return patches

    def require(self, commit: manifest.Commit, table: pa.Table) -> None:
        """Raise CorruptStore when a record or its slide breaks a promise, or is not what the index said.

        Parameters
        ----------
        table
            With `columns`.
        """
        patches = self._slide(commit.slide_id, commit.seeds.stop)
        problems, _ = record_problems(commit, table, self._rows[commit.slide_id], len(patches), patches)
        for problem in problems:
            raise _refused(self._store, commit.file, problem)
        require_claimed(commit, table)


def _refused(store: StoreLike, file: str, problem: str) -> CorruptStore:
    return CorruptStore(f"{store}/{file}: {problem}; `g2l store verify {store}` names all that is wrong")
