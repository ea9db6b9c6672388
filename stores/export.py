"""``store export``: a copy for others, without names, or smaller, or both.

Everything is written into a folder beside the target and looked through before it takes the target's name.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from zarr.codecs import BloscCodec, ZstdCodec

from stores import compact, features, files, manifest, pixels, recipe
from stores.arrays import create_array, flush_chunk
from stores.copying import copy_file, staged
from stores.errors import CorruptStore, OptionError
from stores.findings import Progress
from stores.location import StoreLike
from stores.pseudonyms import Pseudonyms, originals, require_none
from stores.share import Shared, Source, finish

KINDS = ("lossless", "int8")
# what was asked for decides; everything else in the options may hold a path or an id
_OPTIONS = {
    "tile": ("mpp", "patch", "min_tissue", "max_patches", "val"),
    "extract-teacher": ("seeds", "pixels", "dtype", "teacher_licence"),
}
_NEIGHBOURS, _SAMPLE = 10, 2000


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is asked of an export."""

    compact: str | None = None
    """``lossless``, ``int8`` or None."""
    pseudonyms: Pseudonyms | None = None
    keep_columns: tuple[str, ...] = ()
    """The user's own columns that may leave under pseudonyms."""
    pixels: bool = True


@dataclass(slots=True)
class Exported:
    """What an export made."""

    slides: int = 0
    patches: int = 0
    files: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    compact: dict[str, Any] | None = None
    """The measured error of an int8 copy."""
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Pseudonym by slide id; for the lab itself."""


def export(
    store: StoreLike,
    out: Path,
    options: ExportOptions,
    start: Callable[[int], None],
    progress: Progress,
) -> Exported:
    """Write a copy of a store.

    Raises
    ------
    OptionError
        When neither is asked for, a column is unknown, or the store is compact already.
    CorruptStore
        When a committed row has no finite features.
    StoreError
        When an original name would leave; nothing is exported then.
    """
    source = Source(store)
    stored, rows = source.recipe, list(source.rows.values())
    if options.compact is None and options.pseudonyms is None:
        raise OptionError("export: give --pseudonymise KEYFILE, --compact lossless or int8, or both")
    if options.compact is not None and stored.compact is not None:
        raise OptionError(
            f"--compact {options.compact}: {store} is a compact copy already; export the original"
        )
    own = sorted({name for row in rows for name in row} - set(manifest.SLIDES_SCHEMA.names))
    unknown = sorted(set(options.keep_columns) - set(own))
    if unknown:
        raise OptionError(f"--keep-column {unknown[0]}: no such column; there are {', '.join(own) or 'none'}")
    result = Exported(left_out=[f"{store}/{name}" for name in source.unknown])
    secret = options.pseudonyms
    if secret is not None:
        stored = _without_path(stored, result)
        rows = [row for row in rows if row["status"] == manifest.OK]
        if len(rows) < len(source.rows):
            result.notes.append(
                f"{len(source.rows) - len(rows)} unusable slides are left out, with their reasons"
            )
        if dropped := sorted(set(own) - set(options.keep_columns)):
            result.notes.append(f"columns left out: {', '.join(dropped)}; --keep-column keeps one")
    request: dict[str, Any] = {"command": "export", "store": str(store), "recipe": source.recipe.digest()}
    request |= {"compact": options.compact, "key": secret.key_id if secret else None}
    request |= {"keep_columns": ",".join(sorted(options.keep_columns)), "pixels": options.pixels}
    shared = Shared()
    start(len(rows))
    with staged(out, request) as stage:
        error = _Error(sum(row["n_patches"] for row in rows))
        new_rows = []
        for row in rows:
            slide_id = row["slide_id"]
            name = secret.of("slide", slide_id) if secret else slide_id
            if name in result.names.values():
                raise CorruptStore(f"slide {slide_id}: two slides with one pseudonym; use another key")
            result.names[slide_id] = name
            _copy_slide(source, slide_id, name, stage, options, error)
            new_rows.append(secret.row(row, options.keep_columns) if secret else row)
            progress(1, slide_id)
        for group in (features.ROOT, *([pixels.ROOT] if options.pixels else [])):
            if f"{group}/zarr.json" in source.listed:
                copy_file(store, f"{group}/zarr.json", source.listed[f"{group}/zarr.json"], stage)
        if options.compact == "int8":
            result.compact = {"kind": "int8", **error.figures()}
            stored = dataclasses.replace(stored, compact=result.compact)
        _write_options(store, stage, options)
        finish(stage, stored, new_rows, shared)
        if secret is not None:
            require_none(stage, originals(source.rows.values()))
        result.slides, result.patches = shared.slides, shared.patches
        sizes = [path.stat().st_size for path in stage.rglob("*") if path.is_file()]
        result.files, result.bytes = len(sizes) - 1, sum(sizes)  # less the request of the staging folder
    return result


def _without_path(stored: recipe.Recipe, result: Exported) -> recipe.Recipe:
    teacher = stored.teacher
    if teacher is None or teacher.name.startswith("hf-hub:") or not re.search(r"[/\\]", teacher.name):
        return stored
    name = f"local-{teacher.weights_sha256[:12]}"
    result.notes.append(f"the teacher is named by a path; it leaves as {name}, which makes it another recipe")
    return dataclasses.replace(stored, teacher=dataclasses.replace(teacher, name=name))


def _write_options(store: StoreLike, stage: Path, options: ExportOptions) -> None:
    secret = options.pseudonyms
    for command, allowed in _OPTIONS.items():
        given = files.read_options(store, command)
        if given:
            kept = {name: value for name, value in given.items() if secret is None or name in allowed}
            files.write_json(stage / "options" / f"{command}.json", kept)
    about = {"compact": options.compact, "pseudonymised": secret is not None}
    about["key_id"] = secret.key_id if secret else None
    files.write_json(stage / "options" / "export.json", about)


def _copy_slide(
    source: Source, slide_id: str, name: str, stage: Path, options: ExportOptions, error: "_Error"
) -> None:
    renamed = name != slide_id
    leaves = ("features/", "scales/", "standard/", "zarr.json")  # made anew in a compact copy
    arrays = tuple(features.array_name(slide_id, leaf) for leaf in leaves)
    for file in source.files.get(slide_id, ()):
        kind = file.split("/")[0]
        if kind == "pixels.zarr" and not options.pixels:
            continue
        if kind == "pictures" and options.pseudonyms is not None:
            continue  # a thumbnail may show what is written on the glass
        if (file.startswith("manifest/views/") and renamed) or (options.compact and file.startswith(arrays)):
            continue
        parts = [name if p == slide_id else p for p in file.split("/")]
        target = "/".join(parts).replace(f"/{slide_id}.", f"/{name}.") if renamed else file
        copy_file(source.store, file, source.listed[file], stage, target)
    if renamed:
        for commit in manifest.commits(source.store, slide_id):
            table = commit.read()
            at = table.column_names.index("slide_id")
            table = table.set_column(at, "slide_id", pa.array([name] * table.num_rows, pa.string()))
            manifest.write_commit(stage, name, commit.block, commit.seeds, table)
    if options.compact and any(file.startswith(arrays) for file in source.files.get(slide_id, ())):
        _write_compact(source, slide_id, name, stage, options.compact, error)


def _write_compact(source: Source, slide_id: str, name: str, stage: Path, kind: str, error: "_Error") -> None:
    opened = features.open_features(source.store, slide_id)
    committed = _committed(source.store, slide_id)
    shape, chunks = opened.array.shape, opened.array.chunks
    leaf = {part: features.array_name(name, part) for part in ("features", "scales", "standard")}
    if kind == "lossless":
        blosc = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=2)
        array = create_array(stage, leaf["features"], shape, chunks, "float16", math.nan, blosc)
        for seed, block, _ in committed:
            rows = features.block_range(opened.n_rows, block)
            array[seed, rows.start : rows.stop] = opened.read_block(seed, block)
            flush_chunk(stage, leaf["features"], (seed, block, 0))
        return
    running = features.RunningStats()
    for seed, block, ok in committed:
        wide = _finite(opened, seed, block, ok).astype(np.float64)
        if len(wide):
            running.add(len(wide), wide.mean(axis=0), wide.var(axis=0))
    zero = np.zeros(opened.dim)
    mean, std = (running.mean, np.sqrt(running.variance)) if running.count else (zero, zero)
    standard = np.stack([mean, std]).astype(np.float32)
    stored = create_array(stage, leaf["standard"], standard.shape, standard.shape, "float32", math.nan)
    stored[:] = standard
    flush_chunk(stage, leaf["standard"], (0, 0))
    scales = create_array(stage, leaf["scales"], shape[:2], chunks[:2], "float32", math.nan)
    array = create_array(
        stage, leaf["features"], shape, chunks, "int8", compact.ABSENT, ZstdCodec(level=3, checksum=False)
    )
    for seed, block, ok in committed:
        rows = features.block_range(opened.n_rows, block)
        values = opened.read_block(seed, block)
        small, scale = compact.quantise(values, standard)
        array[seed, rows.start : rows.stop] = small
        scales[seed, rows.start : rows.stop] = scale
        flush_chunk(stage, leaf["features"], (seed, block, 0))
        flush_chunk(stage, leaf["scales"], (seed, block))
        rebuilt = compact.dequantise(small, scale, standard)
        error.add(seed, values[ok - rows.start], rebuilt[ok - rows.start])


def _committed(store: StoreLike, slide_id: str) -> list[tuple[int, int, npt.NDArray[np.int32]]]:
    """(seed, block, rows that have a feature) of all that is committed, sorted."""
    found = []
    for commit in manifest.commits(store, slide_id):
        table = commit.read(["row", "seed", "status"])
        found += [(seed, commit.block, manifest.ok_rows(table, seed)) for seed in commit.seeds]
    return sorted(found, key=lambda item: item[:2])


def _finite(
    opened: features.SlideFeatures, seed: int, block: int, ok: npt.NDArray[np.int32]
) -> npt.NDArray[np.float16]:
    start = features.block_range(opened.n_rows, block).start
    values = opened.read_block(seed, block)[ok - start]
    return features.require_finite(values, f"slide {opened.slide_id} seed {seed} block {block}")


class _Error:
    """What the quantisation costs: over all rows, and the neighbours of a sample of the centre crops."""

    def __init__(self, n_patches: int) -> None:
        self._every = max(1, math.ceil(n_patches / _SAMPLE))
        self._count, self._sum, self._max, self._seen = 0, 0.0, 0.0, 0
        self._sample: list[tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]] = []

    def add(self, seed: int, values: npt.NDArray[np.float16], rebuilt: npt.NDArray[np.float16]) -> None:
        """Take in committed rows, (rows, dim) each."""
        if not len(values):
            return
        error = compact.relative_error(values, rebuilt)
        self._count += len(error)
        self._sum += float(error.sum())
        self._max = max(self._max, float(error.max()))
        if seed == 0:
            take = np.flatnonzero((np.arange(len(values)) + self._seen) % self._every == 0)
            self._sample.append((values[take], rebuilt[take]))
            self._seen += len(values)

    def figures(self) -> dict[str, Any]:
        """Rounded, as they stand in the recipe."""
        found: dict[str, Any] = {
            "rows": self._count,
            "relative_error": round(self._sum / max(self._count, 1), 6),
            "max_relative_error": round(self._max, 6),
        }
        if self._sample:
            before, after = (np.concatenate(part) for part in zip(*self._sample, strict=True))
            if len(before) > _NEIGHBOURS:
                found |= {
                    "nn10_overlap": round(neighbour_overlap(before, after), 4),
                    "nn10_rows": len(before),
                }
        return found


def neighbour_overlap(before: npt.NDArray[np.float16], after: npt.NDArray[np.float16]) -> float:
    """Mean share of the 10 nearest neighbours by cosine that stay the same, of (rows, dim) features."""
    old, new = _neighbours(before), _neighbours(after)
    return float(np.mean([len(set(a) & set(b)) / _NEIGHBOURS for a, b in zip(old, new, strict=True)]))


def _neighbours(values: npt.NDArray[np.float16]) -> Iterable[list[int]]:
    wide = values.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    cosine = wide @ wide.T
    np.fill_diagonal(cosine, -2)
    nearest: list[list[int]] = np.argpartition(-cosine, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS].tolist()
    return nearest
