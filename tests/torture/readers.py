"""The readers of foreign bytes, each with inputs that it accepts.

To add one, write a function that makes a `Target` in an empty folder, and enter it in `READERS`.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commands.click_options import read_config
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.embed.tiles import read_tiles
from pipeline.evaluate.bench import read_bench
from pipeline.evaluate.embeddings import load_embeddings
from pipeline.evaluate.plism import tile_subset
from pipeline.report.origin import last_date
from pipeline.runtime.options import to_json
from pipeline.runtime.resume import require_same_options
from pipeline.slides import registry
from pipeline.slides.find import find_slides
from pipeline.tile.frames import Frame
from pipeline.tile.masks import load_user_mask
from pipeline.tile.slides_csv import read_slides_csv
from pipeline.views.policy import POLICIES, load_policy
from stores.combine.subset import read_ids
from stores.errors import CorruptStore, StoreError
from stores.export.export import ExportOptions, export
from stores.format import arrays, features, layout, manifest, pixels, recipe, tokens
from stores.format.chunks import read_chunk
from stores.format.index import SUMMARY, read_index, write_index
from stores.info import store_info
from stores.io import files
from stores.verify.seal import read_checksums, seal
from stores.verify.structure import verify_structure
from tests.tools import encoder_inputs
from tests.tools.dicom import write_series
from tests.tools.slide_formats import FORMATS
from tests.tools.stores import TOKENS, make_store
from tests.torture import mutate

_EVERY = 25
"""One of so many inputs is also shown to the commands that read a whole store; they take longer."""


@dataclass(slots=True)
class Target:
    """A reader, and where it reads its input from."""

    path: Path
    seeds: Sequence[bytes]
    """Inputs that it accepts."""
    read: Callable[[], object]
    mutate: mutate.Mutate
    mend: Callable[[], None] | None = None
    """Called after an input was written: makes other files fit it."""

    def put(self, raw: bytes) -> None:
        """Write an input."""
        self.path.write_bytes(raw)
        if self.mend is not None:
            self.mend()


def _of_store(
    store: Path, name: str, change: mutate.Mutate, read: Callable[[], object], more: Sequence[bytes] = ()
) -> Target:
    """A reader of one file of a store; some inputs are also shown to ``verify`` and ``info``."""
    calls = 0

    def also_whole() -> None:
        nonlocal calls
        calls += 1
        if calls % _EVERY == 0:
            look_at(store)
        read()

    return Target(store / name, [(store / name).read_bytes(), *more], also_whole, change)


def look_at(store: Path) -> None:
    """``verify`` and ``info``; AssertionError when an exception that nobody foresaw became a finding."""
    found = verify_structure(store).findings
    unforeseen = [str(finding) for finding in found if finding.kind == "unreadable"]
    assert not unforeseen, unforeseen[0]
    assert not [f for f in found if len(str(f).splitlines()) != 1], found
    store_info(store)


def _store(folder: Path) -> Path:
    store = make_store(folder / "store", {"a": 5}, [range(2)], with_pixels=True, about=TOKENS)
    write_index(store)
    return store


def _compact(folder: Path, kind: str) -> Path:
    export(make_store(folder / "whole", {"a": 40}, [range(2)]), folder / "store", ExportOptions(compact=kind))
    return folder / "store"


def _recipe(folder: Path) -> Target:
    store = _store(folder)
    return _of_store(store, layout.RECIPE, mutate.some_recipe, lambda: recipe.load(store))


def _options(folder: Path) -> Target:
    store = _store(folder)
    name = layout.options_file("extract-teacher")
    files.write_json(store / name, {"teacher": "t", "seeds": 2, "tokens": None, "teacher_licence": "MIT"})
    return _of_store(store, name, mutate.some_json, lambda: layout.read_options(store, "extract-teacher"))


def _array(folder: Path, leaf: str, compact: str | None = None) -> Target:
    """The metadata of an array, and what a reader does with it."""
    store = _store(folder) if compact is None else _compact(folder, compact)
    name = layout.pixel_array("a") if leaf == "pixels" else layout.feature_array("a", leaf)
    return _of_store(store, layout.metadata_file(name), mutate.some_json, lambda: _read_array(store, leaf))


def _read_array(store: Path, leaf: str) -> None:
    if leaf == "pixels":
        found = pixels.open_pixels(store, "a")
        if found.spec.shape[0] > 0:
            found.read_chunk(0)
    elif leaf in tokens.LEAVES:
        opened = tokens.open_tokens(store, "a", TOKENS)
        opened.read_chunk(0, 0)
        opened.read_positions(0, 0)
    elif leaf == "coords":
        features.read_coords(store, "a")
    elif leaf == "stats":
        features.read_stats(store, "a")
    else:
        features.open_features(store, "a").read_block(0, 0)


def _chunk(folder: Path, name: str, index: tuple[int, ...], compact: str | None = None) -> Target:
    """A chunk, read by our own decoder and by way of Zarr."""
    store = _store(folder) if compact is None else _compact(folder, compact)
    spec = arrays.read_metadata(store, name)
    opened = arrays.open_checked(store, name, len(spec.shape), str(spec.dtype))

    def read() -> None:
        said: list[CorruptStore] = []
        ours = None
        try:
            ours = read_chunk(store, name, spec, index)
        except CorruptStore as error:
            said.append(error)
        region = tuple(
            slice(i * n, min((i + 1) * n, side))
            for i, n, side in zip(index, spec.chunks, spec.shape, strict=True)
        )
        theirs = None
        try:
            theirs = arrays.read_selection(opened, region, name)
        except CorruptStore as error:
            said.append(error)
        if ours is not None and theirs is not None:
            mine = ours[tuple(slice(0, n) for n in theirs.shape)]
            assert mine.tobytes() == theirs.tobytes(), "two ways of reading a chunk differ"
        if said:
            raise said[0]

    return _of_store(store, layout.chunk_file(name, index), mutate.some_chunk, read)


def _table(folder: Path, name: str, read: Callable[[Path], object]) -> Target:
    """A Parquet file of the manifest, also as other writers make it: without checksums, encodings, other pages."""
    store = _store(folder)
    raw = (store / name).read_bytes()
    table = pq.read_table(io.BytesIO(raw))
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key == SUMMARY}
    table = table.replace_schema_metadata(kept)
    forms: list[dict[str, Any]] = [
        {"compression": "none"},
        {"compression": "zstd"},
        {"compression": "snappy", "data_page_version": "2.0"},
        {"compression": "gzip", "use_dictionary": False},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "none", "row_group_size": 2, "write_statistics": False},
    ]
    more = []
    for form in forms:
        sink = io.BytesIO()
        with pq.ParquetWriter(
            sink, table.schema, **{k: v for k, v in form.items() if k != "row_group_size"}
        ) as writer:
            writer.write_table(table, row_group_size=form.get("row_group_size"))
            writer.add_key_value_metadata({manifest.CHECKSUM_KEY: b"0" * 8})
        more.append(mutate.mend_table(sink.getvalue()))
    return _of_store(store, name, mutate.some_table, lambda: read(store), more)


def _seal(folder: Path, name: str) -> Target:
    store = _store(folder)
    seal(store)

    def fitting_digest() -> None:
        import hashlib

        raw = (store / layout.CHECKSUMS).read_bytes()
        if raw[-1:] != b"!":  # one of some inputs does not fit
            (store / layout.DIGEST).write_text(f"{hashlib.sha256(raw).hexdigest()}  {layout.CHECKSUMS}\n")

    def read() -> object:
        return read_checksums(store)

    target = _of_store(store, name, mutate.some_text, read)
    target.mend = fitting_digest if name == layout.CHECKSUMS else None
    return target


def _group(folder: Path) -> Target:
    store = _store(folder)
    return _of_store(store, "features.zarr/zarr.json", mutate.some_json, lambda: look_at(store))


def _text(path: Path, seeds: Sequence[str], read: Callable[[], object]) -> Target:
    return Target(path, [seed.encode() for seed in seeds], read, mutate.some_text)


def _policy(folder: Path) -> Target:
    path = folder / "policy.yaml"
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in POLICIES["g2l"].to_json().items())
    return _text(path, [lines, "hflip_p: 0.5\n"], lambda: load_policy(str(path)))


def _config(folder: Path) -> Target:
    path = folder / "config.yaml"

    def read() -> None:
        import click

        try:
            read_config(_distill_command(), path)
        except click.BadParameter as error:
            raise StoreError(str(error)) from None

    return _text(path, ["lr: 1e-4\nsteps: 10\nslides: [a, b]\nstudent: x\ntensorboard: true\n"], read)


def _distill_command() -> Any:
    from pipeline.commands.stages import distill_command

    return distill_command


def _bench(folder: Path) -> Target:
    path = folder / "bench.yaml"
    (folder / "tiles.csv").write_text("path,label\na.png,1\n")
    text = (
        "encoders:\n  student: {encoder: e}\n  other: {embeddings: {d: x}}\n"
        "data:\n  d: {input: tiles.csv}\n"
        "tasks:\n  - {protocol: knn, data: d, k: [3]}\n  - {protocol: cka, data: d, to: student, name: c}\n"
        "  - {protocol: linear, data: d, encoders: [student]}\n"
    )
    return _text(path, [text], lambda: read_bench(path))


def _slides_csv(folder: Path) -> Target:
    path = folder / "slides.csv"
    text = 'slide_id,mpp,patient_id,split,site\na,0.5,p1,train,x\nb,0.25,p2,val,"y, z"\n'
    return _text(path, [text, "slide_id\na\n"], lambda: (read_slides_csv(path), read_ids([str(path)])))


def _tiles_csv(folder: Path) -> Target:
    path = folder / "tiles.csv"
    (folder / "a.png").touch()
    return _text(path, ["path,label,site\na.png,1,x\nb.png,2,y\n"], lambda: read_tiles(path, (), folder))


def _geojson(folder: Path) -> Target:
    slide, scan = Frame("slide", (0, 0), (100, 80)), Frame("bounds", (10, 10), (60, 40))
    corners = [[0, 0], [100, 0], [100, 80], [0, 80], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    several = feature | {"geometry": {"type": "MultiPolygon", "coordinates": [[corners], [corners]]}}
    value = {"type": "FeatureCollection", "features": [feature, several]}
    return Target(
        folder / "a.geojson",
        [json.dumps(value).encode()],
        lambda: load_user_mask(folder, "a", (100, 80), [slide, scan], np.ones((40, 50), np.float32)),
        mutate.some_json,
    )


def _metrics(folder: Path) -> Target:
    from pipeline.report import page

    path = folder / "metrics.jsonl"
    lines = [
        {"kind": "train", "step": 1, "loss": 1.5, "lr": 1e-4},
        {"kind": "train", "step": 2, "loss": 1.25, "lr": 1e-4},
        {"kind": "val", "step": 2, "loss": 1.0, "cosine": 0.5, "cka": 0.25},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()

    def change(raw: bytes, random: Any) -> bytes:
        kept = raw.splitlines(keepends=True)
        at = random.randrange(len(kept))
        kept[at] = mutate.some_json(kept[at], random) + b"\n"
        return b"".join(kept)

    return Target(path, [text], lambda: page.curves(read_metrics(path)), change)


def _log(folder: Path) -> Target:
    path = folder / "log.jsonl"
    line = json.dumps({"time": "2026-11-28T10:00:00.000+00:00", "event": "end", "seconds": 1.0}).encode()
    return Target(path, [line + b"\n"], lambda: last_date(path), mutate.some_json)


def _run_options(folder: Path) -> Target:
    path = folder / "options.json"
    options = PrototypeOptions()
    begun = {"options": to_json(options), "store_recipe": "0" * 64, "stream": "lanes-1"}

    def read() -> None:
        require_same_options(folder, options, frozenset())

    return Target(path, [json.dumps(begun).encode()], read, mutate.some_json)


def _embeddings(folder: Path) -> Target:
    from pipeline.embed.parts import feature_column

    path = folder / "a.parquet"
    random = np.random.default_rng(0)
    values, ok = random.normal(size=(20, 4)).astype(np.float32), np.ones(20, bool)
    table = pa.table({"slide_id": ["a"] * 20, "row": range(20), "features": feature_column(values, ok)})
    seeds = []
    for compression in ("none", "zstd"):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression=compression)
        seeds.append(sink.getvalue())
    return Target(path, seeds, lambda: load_embeddings(path), mutate.some_table)


def _npy(folder: Path) -> Target:
    path = folder / "tiles.npy"
    sink = io.BytesIO()
    np.save(sink, np.arange(50))
    return Target(path, [sink.getvalue()], lambda: tile_subset(100, None, path, 0), mutate.some_text)


def _slide(folder: Path, kind: str, inside: str = "", how: mutate.Mutate = mutate.some_bytes) -> Target:
    """A slide of a format that is not OpenSlide's, or a file inside of its folder."""
    picture = np.arange(96 * 128 * 3, dtype=np.uint32).reshape(96, 128, 3).astype(np.uint8)
    slide = FORMATS[kind].write(folder, [picture, np.ascontiguousarray(picture[::2, ::2])])
    path = slide / inside if inside else slide

    def read() -> None:
        with registry.open_slide(slide) as file:
            info = file.inspect("a", 0.5)
            for level, (width, height) in enumerate(info.level_sizes_px):
                file.region(0, 0, level, min(width, 256), min(height, 256))

    return Target(path, [path.read_bytes()], read, how)


