"""Arrays in few large files, and back: chunks are moved between files of their own and shards, and decoded nowhere.

A packed copy of a store has the same recipe, values, checksums of chunks and commit records. Only where the bytes of a
chunk lie differs, and the metadata of each array say where (`stores.format.shards`).
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from stores.errors import CorruptStore
from stores.format import chunks, layout, shards
from stores.format.metadata import ArraySpec, loose, packed, parse_metadata
from stores.io import files
from stores.io.files import parse_json
from stores.io.location import StoreLike, read_file
from stores.io.staging import copy_file

PACKED, LOOSE = "packed", "loose"
_WHOLE = ("coords", "standard")
"""Arrays of one chunk whatever the slide."""


def write_arrays(
    store: StoreLike, listing: Mapping[str, int], names: Iterable[str], stage: Path, form: str
) -> None:
    """Write arrays of a slide in another form; those that have it already are copied.

    Parameters
    ----------
    listing
        Bytes of each file of the store.
    names
        Files of arrays and groups below ``features.zarr`` and ``pixels.zarr``.
    form
        `PACKED` or `LOOSE`.

    Raises
    ------
    CorruptStore
        When a chunk or an index is damaged, or a file is outside of its array: what is wrong is not packed.
    """
    of_array: dict[str, list[str]] = {}
    for name in sorted(names):
        array = layout.array_of(name)
        if array is None or array.rpartition("/")[2] in _WHOLE:
            copy_file(store, name, listing[name], stage)
        else:
            of_array.setdefault(array, []).append(name)
    for array, its in of_array.items():
        raw = read_file(store, layout.metadata_file(array), layout.MAX_METADATA_BYTES)
        if raw is None:
            raise CorruptStore(f"{store}/{layout.metadata_file(array)}: is missing, and there are chunks")
        spec = parse_metadata(raw, f"{store}/{array}")
        if (spec.shard is not None) == (form == PACKED):
            for name in its:
                copy_file(store, name, listing[name], stage)
        elif form == PACKED:
            _pack(store, array, spec, raw, its, stage)
        else:
            _unpack(store, listing, array, spec, raw, its, stage)


def _indices(
    store: StoreLike, names: Iterable[str], grid: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(file, index) of the chunk files of an array; CorruptStore for one outside of the grid."""
    for name in names:
        chunk = layout.parse_chunk(name)
        if chunk is None:
            continue
        if len(chunk[1]) != len(grid) or any(i >= n for i, n in zip(chunk[1], grid, strict=True)):
            raise CorruptStore(
                f"{store}/{name}: is outside of the array's {list(grid)} chunks; `g2l store verify` names all of them"
            )
        yield name, chunk[1]


def _grid(spec: ArraySpec, sides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.ceil(n / side) for n, side in zip(spec.shape, sides, strict=True))


def _write_metadata(stage: Path, array: str, value: Mapping[str, object]) -> None:
    files.write_text(stage / layout.metadata_file(array), json.dumps(value, indent=2))  # as Zarr writes them


def _pack(store: StoreLike, array: str, spec: ArraySpec, raw: bytes, names: list[str], stage: Path) -> None:
    there = {index for _, index in _indices(store, names, _grid(spec, spec.chunks))}
    about = packed(parse_json(raw.decode()), shards.shard_sides(spec))
    of_copy = parse_metadata(json.dumps(about).encode(), array)
    for shard in itertools.product(*map(range, _grid(spec, of_copy.shard or ()))):
        path = stage / layout.chunk_file(array, shard)
        inside = [
            tuple(s * n + i for s, n, i in zip(shard, of_copy.per_shard, at, strict=True))
            for at in itertools.product(*map(range, of_copy.per_shard))
        ]
        if there.isdisjoint(inside) or path.is_file():
            continue
        entries = shards.empty_index(of_copy)
        with files.replacing(path) as partial, partial.open("wb") as file:
            file.write(bytes(shards.index_bytes(of_copy)))
            for at, index in enumerate(inside):
                stored = chunks.read_stored(store, array, spec, index) if index in there else None
                if stored is not None:
                    entries[at] = file.tell(), len(stored)
                    file.write(stored)
            file.seek(0)
            file.write(shards.make_index(entries))
    _write_metadata(stage, array, about)


def _unpack(
    store: StoreLike,
    listing: Mapping[str, int],
    array: str,
    spec: ArraySpec,
    raw: bytes,
    names: list[str],
    stage: Path,
) -> None:
    for name, shard in _indices(store, names, _grid(spec, spec.shard or ())):
        entries = shards.read_index(store, name, spec)
        if entries is None:
            raise CorruptStore(f"{store}/{name}: listed, but not there")
        fault = shards.shard_fault(spec, shard, entries, listing[name])
        if fault is not None:
            raise CorruptStore(f"{store}/{name}: {fault}")
        for index, _, _ in shards.chunks_in(spec, shard, entries):
            path = stage / layout.chunk_file(array, index)
            stored = None if path.is_file() else chunks.read_stored(store, array, spec, index)
            if stored is not None:
                files.write_bytes(path, stored)
    _write_metadata(stage, array, loose(parse_json(raw.decode())))
