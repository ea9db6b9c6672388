"""Parquet files of unknown origin: what they would take in memory is known before anything is decoded.

A file of 3 kB can ask for 20 GB in four ways: by its number of rows, by pages that are compressed a millionfold, by one
long text in a dictionary that every row points to, and by text that is stored as a prefix of the text before it. So
rows are counted first, page headers are read here, dictionaries stay dictionaries until the length of the text is
known, and the last is refused. A column may be numbers, text, or lists of one length of floats; not more is needed.
"""

import mmap
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_BYTES = 1 << 30
"""Of a table in memory, and of its pages."""
MAX_ROWS = 1 << 24
_USUAL_COLUMNS, _MAX_COLUMNS, _MAX_GROUPS = 64, 1000, 10_000
_MAX_FOOTER_ITEMS = 1 << 17
_MAX_FOOTER_TEXT = 1 << 24
_SMALL_BYTES = 1 << 26
_SAFE_ENCODINGS = frozenset((0, 2, 3, 4, 5, 8, 9))
"""All but those that build text from parts (DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY)."""
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PAGE_HEADERS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""The field of a page's header that describes it, by its type."""


class TooLarge(ValueError):
    """A Parquet file is not within the bounds."""


def read_parquet(
    raw: bytes | mmap.mmap,
    columns: Sequence[str] | Callable[[Sequence[str]], Sequence[str]] | None = None,
    max_rows: int = MAX_ROWS,
    judge: Callable[[pa.Schema], None] = lambda schema: None,
) -> pa.Table:
    """The table in a Parquet file, text as text, without metadata.

    Parameters
    ----------
    columns
        Those to read, or a function that chooses them among the names that there are; all by default. Others are
        neither judged nor read.
    judge
        Called with the schema before anything is decoded; it may raise.

    Raises
    ------
    TooLarge
        When it has more rows than `max_rows`, would take more memory than `MAX_BYTES`, or has a column of another type.
    pa.ArrowException, OSError, UnicodeDecodeError
        When it is damaged.
    """
    with open_parquet(raw) as file:
        schema = _plain(file.schema_arrow)
        judge(schema)
        chosen = columns(schema.names) if callable(columns) else columns
        wanted = list(schema.names) if chosen is None else list(chosen)
        require_bounds(raw, file, wanted, max_rows)
        table = file.read(columns=wanted, use_threads=False).replace_schema_metadata(None)
        table = _as_text(table)
        table.validate(full=True)
    return table


def open_parquet(raw: bytes | mmap.mmap) -> pq.ParquetFile:
    """The file, its footer read within limits, its text to be read as dictionaries."""
    file = _open(raw, _USUAL_COLUMNS)
    n_columns = file.metadata.num_columns
    if n_columns > _MAX_COLUMNS:
        raise TooLarge(f"{n_columns} columns; at most {_MAX_COLUMNS}")
    return file if n_columns <= _USUAL_COLUMNS else _open(raw, n_columns)


def _open(raw: bytes | mmap.mmap, n_columns: int) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.BufferReader(raw),
        page_checksum_verification=True,
        read_dictionary=range(n_columns),
        thrift_string_size_limit=_MAX_FOOTER_TEXT,
        thrift_container_size_limit=_MAX_FOOTER_ITEMS,
    )


