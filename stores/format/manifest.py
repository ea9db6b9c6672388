"""The manifest: Parquet tables of a store's slides, patches and views.

``manifest/slides.parquet``             a row per slide, usable or not
``manifest/patches/<slide_id>.parquet`` a row per patch, in row order (Morton)
``manifest/views/<slide_id>/<block>-<seeds>.parquet``  a row per view, and the commit record: the
file is written after the block's chunks are on disk, so only what it lists exists.

Each file carries a CRC-32 of itself in its Parquet metadata: page checksums leave the footer uncovered.
"""

import dataclasses
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stores.errors import CorruptStore, StoreError
from stores.format import layout
from stores.format.layout import check_slide_id
from stores.io import parquet
from stores.io.files import first_line, remove, write_bytes
from stores.io.foreign import PARQUET_BYTES, read_regular
from stores.io.location import StoreLike, entries
from stores.io.text import utf8

OK = "ok"
BAD_READ = "bad_read"
SPLITS = ("train", "val", "test")

SLIDES_SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("file_name", pa.string()),
        ("fingerprint", pa.string()),
        ("vendor", pa.string()),
        ("width_px0", pa.int32()),
        ("height_px0", pa.int32()),
        ("mpp", pa.float64()),  # of level 0
        ("mpp_source", pa.string()),  # slide, option or csv
        ("patch_px0", pa.int32()),  # side of a patch in level-0 pixels
        ("patch_mpp", pa.float64()),  # the mpp that a patch really has
        ("patient_id", pa.string()),
        ("split", pa.string()),
        ("status", pa.string()),  # ok, failed or no_tissue
        ("reason", pa.string()),
        ("n_patches", pa.int32()),
    ]
)
PATCHES_SCHEMA = pa.schema([("x_px0", pa.int32()), ("y_px0", pa.int32()), ("tissue", pa.float32())])
TILE, TILE_FILE = "tile", "file"
"""Further columns of patches that were cut from tiles: fingerprint and name of the tile, see `stores.format.tiles`.
The user's own columns follow them."""
QC = "qc_"
"""How further columns of numbers begin, in which another tool judges patches, see `stores.format.qc`."""
DRAWN_SCHEMA = pa.schema(
    [
        ("crop_x_px", pa.int16()),
        ("crop_y_px", pa.int16()),
        ("hflip", pa.bool_()),
        ("vflip", pa.bool_()),
        ("jitter", pa.bool_()),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("saturation", pa.float32()),
        ("hue", pa.float32()),
        ("order", pa.int8()),
        ("blur", pa.bool_()),
        ("sigma", pa.float32()),
        ("stain", pa.bool_()),
        ("stain_h", pa.float32()),
        ("stain_e", pa.float32()),
        ("stain_d", pa.float32()),
    ]
)
VIEWS_SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("row", pa.int32()),
        ("x_px0", pa.int32()),
        ("y_px0", pa.int32()),
        ("seed", pa.int16()),
        ("split", pa.string()),
        ("tissue", pa.float32()),
        ("status", pa.string()),
        ("view_crc32", pa.uint32()),  # null where status is bad_read
        *DRAWN_SCHEMA,
    ]
)

GIVEN = ("slide_id", "mpp", "patient_id", "split")
"""Columns of the slides table that users give."""
ADDED = ("mask_frame", "mpp_y", "patch_y_px0", "qc_frame", "qc_left_out", "qc_unknown")
"""Columns of ours, as text, that a slides table has only where one of its slides needs them."""
RESERVED = frozenset((
    *SLIDES_SCHEMA.names, *PATCHES_SCHEMA.names, "row", "seed", "view_crc32", "features", "tokens", "coords", "pixels",
    *ADDED,
))  # fmt: skip
"""Names that a user's own column may not have: it would stand beside a column of ours in some table, or in its place.

The drawn parameters are not among them: they stand in no table with a user's columns, and ``stain`` is a good name.
"""

MAX_SEEDS = 1000
MAX_BLOCK_ROWS = 1024
CHECKSUM_KEY = b"g2l_crc32"
_NULLABLE = frozenset(("view_crc32", *SLIDES_SCHEMA.names)) - {
    "slide_id",
    "patient_id",
    "split",
    "status",
    "n_patches",
}
_COMMIT_NAME = re.compile(r"(\d{5})-s(\d{4})-(\d{4})\.parquet")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table of a store, whole or not at all, with a checksum of the file."""
    sink = pa.BufferOutputStream()  # Arrow opens no file whose path is not UTF-8
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({CHECKSUM_KEY: b"0" * 8})
    raw = sink.getvalue().to_pybytes()
    start = _checksum_at(raw)
    write_bytes(path, raw[:start], f"{zlib.crc32(raw):08x}".encode(), raw[start + 8 :])


def _checksum_at(raw: bytes) -> int:
    """Where the eight hex digits stand: in the footer's Thrift the key is followed by a field header and a length."""
    found = raw.rfind(CHECKSUM_KEY)
    return found + len(CHECKSUM_KEY) + 2 if found >= 0 else -1


