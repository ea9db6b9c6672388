"""``parquet``: the project's own format, which keeps every column and every patch."""

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.embed.formats.base import Format, Parts, Unit, any_columns
from stores.format import manifest
from stores.io import files


def write_parquet(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    path = folder / f"{unit.name}.parquet"
    known = {b"g2l": json.dumps(unit.about, sort_keys=True).encode()}
    with files.replacing(path) as partial, contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for part in parts:
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


def _with_columns(unit: Unit, part: pa.Table) -> pa.Table:
    """A part with the columns of its slide or tiles before its own."""
    if unit.columns:
        rows = part["row"].to_numpy()
        own = {name: pa.array([values[i] for i in rows]) for name, values in unit.columns.items()}
        return pa.table({**own, **{name: part[name] for name in ("row", "status", "reason", "features")}})
    own_names = [name for name in unit.row if name not in manifest.SLIDES_SCHEMA.names]
    names = ["slide_id", "patient_id", "split", *own_names]
    fixed = {name: pa.array([unit.row[name]] * len(part), pa.string()) for name in names}
    return pa.table({**fixed, **{name: part[name] for name in part.column_names}})


PARQUET = Format(any_columns, write_parquet)
