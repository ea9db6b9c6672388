"""The index: what the commit records of a store hold, in one small table, so that opening reads one file.

``manifest/index.parquet`` follows from the commit records, which alone count. Whoever changes a store drops it first,
and writes it again when the work is done; readers never write it. A store without one is read record by record.

It is not trusted. `read_index` compares the names and sizes of all records with a listing, and refuses an index that
does not fit. Each commit that it gives carries a claim: whoever reads the record compares it with that. So an index
that is wrong is noticed when the block is used, at the latest.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stores.errors import CorruptStore, StoreError
from stores.format import features, layout, manifest
from stores.format.figures import COLUMNS, NAMES, TISSUE, Figures
from stores.format.manifest import Claim, Commit
from stores.io import files
from stores.io.files import first_line
from stores.io.location import StoreLike, read_file

SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("block", pa.int32()),
        ("first_seed", pa.int16()),
        ("last_seed", pa.int16()),
        ("bytes", pa.int64()),  # of the record, and so is the SHA-256
        ("sha256", pa.string()),
        ("rows", pa.string()),  # such as 0-99,101-1023
        ("ok", pa.string()),
        ("content", pa.string()),
    ]
)
SUMMARY = b"g2l_summary"
"""In the metadata of the file: what `store info` shows of the features, as JSON. Nothing else relies on it."""
_MAX_SUMMARY_BYTES, _MAX_TEXT, _FEW = 1 << 14, 1 << 13, 100
_SHA256, _CONTENT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")
_RANGES = re.compile(r"(?:\d{1,8}-\d{1,8}(?:,\d{1,8}-\d{1,8})*)?")


@dataclass(frozen=True, slots=True)
class Record:
    """What the index says of a commit record."""

    commit: Commit
    bytes: int
    rows: npt.NDArray[np.int32]
    """Those that the record lists, under each of its seeds."""
    ok: npt.NDArray[np.int32]
    """Those of them whose status is ok."""


@dataclass(frozen=True, slots=True)
class Index:
    """The index of a store."""

    of_slide: Mapping[str, list[Record]]
    """By slide id, sorted; of each slide by block and seeds."""
    statistics: Mapping[str, float] | None
    """See `stores.format.figures.Figures`."""
    bytes: Mapping[str, int]
    """Of the files of ``features.zarr`` and ``pixels.zarr``."""
    files: Mapping[str, int]
    """How many these are."""

    def records(self) -> Iterator[Record]:
        """All of them, in order."""
        for records in self.of_slide.values():
            yield from records

    def count_views(self, slides: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As the rows of `stores.format.manifest.count_views`; the split is that of the slides table."""
        counts: dict[tuple[str, int, str], int] = {}
        for record in self.records():
            bad = len(record.rows) - len(record.ok)
            for status, n in ((manifest.OK, len(record.ok)), (manifest.BAD_READ, bad)):
                for seed in record.commit.seeds if n else ():
                    key = record.commit.slide_id, seed, status
                    counts[key] = counts.get(key, 0) + n
        return [
            {"slide_id": name, "split": slides[name]["split"], "seed": seed, "status": status, "views": n}
            for (name, seed, status), n in counts.items()
            if name in slides
        ]


def read_index(store: StoreLike) -> Index | None:
    """The index of a store; None when there is none. No commit record is opened.

    Raises
    ------
    CorruptStore
        When it is damaged, or does not fit the records that there are: their names and sizes.
    """
    path = store / layout.INDEX
    if not os.path.lexists(path):
        return None
    listed = {commit.file: size for commit, size in manifest.commits_and_bytes(store)}
    found = _read(store, path, 2 * len(listed) + _FEW)
    there: dict[str, int] = {}
    for record in found.records():
        if record.commit.file in there:
            raise _refused(store, f"lists {record.commit.file} twice")
        there[record.commit.file] = record.bytes
    for file in sorted(listed.keys() ^ there.keys()):
        raise _refused(store, f"lists {file}, which is not there" if file in there else f"lacks {file}")
    for file, size in there.items():
        if size != listed[file]:
            raise _refused(store, f"says that {file} has {size} bytes, and it has {listed[file]}")
    return found


def _refused(store: StoreLike, problem: str) -> CorruptStore:
    return CorruptStore(
        f"{store}/{layout.INDEX}: {problem}; it follows from the commit records: `g2l store reindex` writes it again"
    )


