"""``store merge``: the union of stores by slide.

A slide's group and its manifest rows are self-contained, so files are copied; only the slides table is written anew.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stores import features, files, layout, manifest, pixels, recipe
from stores.copying import copy_file, staged
from stores.errors import OptionError, RecipeMismatch, StoreError
from stores.findings import Progress
from stores.location import StoreLike


@dataclass(slots=True)
class Shared:
    """What a merge or subset made."""

    slides: int = 0
    patches: int = 0
    files: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    """Files that no store has: they were not copied."""


class Source:
    """A store as a merge or subset reads it."""

    def __init__(self, store: StoreLike) -> None:
        self.store = store
        self.recipe = recipe.load(store)
        self.rows = {row["slide_id"]: row for row in manifest.read_slides(store)}
        self.listed = layout.list_files(store)
        self.files = layout.by_slide(self.listed)
        self.unknown = sorted(name for name in self.listed if layout.classify(name) is None)

    def copy(self, names: Iterable[str], stage: Path, result: Shared) -> None:
        """Copy files as they are."""
        for name in names:
            copy_file(self.store, name, self.listed[name], stage)
            result.files += 1
            result.bytes += self.listed[name]


@dataclass(slots=True)
class _Choice:
    """Where the files of a slide of the union come from."""

    row: dict[str, Any]
    source: Source
    pixels: Source | None = None
    """Another store, when `source` keeps no pixels of the slide."""


def merge(
    stores: Sequence[StoreLike],
    out: Path,
    allow_duplicates: bool,
    start: Callable[[int], None],
    progress: Progress,
) -> Shared:
    """The union of stores by slide.

    A slide of several stores is taken once when they agree; one that lacks views or pixels gives way to one that has
    them, and a slide that failed to one that is usable.

    Raises
    ------
    RecipeMismatch
        When the recipes differ.
    StoreError
        When stores contradict each other: names the slide, what differs, and both values.
    """
    if len(stores) < 2:
        raise OptionError("merge: give two stores or more")
    sources = [Source(store) for store in stores]
    for other in sources[1:]:
        _require_same_recipe(sources[0], other)
    choices = {name: _choose(name, sources) for name in sorted({n for s in sources for n in s.rows})}
    _require_one_split(choices)
    if not allow_duplicates:
        _require_distinct(choices)
    result = Shared(left_out=[f"{s.store}/{name}" for s in sources for name in s.unknown])
    start(len(choices))
    about = [{"recipe": s.recipe.digest(), "slides": len(s.rows)} for s in sources]
    with staged(out, {"command": "merge", "stores": [str(store) for store in stores]}) as stage:
        for name, choice in choices.items():
            choice.source.copy(choice.source.files.get(name, ()), stage, result)
            if choice.pixels is not None:
                choice.pixels.copy(_pixel_files(choice.pixels, name), stage, result)
            progress(1, name)
        groups = {name for s in sources for name in s.listed if name.count("/") == 1 and ".zarr/" in name}
        for name in sorted(groups & {f"{root}/zarr.json" for root in (features.ROOT, pixels.ROOT)}):
            next(s for s in sources if name in s.listed).copy([name], stage, result)
        sources[0].copy(options_files(sources[0]), stage, result)
        files.write_json(stage / "options" / "merge.json", {"sources": about})
        finish(stage, sources[0].recipe, [choice.row for choice in choices.values()], result)
    return result


def finish(stage: Path, stored: recipe.Recipe, rows: list[dict[str, Any]], result: Shared) -> None:
    """Write slides table and recipe of a new store."""
    manifest.write_slides(stage, rows)
    recipe.save(stage, stored)
    result.slides = len(rows)
    result.patches = sum(row["n_patches"] for row in rows)


def options_files(source: Source) -> list[str]:
    """The options that the store was made with; those of copies are not passed on."""
    return sorted(
        name for name in source.listed if name in ("options/tile.json", "options/extract-teacher.json")
    )


def _pixel_files(source: Source, slide_id: str) -> list[str]:
    return [name for name in source.files.get(slide_id, ()) if name.startswith(f"{pixels.ROOT}/")]


def _require_same_recipe(first: Source, other: Source) -> None:
    found = recipe.differences(first.recipe, other.recipe)
    if found:
        name, a, b = found[0]
        more = f" (and {len(found) - 1} more: {', '.join(n for n, _, _ in found[1:])})" if found[1:] else ""
        raise RecipeMismatch(
            f"recipe.{name}: {first.store} has {a!r}, {other.store} has {b!r}{more}; "
            "only stores of one recipe can be merged"
        )


def _choose(slide_id: str, sources: Sequence[Source]) -> _Choice:
    having = [s for s in sources if slide_id in s.rows]
    usable = [s for s in having if s.rows[slide_id]["status"] == manifest.OK]
    if not usable:
        return _Choice(having[0].rows[slide_id], having[0])
    best, row = usable[0], dict(usable[0].rows[slide_id])
    for other in usable[1:]:
        row = _joined_row(slide_id, best, row, other)
        best = _fuller(slide_id, best, other)
    keeping = [s for s in usable if _pixel_files(s, slide_id)]
    for a, b in itertools.pairwise(keeping):
        _require_same_pixels(slide_id, a, b)
    lacking = bool(keeping) and not _pixel_files(best, slide_id)
    return _Choice(row, best, keeping[0] if lacking else None)


def _conflict(slide_id: str, a: Source, b: Source, what: str) -> StoreError:
    return StoreError(
        f"slide {slide_id}: {a.store} and {b.store} differ: {what}; leave it out of one of them with "
        "`g2l store subset`"
    )


def _joined_row(slide_id: str, a: Source, row: dict[str, Any], b: Source) -> dict[str, Any]:
    joined = dict(row)
    for name, value in b.rows[slide_id].items():
        old = row.get(name)
        if old is None:
            joined[name] = value
        elif value is not None and value != old:
            raise _conflict(slide_id, a, b, f"{name} is {old!r:.80} and {value!r:.80}")
    return joined


def _views_of(source: Source, slide_id: str) -> pa.Table:
    parts = [commit.read() for commit in manifest.commits(source.store, slide_id)]
    table = pa.concat_tables([manifest.VIEWS_SCHEMA.empty_table(), *parts])
    return table.sort_by([("seed", "ascending"), ("row", "ascending")])


def _fuller(slide_id: str, a: Source, b: Source) -> Source:
    """The one that has all that the other has; StoreError when neither does, or what both have is not the same."""
    patches = [manifest.read_patches(s.store, slide_id) for s in (a, b)]
    for name in manifest.PATCHES_SCHEMA.names:
        if not np.array_equal(getattr(patches[0], name), getattr(patches[1], name)):
            raise _conflict(slide_id, a, b, f"patches ({name})")
    tables = [_views_of(s, slide_id) for s in (a, b)]
    less, more = (a, b) if tables[0].num_rows < tables[1].num_rows else (b, a)
    if less is b:
        tables.reverse()
    small, large = [t["seed"].to_numpy().astype(np.int64) << 32 | t["row"].to_numpy() for t in tables]
    at = np.searchsorted(large, small)
    if len(small) and (at.max(initial=0) >= len(large) or not np.array_equal(large[at], small)):
        raise _conflict(slide_id, a, b, "each has views that the other lacks; finish the extraction of one")
    both = tables[1].take(pa.array(at))
    for name in manifest.VIEWS_SCHEMA.names:
        if not both[name].combine_chunks().equals(tables[0][name].combine_chunks()):
            row = _first_difference(both[name], tables[0][name])
            seed, patch = tables[0]["seed"][row].as_py(), tables[0]["row"][row].as_py()
            raise _conflict(slide_id, a, b, f"{name} of seed {seed} row {patch}")
    _require_same_features(slide_id, less, more, tables[0], a, b)
    return a if tables[0].num_rows == tables[1].num_rows else more


def _first_difference(a: pa.ChunkedArray, b: pa.ChunkedArray) -> int:
    pairs = zip(a.to_pylist(), b.to_pylist(), strict=True)
    return next(i for i, (x, y) in enumerate(pairs) if x != y)


def _require_same_features(
    slide_id: str, less: Source, more: Source, table: pa.Table, a: Source, b: Source
) -> None:
    if not table.num_rows:
        return
    opened = [features.open_features(s.store, slide_id) for s in (less, more)]
    if opened[0].dim != opened[1].dim or opened[0].n_rows != opened[1].n_rows:
        raise _conflict(slide_id, a, b, "shape of the features")
    for seed in sorted(set(table["seed"].to_pylist())):
        rows = manifest.ok_rows(table, seed)
        for block in range(features.n_blocks(opened[0].n_rows)):
            span = features.block_range(opened[0].n_rows, block)
            inside = rows[(rows >= span.start) & (rows < span.stop)] - span.start
            if not len(inside):
                continue
            x, y = (o.read_block(seed, block)[inside] for o in opened)
            if x.tobytes() != y.tobytes():
                first = span.start + int(inside[np.flatnonzero((x != y).any(axis=1))[0]])
                raise _conflict(slide_id, a, b, f"features of seed {seed} row {first}")


def _require_same_pixels(slide_id: str, a: Source, b: Source) -> None:
    x, y = (pixels.open_pixels(s.store, slide_id) for s in (a, b))
    if x.array.shape != y.array.shape:
        raise _conflict(slide_id, a, b, f"shape of the pixels, {x.array.shape} and {y.array.shape}")
    for index in range(-(-x.array.shape[0] // x.chunk_rows)):
        start = index * x.chunk_rows
        if not np.array_equal(x.read_chunk(index), y.array[start : start + x.chunk_rows]):
            raise _conflict(slide_id, a, b, f"pixels of rows {start}-{start + x.chunk_rows - 1}")


def _require_one_split(choices: dict[str, _Choice]) -> None:
    """A patient in two splits would leak from training into validation."""
    seen: dict[str, tuple[str, str]] = {}
    for slide_id, choice in choices.items():
        row = choice.row
        if row["status"] != manifest.OK:
            continue
        split, other = seen.setdefault(row["patient_id"], (row["split"], slide_id))
        if split != row["split"]:
            raise StoreError(
                f"patient {row['patient_id']}: slide {other} is in {split}, slide {slide_id} in {row['split']}; a "
                "patient in two splits leaks into validation: leave one out with `g2l store subset`, or tile again"
            )


def _require_distinct(choices: dict[str, _Choice]) -> None:
    seen: dict[str, str] = {}
    for slide_id, choice in choices.items():
        fingerprint = choice.row["fingerprint"]
        if choice.row["status"] == manifest.OK and fingerprint:
            other = seen.setdefault(fingerprint, slide_id)
            if other != slide_id:
                raise StoreError(
                    f"slides {other} and {slide_id}: the same file under two names (fingerprint {fingerprint:.16}); "
                    "leave one out with `g2l store subset`, or take both with --allow-duplicates"
                )