def checksum_matches(raw: bytes) -> bool | None:
    """Whether a Parquet file is as it was written: its CRC-32 with the digits of the checksum as zeros.

    None when it carries none: another program wrote it, or an older version.
    """
    start = _checksum_at(raw)
    if start < 0:
        return None
    digits = raw[start : start + 8]
    return digits == f"{zlib.crc32(raw[:start] + b'0' * 8 + raw[start + 8 :]):08x}".encode()


def read_table(
    path: Path,
    inside: Path,
    schema: pa.Schema,
    columns: Sequence[str] | Callable[[Sequence[str]], Sequence[str]] | None = None,
    max_rows: int = parquet.MAX_ROWS,
    optional: Sequence[str] = (),
    sha256: str | None = None,
    inspect: Callable[[pa.Schema], None] = lambda schema: None,
) -> pa.Table:
    """Read a file of unknown origin below `inside`: sizes and types before memory, checksums before values.

    Values of columns of the schema may be empty where `optional` has them, and in some of the slides table.

    Parameters
    ----------
    sha256
        Of the file, as the index has it; None where no index says it.
    inspect
        Called with the schema and its metadata, before anything is decoded.
    """

    def judge(found: pa.Schema) -> None:
        inspect(found)
        for field in schema:
            if found.names.count(field.name) != 1 or found.field(field.name).type != field.type:
                raise CorruptStore(
                    f"{path}: column {field.name} ({field.type}) is missing or of another type"
                )

    try:
        raw = read_regular(path, PARQUET_BYTES, inside)
        if checksum_matches(raw) is False:
            raise CorruptStore(f"{path}: its checksum differs: damaged, or edited by another program")
        if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
            raise CorruptStore(f"{path}: its SHA-256 is not the one that {layout.INDEX} has; {UNLIKE_INDEX}")
        table = parquet.read_parquet(raw, columns, max_rows, judge)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path}: no such file; is the store complete?") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise CorruptStore(f"{path}: not a readable Parquet file ({first_line(error)})") from None
    for name in table.column_names:
        may_be_empty = name in _NULLABLE or name in optional
        if name in schema.names and not may_be_empty and table[name].null_count:
            raise CorruptStore(f"{path}: column {name} has {table[name].null_count} empty values")
    return table


def add_checksum(path: Path, schema: pa.Schema) -> None:
    """Write a table of an older version or another program again, all columns as they are, with a checksum."""
    write_table(path, read_table(path, path.parent, schema))


def slides_path(store: StoreLike) -> Path:
    """Where the slides table is."""
    return store / layout.SLIDES