def _read(store: StoreLike, path: Path, most: int) -> Index:
    """The index in a file, of `most` records at most: so many cannot fit, and would take memory."""
    summary: dict[str, Any] = {}

    def inspect(schema: pa.Schema) -> None:
        raw = (schema.metadata or {}).get(SUMMARY, b"")
        try:
            if len(raw) > _MAX_SUMMARY_BYTES:
                raise ValueError(f"{len(raw)} bytes")
            summary.update(_summary_of(files.parse_json(raw.decode())))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptStore(f"{path}: its summary is not readable ({first_line(error)})") from None

    table = manifest.read_table(path, path.parents[1], SCHEMA, SCHEMA.names, most, inspect=inspect)
    for name in ("slide_id", "sha256", "rows", "ok", "content"):
        if (pc.max(pc.binary_length(table[name])).as_py() or 0) > _MAX_TEXT:
            raise CorruptStore(f"{path}: column {name} has a text of more than {_MAX_TEXT} bytes")
    of_slide: dict[str, list[Record]] = {}
    for line in table.to_pylist():
        of_slide.setdefault(line["slide_id"], []).append(_record(store, path, line))
    return Index(of_slide, summary["statistics"], summary["bytes"], summary["files"])


def _summary_of(value: Any) -> dict[str, Any]:
    """The parts of the summary; an error of any kind where they are of another form."""
    statistics, sizes = value["statistics"], (value["bytes"], value["files"])
    numbers = [] if statistics is None else list(statistics.values())
    if statistics is not None and set(statistics) not in (NAMES, NAMES | TISSUE.keys()):
        raise ValueError("other figures")
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError("a figure is not a number")
    for each in sizes:
        if set(each) != set(_SIZED) or not all(isinstance(n, int) and n >= 0 for n in each.values()):
            raise ValueError("sizes are not numbers")
    return {"statistics": statistics, "bytes": sizes[0], "files": sizes[1]}


def _record(store: StoreLike, path: Path, line: Mapping[str, Any]) -> Record:
    slide_id, block = line["slide_id"], line["block"]
    seeds = range(line["first_seed"], line["last_seed"] + 1)
    claim = Claim(line["sha256"], line["rows"], line["ok"], line["content"])
    rows = _numbers(claim.rows)
    ok = rows if claim.ok == claim.rows else _numbers(claim.ok)
    possible = block >= 0 and seeds and seeds.start >= 0 and seeds.stop <= manifest.MAX_SEEDS
    possible = possible and layout.is_slide_id(slide_id)
    possible = possible and bool(_SHA256.fullmatch(claim.sha256) and _CONTENT.fullmatch(claim.content))
    if not possible or rows is None or ok is None or not np.isin(ok, rows).all():
        raise CorruptStore(
            f"{path}: what it says of slide {slide_id!r:.80} block {block} is not said of a commit record"
        )
    return Record(Commit(slide_id, block, seeds, store, claim), line["bytes"], rows, ok)


def _numbers(text: str) -> npt.NDArray[np.int32] | None:
    """Row numbers from ``0-99,101-1023``; None when the text is of another form, or has more than a block has."""
    if not _RANGES.fullmatch(text):
        return None
    stretches = [tuple(map(int, part.split("-"))) for part in text.split(",")] if text else []
    after, total = 0, 0
    for first, last in stretches:
        if first > last or first < after:
            return None
        after, total = last + 1, total + last + 1 - first
    if total > manifest.MAX_BLOCK_ROWS:
        return None
    return np.concatenate(
        [np.zeros(0, np.int32), *(np.arange(a, b + 1, dtype=np.int32) for a, b in stretches)]
    )


def _text(rows: npt.NDArray[np.int32]) -> str:
    stretches = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
    return ",".join(f"{part[0]}-{part[-1]}" for part in stretches)


def claim_of(commit: Commit, table: pa.Table, sha256: str) -> Claim:
    """What the index says of a record.

    Parameters
    ----------
    table
        The columns `CLAIMED` of the record, at least.
    sha256
        Of its file.
    """
    rows, ok = table["row"].to_numpy(), pc.equal(table["status"], manifest.OK)
    first, is_ok = table["seed"].to_numpy() == commit.seeds.start, ok.to_numpy()
    content = manifest.content_of(table["view_crc32"].filter(ok))
    return Claim(sha256, _text(rows[first]), _text(rows[first & is_ok]), content.hex())


CLAIMED = ("row", "seed", "status", "view_crc32")
"""Columns of a commit record that its claim follows from."""


def require_claimed(commit: Commit, table: pa.Table) -> None:
    """Raise CorruptStore when a record is not what the index said, by which it was chosen.

    Parameters
    ----------
    table
        The columns `CLAIMED` of the record, at least.
    """
    if commit.claim is not None and claim_of(commit, table, commit.claim.sha256) != commit.claim:
        raise CorruptStore(
            f"slide {commit.slide_id} block {commit.block}: {layout.INDEX} says that {commit.file} has other rows or "
            f"views than it has; {manifest.UNLIKE_INDEX}"
        )


def sha256_of(commit: Commit) -> str:
    """SHA-256 of the file of a record, in hex."""
    raw = read_file(commit.store, commit.file, layout.limit_bytes(commit.file))
    if raw is None:
        raise StoreError(f"{commit.path}: no such file; is the store complete?")
    return hashlib.sha256(raw).hexdigest()


