"""One slide of several stores: what more than one store has must be equal, what only one has is added.

Values are compared, not files; equal bytes are only the quick way. A difference is an error that names the slide, the
place and both values. No value is ever preferred to another.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stores.combine.copy_slide import SEED_AXIS, Choice, Key, Source, from_one
from stores.errors import StoreError
from stores.format import attention, features, layout, manifest, pixels, recipe, tokens
from stores.io.location import read_file

_RANK = {manifest.OK: 0, "no_tissue": 1, "failed": 2}
_OF_PEOPLE = ("patient_id", "split")

Views = dict[Key, pa.Table]
"""Rows of each (block, seed), sorted by row."""


def choose(slide_id: str, sources: Sequence[Source]) -> Choice:
    """Where the parts of a slide come from.

    Raises
    ------
    StoreError
        When two stores contradict each other.
    """
    having = sorted(
        (s for s in sources if slide_id in s.rows), key=lambda s: _RANK.get(s.rows[slide_id]["status"], 3)
    )
    if len(having) == 1:
        return from_one(having[0], slide_id)
    row = _join_rows(slide_id, having)
    usable = [s for s in having if s.rows[slide_id]["status"] == manifest.OK]
    if not usable:
        return Choice(row, having[0])
    for other in usable[1:]:
        _require_same_patches(slide_id, usable[0], other)
    found = {source: _views_of(source, slide_id) for source in usable}
    views = _join_views(slide_id, found)
    return Choice(row, usable[0], views, _join_pixels(slide_id, found, views))


def _conflict(slide_id: str, what: str, a: Source, x: object, b: Source, y: object) -> NoReturn:
    raise StoreError(
        f"slide {slide_id}: {what} is {x!r:.80} in {a} and {y!r:.80} in {b}; "
        "leave the slide out of one of them with `g2l store subset`"
    )


def _join_rows(slide_id: str, having: Sequence[Source]) -> dict[str, Any]:
    """The row of the best status, with empty columns filled from the others.

    Where a slide failed, its row tells only the patient, the split and the user's own columns.
    """
    best = having[0].rows[slide_id]["status"]
    row: dict[str, Any] = {}
    given: dict[str, Source] = {}
    for source in having:
        mine = source.rows[slide_id]
        for name, value in mine.items():
            measured = name in manifest.SLIDES_SCHEMA.names or name in manifest.ADDED
            counts = mine["status"] == best or name in _OF_PEOPLE or not measured
            if not counts or (name == "reason" and name in row):
                continue
            if row.get(name) is None:
                row[name], given[name] = value, source
            elif value is not None and value != row[name]:
                _conflict(slide_id, name, given[name], row[name], source, value)
    return row


def _require_same_patches(slide_id: str, a: Source, b: Source) -> None:
    mine, other = manifest.read_patches(a.store, slide_id), manifest.read_patches(b.store, slide_id)
    if len(mine) != len(other):
        _conflict(slide_id, "number of patches", a, len(mine), b, len(other))
    for name in manifest.PATCHES_SCHEMA.names:
        x, y = getattr(mine, name), getattr(other, name)
        if not np.array_equal(x, y):
            row = int(np.flatnonzero(x != y)[0])
            _conflict(slide_id, f"{name} of patch {row}", a, x[row].item(), b, y[row].item())
    if sorted(mine.qc) != sorted(other.qc):
        _conflict(slide_id, "QC columns of its patches", a, sorted(mine.qc), b, sorted(other.qc))
    for name, values in mine.qc.items():
        if not np.array_equal(values, other.qc[name], equal_nan=True):
            row = int(
                np.flatnonzero((values != other.qc[name]) & ~(np.isnan(values) & np.isnan(other.qc[name])))[0]
            )
            _conflict(
                slide_id, f"{name} of patch {row}", a, values[row].item(), b, other.qc[name][row].item()
            )
    if (mine.tile is None) != (other.tile is None):
        _conflict(slide_id, "tiles", a, mine.tile is not None, b, other.tile is not None)
    if mine.tile is not None and other.tile is not None:
        _require_same_tiles(slide_id, a, mine, b, other)


def _require_same_tiles(
    slide_id: str, a: Source, mine: manifest.Patches, b: Source, other: manifest.Patches
) -> None:
    """Tiles and what is known of them are equal; only the names of their files may differ."""
    names = [[n for n in found.further if n != manifest.TILE_FILE] for found in (mine, other)]
    if sorted(names[0]) != sorted(names[1]):
        _conflict(slide_id, "columns of its patches", a, sorted(names[0]), b, sorted(names[1]))
    x, y = (manifest.read_further(source.store, slide_id, names[0]) for source in (a, b))
    for name in names[0]:
        for row, (p, q) in enumerate(zip(x[name].to_pylist(), y[name].to_pylist(), strict=True)):
            if p != q:
                _conflict(slide_id, f"{name} of patch {row}", a, p, b, q)


def _views_of(source: Source, slide_id: str) -> Views:
    found: Views = {}
    for commit in {c.path: c for c in source.commits(slide_id).values()}.values():
        table = commit.read().select(manifest.VIEWS_SCHEMA.names)
        for seed in commit.seeds:
            mine = table.filter(pc.equal(table["seed"], seed)).sort_by("row")
            rows = mine["row"].to_numpy()
            if (np.diff(rows) <= 0).any() or (commit.block, seed) in found:
                raise StoreError(f"{commit.path}: lists a view of seed {seed} twice")
            found[commit.block, seed] = mine
    return found


def _join_views(slide_id: str, found: Mapping[Source, Views]) -> dict[Key, Source]:
    """The source of each (block, seed): one that has all of its rows, preferably the same for all."""
    fullest: dict[Key, list[Source]] = {}
    for source, views in found.items():
        for key, table in views.items():
            best = fullest.setdefault(key, [])
            if not best:
                best.append(source)
                continue
            other = found[best[0]][key]
            _require_same_views(slide_id, key, best[0], other, source, table)
            if table.num_rows > other.num_rows:
                best[:] = [source]
            elif table.num_rows == other.num_rows:
                best.append(source)
    order = sorted(found, key=lambda source: -sum(source in best for best in fullest.values()))
    chosen: dict[Key, Source] = {}
    for _, keys in itertools.groupby(sorted(fullest), key=lambda key: key[0]):
        of_block = {key: fullest[key] for key in keys}
        # the source with most seeds of a block comes first, so that commit records stay whole
        here = sorted(order, key=lambda source: -sum(source in best for best in of_block.values()))
        chosen |= {key: next(s for s in here if s in best) for key, best in of_block.items()}
    for a, b in itertools.pairwise(s for s in order if s in chosen.values()):
        _require_same_form(slide_id, a, b)
    return chosen


def _require_same_views(
    slide_id: str, key: Key, a: Source, of_a: pa.Table, b: Source, of_b: pa.Table
) -> None:
    block, seed = key
    x, y = of_a["row"].to_numpy(), of_b["row"].to_numpy()
    common, at_x, at_y = np.intersect1d(x, y, assume_unique=True, return_indices=True)
    if len(common) < min(len(x), len(y)):
        only = [int(np.setdiff1d(p, q)[0]) for p, q in ((x, y), (y, x))]
        _conflict(
            slide_id, f"a row of block {block} seed {seed} that the other lacks", a, only[0], b, only[1]
        )
    of_a, of_b = of_a.take(pa.array(at_x)), of_b.take(pa.array(at_y))
    for name in manifest.VIEWS_SCHEMA.names:
        if not of_a[name].combine_chunks().equals(of_b[name].combine_chunks()):
            pairs = enumerate(zip(of_a[name].to_pylist(), of_b[name].to_pylist(), strict=True))
            for i, (p, q) in pairs:
                if p != q:
                    _conflict(slide_id, f"{name} of row {common[i]} seed {seed}", a, p, b, q)
    rows = common[pc.equal(of_a["status"], manifest.OK).to_numpy()]
    _require_same_features(slide_id, key, a, b, rows)
    if a.recipe.tokens is not None and len(rows):
        _require_same_tokens(slide_id, key, (a, b), rows.astype(np.int32), a.recipe.tokens)
    if a.recipe.attention is not None and len(rows):
        _require_same_attention(slide_id, key, (a, b), rows, a.recipe.attention)


def _require_same_features(
    slide_id: str, key: Key, a: Source, b: Source, rows: npt.NDArray[np.int64]
) -> None:
    block, seed = key
    name = layout.chunk_file(layout.feature_array(slide_id, "features"), (seed, block, 0))
    same_form = not any(_differing_forms(slide_id, a, b))
    if same_form and _same_bytes(a, b, name) and not a.has(layout.feature_array(slide_id, "scales")):
        return
    opened = [features.open_features(s.store, slide_id) for s in (a, b)]
    if opened[0].spec.shape[1:] != opened[1].spec.shape[1:]:
        _conflict(slide_id, "shape of the features", a, opened[0].spec.shape[1:], b, opened[1].spec.shape[1:])
    start = features.block_range(opened[0].n_rows, block).start
    inside = rows[(rows >= start) & (rows < start + features.block_rows(opened[0].n_rows))] - start
    x, y = (o.read_block(seed, block)[inside] for o in opened)
    # bit by bit, so that NaN of a damaged store equals itself and is left to `verify`
    differ = np.argwhere(x.view(np.uint16) != y.view(np.uint16))
    if len(differ):
        i, j = differ[0]
        what = f"feature {j} of row {start + inside[i]} seed {seed}"
        _conflict(slide_id, what, a, float(x[i, j]), b, float(y[i, j]))


def _require_same_tokens(
    slide_id: str,
    key: Key,
    both: tuple[Source, Source],
    rows: npt.NDArray[np.int32],
    about: recipe.Tokens,
) -> None:
    block, seed = key
    a, b = (tokens.open_tokens(source.store, slide_id, about) for source in both)
    parts = [(layout.chunk_file("positions", (seed, block, 0)), rows)]
    for index in a.chunks_of(block):
        inside = rows[rows // a.chunk_rows == index]
        parts.append((layout.chunk_file("tokens", (seed, index, 0, 0)), inside))
    for name, inside in parts:
        if not len(inside) or _same_bytes(*both, layout.feature_array(slide_id, name)):
            continue
        read = [
            tokens.read_rows(s, s.read_chunk, s.read_positions(seed, block), inside, seed, block)
            for s in (a, b)
        ]
        for i, what in enumerate(("token", "token position")):
            x: npt.NDArray[Any] = read[0][i]
            y: npt.NDArray[Any] = read[1][i]
            differ = np.argwhere(x != y)
            if len(differ):
                at: tuple[int, ...] = tuple(differ[0].tolist())
                where = f"{what} {at[1:]} of row {inside[at[0]]} seed {seed}"
                _conflict(slide_id, where, both[0], x[at].item(), both[1], y[at].item())


def _require_same_attention(
    slide_id: str,
    key: Key,
    both: tuple[Source, Source],
    rows: npt.NDArray[np.int64],
    about: recipe.Attention,
) -> None:
    block, seed = key
    name = layout.chunk_file(layout.feature_array(slide_id, attention.LEAF), (seed, block, 0))
    if _same_bytes(*both, name):
        return
    opened = [attention.open_attention(source.store, slide_id, about) for source in both]
    x, y = (o.read_block(seed, block)[rows - o.first_row(block)] for o in opened)
    differ = np.argwhere(x.view(np.uint16) != y.view(np.uint16))
    if len(differ):
        i, j = differ[0]
        what = f"attention to patch {j} of row {rows[i]} seed {seed}"
        _conflict(slide_id, what, both[0], float(x[i, j]), both[1], float(y[i, j]))


def _same_bytes(a: Source, b: Source, name: str) -> bool:
    if name not in a.listed or a.listed[name] != b.listed.get(name):
        return False
    return read_file(a.store, name, layout.limit_bytes(name)) == read_file(
        b.store, name, layout.limit_bytes(name)
    )


def _differing_forms(slide_id: str, a: Source, b: Source) -> Iterator[tuple[str, object, object]]:
    """Arrays whose chunks do not fit into one array: their metadata differ in more than the number of seeds."""
    for leaf in SEED_AXIS:
        array = layout.feature_array(slide_id, leaf)
        forms = [s.metadata(array) if s.has(array) else {} for s in (a, b)]
        for field in sorted(set(forms[0]) | set(forms[1])):
            x, y = (form.get(field) for form in forms)
            if field == "shape" and x and y:
                x, y = x[1:], y[1:]
            if x != y:
                yield f"{field} of the array {leaf}", x, y


def _require_same_form(slide_id: str, a: Source, b: Source) -> None:
    """Raise when the features of both stores belong into one array, and do not fit into it."""
    for what, x, y in _differing_forms(slide_id, a, b):
        _conflict(slide_id, what, a, x, b, y)
    array = layout.feature_array(slide_id, "standard")
    for name in a.files[slide_id]:
        chunk = layout.parse_chunk(name)
        if chunk is not None and chunk[0] == array and not _same_bytes(a, b, name):
            _conflict(slide_id, "scale of the compact features", a, name, b, name)


def _join_pixels(
    slide_id: str, found: Mapping[Source, Views], views: Mapping[Key, Source]
) -> dict[int, Source]:
    """The source of the pixels of each block; empty when no store keeps pixels."""
    array = layout.pixel_array(slide_id)
    keeping = [source for source in found if source.has(array)]
    if not keeping:
        return {}
    for a, b in itertools.combinations(keeping, 2):
        _require_same_pixels(slide_id, a, found[a], b, found[b])
    needed = _readable(found[source][key] for key, source in views.items())
    ready = {source: _readable(found[source].values()) for source in keeping}
    chosen: dict[int, Source] = {}
    n_rows = keeping[0].metadata(array)["shape"][0]
    for block in sorted({block for block, _ in views}):
        rows = np.intersect1d(needed, features.block_range(n_rows, block))
        fit = [s for s in keeping if np.isin(rows, ready[s]).all()]
        if not fit:
            lacking = next(source for (b, _), source in views.items() if b == block)
            raise StoreError(
                f"slide {slide_id}: {keeping[0]} keeps pixels, but not of block {block}, whose views {lacking} has "
                "without pixels; leave the pixels out first with `g2l store subset --no-pixels`"
            )
        chosen[block] = next((s for s in fit if s in chosen.values()), fit[0])
    return chosen


def _readable(tables: Iterable[pa.Table]) -> npt.NDArray[np.int64]:
    """Rows that have a feature under any seed."""
    parts = [t["row"].filter(pc.equal(t["status"], manifest.OK)).to_numpy() for t in tables]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


def _require_same_pixels(slide_id: str, a: Source, of_a: Views, b: Source, of_b: Views) -> None:
    name = layout.pixel_array(slide_id)
    forms = [s.metadata(name) for s in (a, b)]
    if forms[0] != forms[1]:
        field = next(f for f in forms[0] | forms[1] if forms[0].get(f) != forms[1].get(f))
        _conflict(slide_id, f"{field} of the pixels", a, forms[0].get(field), b, forms[1].get(field))
    common = np.intersect1d(_readable(of_a.values()), _readable(of_b.values()))
    size = forms[0]["chunk_grid"]["configuration"]["chunk_shape"][0]
    opened = [pixels.open_pixels(s.store, slide_id) for s in (a, b)]
    for of_one in opened:
        of_one.require_row(int(common.max(initial=0)))
    for index in np.unique(common // size).tolist():
        if _same_bytes(a, b, layout.chunk_file(name, (index, 0, 0, 0))):
            continue
        inside = common[common // size == index] - index * size
        x, y = (o.read_chunk(index)[inside] for o in opened)
        differ = np.argwhere(x != y)
        if len(differ):
            i, *place = differ[0].tolist()
            what = f"pixel {tuple(place)} of patch {index * size + int(inside[i])}"
            at = (i, *place)
            _conflict(slide_id, what, a, int(x[at]), b, int(y[at]))