def _dicom(folder: Path) -> Target:
    path = write_series(folder, "a", np.full((64, 64, 3), 9, np.uint8), "1.2.3", 2)[1]
    return Target(path, [path.read_bytes()[:1200]], lambda: find_slides([folder]), mutate.some_bytes)


def _views(store: Path) -> None:
    for commit in manifest.commits(store, "a"):
        commit.read()
        commit.read(["row", "seed", "status"])


def _patches(store: Path) -> None:
    manifest.read_patches(store, "a")


def _of_encoder(folder: Path, name: str) -> Target:
    """A student's folder or a file of weights."""
    return Target(*encoder_inputs.TARGETS[name](folder))


Make = Callable[[Path], Target]
_FEATURES = layout.feature_array("a", "features")
READERS: dict[str, Make] = {
    "recipe": _recipe,
    "options": _options,
    "zarr-group": _group,
    **{f"zarr-{leaf}": partial(_array, leaf=leaf) for leaf in ("features", "coords", "stats", "pixels")},
    **{f"zarr-{leaf}": partial(_array, leaf=leaf) for leaf in tokens.LEAVES},
    **{f"zarr-{leaf}": partial(_array, leaf=leaf, compact="int8") for leaf in ("scales", "standard")},
    "chunk-plain": partial(_chunk, name=_FEATURES, index=(0, 0, 0)),
    "chunk-zstd": partial(_chunk, name=layout.pixel_array("a"), index=(0, 0, 0, 0)),
    "chunk-zstd-int8": partial(_chunk, name=_FEATURES, index=(0, 0, 0), compact="int8"),
    "chunk-blosc": partial(_chunk, name=_FEATURES, index=(0, 0, 0), compact="lossless"),
    "table-slides": partial(_table, name=layout.SLIDES, read=manifest.read_slides),
    "table-patches": partial(_table, name=layout.patches_file("a"), read=_patches),
    "table-views": partial(_table, name=layout.commit_file("a", 0, range(2)), read=_views),
    "table-index": partial(_table, name=layout.INDEX, read=read_index),
    "seal-checksums": partial(_seal, name=layout.CHECKSUMS),
    "seal-digest": partial(_seal, name=layout.DIGEST),
    **{name: partial(_of_encoder, name=name) for name in encoder_inputs.TARGETS},
    "run-options": _run_options,
    "run-metrics": _metrics,
    "run-log": _log,
    "policy-yaml": _policy,
    "config-yaml": _config,
    "bench-yaml": _bench,
    "slides-csv": _slides_csv,
    "tiles-csv": _tiles_csv,
    "geojson": _geojson,
    "slide-dicom-header": _dicom,
    "slide-ome-tiff": partial(_slide, kind="ome-deflate"),
    "slide-ome-tiff-jpeg": partial(_slide, kind="ome-jpeg"),
    "slide-tiff-strips": partial(_slide, kind="tiff-strips"),
    "slide-png": partial(_slide, kind="png"),
    "slide-zarr-image": partial(_slide, kind="zarr2-planes", inside=".zattrs", how=mutate.some_json),
    "slide-zarr-array-2": partial(_slide, kind="zarr2-planes", inside="0/.zarray", how=mutate.some_json),
    "slide-zarr-array-3": partial(_slide, kind="zarr3-shards", inside="0/zarr.json", how=mutate.some_json),
    "slide-zarr-shard": partial(_slide, kind="zarr3-shards", inside="0/c/0/0/0/0/0"),
    "slide-zarr-blosc": partial(_slide, kind="zarr2-lz4", inside="0/0.0.0.0.0"),
    "embeddings-parquet": _embeddings,
    "tile-list-npy": _npy,
}
"""By name, in the order of a campaign."""
