"""``parquet``: the project's own format, which keeps every column and every patch."""

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.embed import parts
from pipeline.embed.formats.base import Format, Parts, Unit, any_columns
from stores.errors import CorruptStore
from stores.format import manifest
from stores.io import files


def write_parquet(folder: Path, unit: Unit, tables: Parts) -> list[Path]:
    path = folder / f"{unit.name}.parquet"
    known = {b"g2l": json.dumps(unit.about, sort_keys=True).encode()}
    with files.replacing(path) as partial, contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for part in tables:
            table = _with_columns(unit, part)
            if writer is None:
                file = stack.enter_context(partial.open("wb"))  # Arrow opens no path that is not UTF-8
                schema = table.schema.with_metadata(known)
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        file,
                        schema,
                        compression={name: "zstd" for name in schema.names if name != "features"},
                        use_dictionary=[name for name in schema.names if name != "features"],
                        write_page_checksum=True,
                    )
                )
            writer.write_table(table.replace_schema_metadata(known))
    return [path]


def refresh_parquet(folder: Path, unit: Unit) -> list[Path]:
    """Write a slide's file again when the columns that come from the slides table differ from the table's row."""
    path = folder / f"{unit.name}.parquet"
    try:
        with path.open("rb") as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
            fixed = _fixed(unit)
            ours = parts.schema(unit.dim)
            own = [name for name in file.schema_arrow.names if name not in ours.names]
            found = file.read_row_group(0, own).slice(0, 1).to_pylist()
            if found == [fixed] and own == list(fixed):
                return []
            groups = (file.read_row_group(i, ours.names) for i in range(file.num_row_groups))
            return write_parquet(
                folder, unit, (table.replace_schema_metadata().cast(ours) for table in groups)
            )
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise CorruptStore(
            f"{path}: damaged ({files.first_line(error)}); remove it and start the same command again"
        ) from None


def _fixed(unit: Unit) -> dict[str, str | None]:
    """What a slide's file says of the slide, in every row."""
    ours = manifest.RESERVED - {"slide_id", "patient_id", "split"}
    own = [name for name in unit.row if name not in ours and name not in manifest.GIVEN]
    return {name: unit.row[name] for name in ("slide_id", "patient_id", "split", *own)}


def _with_columns(unit: Unit, part: pa.Table) -> pa.Table:
    """A part with the columns of its slide or tiles before its own."""
    if unit.columns:
        rows = part["row"].to_numpy()
        own = {name: pa.array([values[i] for i in rows]) for name, values in unit.columns.items()}
        return pa.table({**own, **{name: part[name] for name in ("row", "status", "reason", "features")}})
    fixed = {name: pa.array([value] * len(part), pa.string()) for name, value in _fixed(unit).items()}
    return pa.table({**fixed, **{name: part[name] for name in part.column_names}})


PARQUET = Format(any_columns, write_parquet, refresh=refresh_parquet)