def _plain(schema: pa.Schema) -> pa.Schema:
    """The schema with text as text instead of as a dictionary of texts."""
    fields = [pa.field(f.name, _value_type(f.type), f.nullable) for f in schema]
    return pa.schema(fields, metadata=schema.metadata)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def require_bounds(
    raw: bytes | mmap.mmap,
    file: pq.ParquetFile,
    columns: Sequence[str],
    max_rows: int,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Raise TooLarge unless these columns can be read within the bounds; no page is decoded.

    The footer is read here once more: the library ends the process when it is asked for the metadata of a column whose
    histograms have a wrong length.
    """
    schema, chosen = file.schema_arrow, set(columns)
    if len(set(schema.names)) != len(schema.names) or not chosen <= set(schema.names):
        raise TooLarge(
            f"columns {', '.join(schema.names)[:200]}; expected each once, and {', '.join(chosen)[:200]}"
        )
    try:
        footer, _ = _struct(raw, len(raw) - 8 - int.from_bytes(raw[-8:-4], "little"))
        n_rows, groups = footer[3], footer[4]
        if not 0 <= n_rows <= max_rows or len(groups) > _MAX_GROUPS:
            raise TooLarge(f"{n_rows} rows in {len(groups)} groups; at most {max_rows} rows")
        size = sum(_width(schema.field(name)) for name in chosen)
        if size * n_rows > max_bytes:
            raise TooLarge(f"{n_rows} rows of {size} bytes; at most {max_bytes} bytes")
        if sum(group[3] for group in groups) != n_rows or any(group[3] < 0 for group in groups):
            raise TooLarge(f"{n_rows} rows, but not in its groups")
        pages = 0
        for group in groups:
            for column in group[1]:
                name = column[3][3][0].decode("utf-8", "replace")
                if name in chosen:
                    pages += _pages_bytes(raw, column, name, group[3] * _values_a_row(schema.field(name)))
                if pages > max_bytes:
                    raise TooLarge(f"pages of more than {max_bytes} bytes")
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise TooLarge(f"an unreadable footer or page header ({type(error).__name__})") from None


def _width(field: pa.Field) -> int:
    """Bytes of a value in memory; text counts as the number that points into its dictionary."""
    kind = _value_type(field.type)
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_null(kind):
        return 4
    if pa.types.is_primitive(kind):
        return max(kind.bit_width // 8, 1)
    if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
        return int(kind.list_size * kind.value_type.bit_width // 8)
    raise TooLarge(
        f"column {field.name} of type {kind}; numbers, text or lists of one length of floats are expected"
    )


def _values_a_row(field: pa.Field) -> int:
    return max(int(field.type.list_size), 1) if pa.types.is_fixed_size_list(field.type) else 1


def _pages_bytes(raw: bytes | mmap.mmap, column: dict[int, Any], name: str, most: int) -> int:
    """Decoded bytes of the pages of a column chunk, as their headers say: that is what the library allocates."""
    about = column[3]
    n_values, at = about[5], about[9]
    if 0 < about.get(11, 0) < at:  # the dictionary comes first
        at = about[11]
    stop = at + about[7]
    if 1 in column or not 0 <= at <= stop <= len(raw) or not 0 <= n_values <= most:
        raise TooLarge(f"column {name}: {n_values} values at {at} to {stop}")
    size = values = 0
    while at < stop and values < n_values:
        header, at = _struct(raw, at)
        kind, decoded, stored = header[1], header[2], header[3]
        page = header.get(_PAGE_HEADERS.get(kind, 0), {})
        encoding = page.get(4 if kind == _DATA_V2 else 2, 0)
        if decoded < 0 or stored < 0 or page.get(1, 0) < 0 or encoding not in _SAFE_ENCODINGS:
            raise TooLarge(f"column {name}: a page of {decoded} bytes in encoding {encoding}")
        values += page.get(1, 0) if kind != _DICTIONARY else 0
        size += decoded
        at += stored
    if values > n_values:
        raise TooLarge(f"column {name}: pages with {values} values for {n_values}")
    return size


_TRUE, _FALSE, _I16, _I64, _TEXT, _LIST, _SET, _STRUCT = 1, 2, 4, 6, 8, 9, 10, 12
_LENGTHS = {3: 1, 7: 8}
"""Of a byte and of a real number."""


def _struct(raw: bytes | mmap.mmap, at: int) -> tuple[dict[int, Any], int]:
    """Fields by number of a structure in Thrift's compact protocol, and where it ends.

    Written out in one function, because a commit record has 800 fields and calls would double the time to open it.
    Source: the specification thrift-compact-protocol.md of Apache Thrift. Maps, which Parquet does not have, are a
    KeyError; the end of the file is an IndexError.
    """
    found: dict[int, Any] = {}
    number = 0
    while True:
        head = raw[at]
        at += 1
        if head == 0:
            return found, at
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            value, at = _varint(raw, at)
            number = (value >> 1) ^ -(value & 1)
        if _I16 <= kind <= _I64:
            value = raw[at]
            at += 1
            if value > 127:
                value, at = _varint(raw, at - 1)
            found[number] = (value >> 1) ^ -(value & 1)
        elif kind == _STRUCT:
            found[number], at = _struct(raw, at)
        elif kind == _TEXT:
            value, at = _varint(raw, at)
            found[number] = raw[at : at + value]
            at += value
        elif kind in (_LIST, _SET):
            found[number], at = _list(raw, at)
        elif kind in (_TRUE, _FALSE):
            found[number] = kind == _TRUE
        else:
            at += _LENGTHS[kind]


def _list(raw: bytes | mmap.mmap, at: int) -> tuple[list[Any], int]:
    count, kind = raw[at] >> 4, raw[at] & 15
    at += 1
    if count == 15:
        count, at = _varint(raw, at)
    if count > len(raw) - at:
        raise IndexError(at)
    items: list[Any] = []
    for _ in range(count):
        item: Any
        if kind == _STRUCT:
            item, at = _struct(raw, at)
            items.append(item)
        elif kind == _TEXT:
            length, at = _varint(raw, at)
            items.append(raw[at : at + length])
            at += length
        elif _I16 <= kind <= _I64:
            value, at = _varint(raw, at)
            items.append((value >> 1) ^ -(value & 1))
        elif kind in (_TRUE, _FALSE):
            at += 1
        elif kind in (_LIST, _SET):
            item, at = _list(raw, at)
            items.append(item)
        else:
            at += _LENGTHS[kind]
    return items, at


def _varint(raw: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    byte = raw[at]
    if byte < 0x80:
        return byte, at + 1
    value = shift = 0
    while byte & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise IndexError(at)
        byte = raw[at]
    return value | byte << shift, at + 1


def read_group(file: pq.ParquetFile, number: int) -> pa.Table:
    """A group of rows of a file that is within the bounds; TooLarge when its text is not."""
    return _as_text(file.read_row_group(number, use_threads=False))


def _as_text(table: pa.Table) -> pa.Table:
    """Dictionaries of texts as texts, once the length of these is known."""
    size = 0
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_dictionary(column.type):
            continue
        for chunk in column.chunks:
            lengths = pc.binary_length(chunk.dictionary)
            most = (pc.max(lengths).as_py() or 0) * len(chunk)
            if most > _SMALL_BYTES:
                most = pc.sum(lengths.take(chunk.indices)).as_py() or 0
            size += most
        if size > MAX_BYTES:
            raise TooLarge(f"column {name}: more than {MAX_BYTES} bytes of text")
    fields = _plain(table.schema)
    return table if fields == table.schema else table.cast(fields)