def record_of(commit: Commit, table: pa.Table, size: int) -> Record:
    """What the index says of a record: `table` has the columns `CLAIMED` at least, and its file `size` bytes."""
    claim = claim_of(commit, table, sha256_of(commit))
    rows, ok = (_numbers(text) for text in (claim.rows, claim.ok))
    if rows is None or ok is None:
        raise CorruptStore(f"{commit.path}: lists rows that no block has")
    claimed = Commit(commit.slide_id, commit.block, commit.seeds, commit.store, claim)
    return Record(claimed, size, rows, ok)


_SIZED = (layout.FEATURES, layout.PIXELS)


def sizes_of(listed: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes and number of the files of features and pixels, from the sizes of all files of a store."""
    size, n_files = dict.fromkeys(_SIZED, 0), dict.fromkeys(_SIZED, 0)
    for name, n_bytes in listed.items():
        folder = name.partition("/")[0]
        if folder in size:
            size[folder] += n_bytes
            n_files[folder] += 1
    return size, n_files


def make_index(store: Path, listed: Mapping[str, int] | None = None) -> Index:
    """The index of a store, from its records, the statistics of their blocks, and the sizes of its files.

    Parameters
    ----------
    listed
        Size of every file, where that is known already.
    """
    of_slide: dict[str, list[Record]] = {}
    figures = Figures()
    slide_id, stats = "", np.empty(0)
    for commit, size in manifest.commits_and_bytes(store):
        table = commit.read([*CLAIMED, *COLUMNS])
        if commit.slide_id != slide_id:
            slide_id, stats = commit.slide_id, features.read_stats(store, commit.slide_id)
        figures.add(commit, table, stats)
        of_slide.setdefault(slide_id, []).append(record_of(commit, table, size))
    sizes = sizes_of(layout.list_files(store) if listed is None else listed)
    return Index(of_slide, figures.to_json(store), *sizes)


def index_problems(index: Index, made: Index) -> Iterator[tuple[Commit | None, str]]:
    """What is wrong with an index, given one that was just made: (commit, problem), without commit for the summary."""
    there = {record.commit.file: record for record in made.records()}
    for record in index.records():
        other = there.pop(record.commit.file, None)
        if other is None:
            yield record.commit, "lists a commit record that is not there or cannot be read"
        elif (record.bytes, record.commit.claim) != (other.bytes, other.commit.claim):
            yield record.commit, f"says otherwise than {record.commit.file}, which counts"
    for record in there.values():
        yield record.commit, f"lacks {record.commit.file}"
    for name in ("bytes", "files"):
        stated, found = (dict(getattr(each, name)) for each in (index, made))
        if stated != found:
            yield None, f"says that features and pixels have {stated} {name}, and they have {found}"
    if (index.statistics is None) != (made.statistics is None):
        yield None, "has figures of the features and there are none, or the other way round"
    for name, value in (made.statistics or {}).items():
        figure = (index.statistics or {}).get(name, math.nan)
        # blocks may be added in another order
        if not math.isclose(figure, value, rel_tol=1e-6, abs_tol=1e-9):
            yield None, f"says that {name} of the features is {figure:g}, and it is {value:g}"


def write_index(store: Path, listed: Mapping[str, int] | None = None) -> Index | None:
    """Write the index of a store whose records are whole; none where there are no records. `listed` as above."""
    made = make_index(store, listed)
    if not made.of_slide:
        drop_index(store)
        return None
    lines = []
    for record in made.records():
        commit, claim = record.commit, record.commit.claim
        assert claim is not None
        place = commit.slide_id, commit.block, commit.seeds[0], commit.seeds[-1]
        lines.append((*place, record.bytes, claim.sha256, claim.rows, claim.ok, claim.content))
    summary = {"statistics": made.statistics, "bytes": made.bytes, "files": made.files}
    schema = SCHEMA.with_metadata({SUMMARY: json.dumps(summary, sort_keys=True, allow_nan=False)})
    columns = [
        pa.array(values, field.type) for values, field in zip(zip(*lines, strict=True), SCHEMA, strict=True)
    ]
    manifest.write_table(store / layout.INDEX, pa.table(columns, schema=schema))
    return made


def renew_index(store: Path, listed: Mapping[str, int] | None = None) -> str | None:
    """Write the index where there is none that fits, for a command whose work is done; what is wrong, if it cannot be.

    A record that cannot be read is named by whoever uses it, and does not end the command that found it. `listed` as
    above.
    """
    try:
        if read_index(store) is not None:
            return None
    except StoreError:
        drop_index(store)
    try:
        write_index(store, listed)
    except StoreError as error:
        return f"{layout.INDEX} was not written, and the store opens more slowly: {first_line(error)}"
    return None


def drop_index(store: Path) -> None:
    """Remove the index before the store is changed: a command that is killed leaves none rather than an old one."""
    files.remove(store / layout.INDEX)