def write_slides(store: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the slides table, sorted by slide id. Columns beyond the schema are the user's own, as text."""
    known = set(SLIDES_SCHEMA.names)
    own = sorted({name for row in rows for name in row} - known)
    schema = pa.schema([*SLIDES_SCHEMA, *((name, pa.string()) for name in own)])
    ordered = sorted(rows, key=lambda row: row["slide_id"])
    complete = [
        {name: _text_of(row.get(name)) for name in SLIDES_SCHEMA.names}
        | {name: None if row.get(name) is None else utf8(str(row[name])) for name in own}
        for row in ordered
    ]
    write_table(slides_path(store), pa.Table.from_pylist(complete, schema=schema))


def _text_of(value: Any) -> Any:
    return utf8(value) if isinstance(value, str) else value


def read_slides(store: StoreLike) -> list[dict[str, Any]]:
    """All slides, sorted by id; an empty list when nothing is tiled yet."""
    path = slides_path(store)
    if not os.path.lexists(path):
        return []
    rows: list[dict[str, Any]] = read_table(path, path.parents[1], SLIDES_SCHEMA).to_pylist()
    seen: set[str] = set()
    for row in rows:
        if check_slide_id(row["slide_id"]) in seen:
            raise CorruptStore(f"{slides_path(store)}: slide {row['slide_id']} is listed twice")
        seen.add(row["slide_id"])
        if not 0 <= row["n_patches"] < parquet.MAX_ROWS:
            raise CorruptStore(
                f"{slides_path(store)}: slide {row['slide_id']} with {row['n_patches']} patches"
            )
    return rows


def patches_path(store: StoreLike, slide_id: str) -> Path:
    """Where a slide's patches are listed."""
    return store / layout.patches_file(slide_id)


def write_patches(
    store: Path,
    slide_id: str,
    x_px0: npt.NDArray[np.int32],
    y_px0: npt.NDArray[np.int32],
    tissue: npt.NDArray[np.float32],
    further: Mapping[str, Sequence[str | None]] | None = None,
    qc: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> None:
    """Write a slide's patches, (n,) each, in row order.

    Parameters
    ----------
    further
        Columns of text that only patches of tiles have: `TILE`, `TILE_FILE`, and the user's own.
    qc
        As in `Patches.qc`.
    """
    table = pa.table([x_px0, y_px0, tissue], schema=PATCHES_SCHEMA)
    for name, values in (further or {}).items():
        texts = [None if value is None else utf8(value) for value in values]
        table = table.append_column(name, pa.array(texts, pa.string()))
    for name, numbers in (qc or {}).items():
        # NaN becomes empty
        table = table.append_column(name, pa.array(numbers, pa.float32(), from_pandas=True))
    write_table(patches_path(store, slide_id), table)


@dataclass(frozen=True, slots=True)
class Patches:
    """A slide's patches in row order, (n,) each."""

    x_px0: npt.NDArray[np.int32]
    y_px0: npt.NDArray[np.int32]
    tissue: npt.NDArray[np.float32]
    tile: npt.NDArray[np.object_] | None = None
    """Where patches were cut from tiles: the fingerprint of each one's tile. x and y are positions inside it."""
    further: tuple[str, ...] = ()
    """Names of all columns of text, which slides do not have."""
    qc: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    """What another tool says of each patch, by column; NaN where it says nothing. See `stores.format.qc`."""

    def __len__(self) -> int:
        return len(self.x_px0)

    @property
    def coords(self) -> npt.NDArray[np.int32]:
        """Level-0 x and y of each patch, int32 (n, 2)."""
        return np.stack([self.x_px0, self.y_px0], axis=1)

    def key(self, row: int, fingerprint: str) -> str:
        """What keys the draws of a row: the fingerprint of its tile where it was cut from one, else the slide's."""
        return fingerprint if self.tile is None else str(self.tile[row])


def read_patches(store: StoreLike, slide_id: str, n_patches: int | None = None) -> Patches:
    """The patches of a slide.

    Parameters
    ----------
    n_patches : int, optional
        How many the slides table says; CorruptStore when there are more or fewer.
    """
    path = patches_path(store, slide_id)
    there: list[str] = []

    def chosen(names: Sequence[str]) -> list[str]:
        there.extend(names)
        qc = (name for name in names if name.startswith(QC))
        return [*PATCHES_SCHEMA.names, *([TILE] if TILE in names else []), *qc]

    table = read_table(path, path.parents[2], PATCHES_SCHEMA, chosen)
    tile = _texts(path, table, TILE) if TILE in there else None
    x_px0, y_px0, tissue = (table[name].to_numpy() for name in PATCHES_SCHEMA.names)
    qc = {
        name: table[name].to_numpy()
        for name in table.column_names
        if name.startswith(QC) and table[name].type == pa.float32()  # a user's own column is text
    }
    further = tuple(name for name in there if name not in PATCHES_SCHEMA.names and name not in qc)
    found = Patches(x_px0, y_px0, tissue, tile, further, qc)
    if n_patches is not None and len(found) != n_patches:
        raise CorruptStore(f"{path}: {len(found)} patches, the slides table has {n_patches}")
    return found


def read_further(store: StoreLike, slide_id: str, names: Sequence[str]) -> pa.Table:
    """Columns of text of the patches of a slide, which were cut from tiles.

    Raises
    ------
    CorruptStore
        When one is missing, or is not text.
    """
    path = patches_path(store, slide_id)
    schema = pa.schema([(name, pa.string()) for name in names])
    return read_table(path, path.parents[2], schema, names, optional=tuple(names))


def _texts(path: Path, table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    if table[name].type != pa.string() or table[name].null_count:
        raise CorruptStore(f"{path}: column {name} is not text, or has empty values")
    return np.array(table[name].to_pylist(), object)


UNLIKE_INDEX = "`g2l store verify` says which of the two is wrong, `g2l store reindex` writes the index again"


@dataclass(frozen=True, slots=True)
class Claim:
    """What the index of the store says of a commit record (`stores.format.index`), to be compared with the record."""

    sha256: str
    """Of the file."""
    rows: str
    """Those that it lists, such as ``0-99,101-1023``."""
    ok: str
    """Those of them whose status is ok."""
    content: str
    """`content_of` the record, in hex."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit record: the views of `seeds` of one block of one slide."""

    slide_id: str
    block: int
    seeds: range
    store: StoreLike
    claim: Claim | None = None
    """None where the record was found without an index."""

    @property
    def path(self) -> Path:
        """The file, or its local copy where the store is remote."""
        return self.store / self.file

    @property
    def root(self) -> Path:
        """The folder of the store, or of the local copies of its tables where it is remote."""
        return (self.store / layout.RECIPE).parent

    @property
    def file(self) -> str:
        """The name of the record below the store."""
        return layout.commit_file(self.slide_id, self.block, self.seeds)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of the record, ordered by seed, then row."""
        most = len(self.seeds) * MAX_BLOCK_ROWS
        sha256 = None if self.claim is None else self.claim.sha256
        names = columns or VIEWS_SCHEMA.names
        return read_table(self.path, self.root, VIEWS_SCHEMA, names, most, sha256=sha256)


def commit_path(store: StoreLike, slide_id: str, block: int, seeds: range) -> Path:
    """Where the commit record of a block is; only contiguous seeds are written together."""
    return store / layout.commit_file(slide_id, block, seeds)


def write_commit(store: Path, slide_id: str, block: int, seeds: range, views: pa.Table) -> None:
    """Publish the views of a block. Call it last, when chunks are flushed to disk. The index goes, if there is one."""
    remove(store / layout.INDEX)
    write_table(commit_path(store, slide_id, block, seeds), views.cast(VIEWS_SCHEMA))


def commits(store: StoreLike, slide_id: str | None = None, replaced: bool = False) -> Iterator[Commit]:
    """All commit records, sorted by slide, block and seeds. Files whose names are not commit names are ignored.

    A record whose seeds lie within those of another record of its block is ignored too, unless `replaced` is set: it
    was joined into that one (`stores.verify.join_commits`), and the command was killed before it removed it.
    """
    return (commit for commit, _ in commits_and_bytes(store, slide_id, replaced))


def commits_and_bytes(
    store: StoreLike, slide_id: str | None = None, replaced: bool = False
) -> Iterator[tuple[Commit, int]]:
    """As `commits`, each with the size of its file, as a listing says; no file is opened."""
    for name in [slide_id] if slide_id is not None else sorted(entries(store, layout.VIEWS)):
        found: list[tuple[Commit, int]] = []
        for file, size in entries(store, layout.views_folder(name)).items():
            match = _COMMIT_NAME.fullmatch(file)
            if match and int(match[2]) <= int(match[3]) < MAX_SEEDS:
                block, first, last = map(int, match.groups())
                found.append((Commit(name, block, range(first, last + 1), store), size))
        reached = (-1, 0)  # block, seeds up to here
        for commit, size in sorted(found, key=lambda f: (f[0].block, f[0].seeds.start, -f[0].seeds.stop)):
            if replaced or (commit.block, commit.seeds.stop) > reached:
                reached = (commit.block, commit.seeds.stop)
                yield commit, size


COUNTED = ("slide_id", "split", "seed", "status")
"""What views are counted by."""


def count_views(store: StoreLike) -> pa.Table:
    """Views per (slide_id, split, seed, status): columns of these names and ``views``."""
    return count(commit.read(COUNTED) for commit in commits(store))


def count(tables: Iterable[pa.Table]) -> pa.Table:
    """As `count_views`, of the views in some tables, one after another: they are 40 million in a large store."""
    columns = list(COUNTED)
    schema = pa.schema([*(VIEWS_SCHEMA.field(name) for name in columns), ("views", pa.int64())])
    parts = [schema.empty_table()]
    for table in tables:
        found = table.select(columns).group_by(columns, use_threads=False).aggregate([([], "count_all")])
        parts.append(found.rename_columns([*columns, "views"]).cast(schema))
    together = pa.concat_tables(parts).group_by(columns, use_threads=False)
    return together.aggregate([("views", "sum")]).rename_columns([*columns, "views"])


def content_of(crc32: pa.ChunkedArray) -> bytes:
    """Hash of the checksums of views with status ok, 16 bytes. It decides the order of slides in a training."""
    # none is null where the record keeps its promises
    raw = crc32.fill_null(0).to_numpy().astype("<u4").tobytes()
    return hashlib.blake2b(raw, digest_size=16, person=b"g2l-sampler").digest()


def ok_rows(views: pa.Table, seed: int) -> npt.NDArray[np.int32]:
    """The rows of `seed` that have a feature."""
    chosen = pc.and_(pc.equal(views["seed"], seed), pc.equal(views["status"], OK))
    return views["row"].filter(chosen).to_numpy()
