"""Parquet files that ask for more than they have."""

import io
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores.io import parquet


def written(table: pa.Table, **form: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **form)
    return sink.getvalue()


def test_text_numbers_and_empty_values_are_read_as_they_are() -> None:
    table = pa.table(
        {
            "text": ["a", None, "a", "\u00e4" * 300],
            "number": pa.array([1, 2, None, 4], pa.int16()),
            "real": [0.5, None, float("nan"), 1.0],
            "flag": [True, None, False, True],
        }
    )
    for form in ({}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"row_group_size": 1}):
        raw = written(table, compression="zstd", **form)
        assert str(parquet.read_parquet(raw).to_pylist()) == str(table.to_pylist())
        assert parquet.read_parquet(raw).schema == table.schema
        assert parquet.read_parquet(raw, ["flag", "text"]).column_names == ["flag", "text"]


def bomb(kind: str) -> bytes:
    n = 1 << 18
    if kind == "rows":
        return written(pa.table({"x": np.zeros(n * 65, np.int8)}), compression="zstd")
    if kind == "one long text":
        indices = pa.array(np.zeros(n, np.int32))
        column = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 100_000]))
        return written(pa.table({"x": column}), compression="zstd")
    if kind == "parts of text":
        column = pa.array(["x" * 500] * n)
        encoded = {"x": "DELTA_BYTE_ARRAY"}
        return written(
            pa.table({"x": column}), compression="zstd", use_dictionary=False, column_encoding=encoded
        )
    if kind == "lists":
        return written(pa.table({"x": pa.array([[1, 2]] * 10)}))
    assert kind == "columns"
    return written(pa.table({f"c{i}": [0] for i in range(2000)}))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("rows", "rows"),
        ("one long text", "bytes of text"),
        ("parts of text", "in encoding 7"),
        ("lists", "column x of type"),
        ("columns", "2000 columns"),
    ],
)
def test_what_would_take_too_much_memory_is_refused_before_it_does(kind: str, said: str) -> None:
    raw = bomb(kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(parquet.TooLarge, match=said):
        parquet.read_parquet(raw)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_pages_that_are_compressed_a_thousandfold() -> None:
    raw = written(pa.table({"x": ["x" * (1 << 22)]}), compression="zstd")
    assert len(raw) < 1 << 12
    with (
        parquet.open_parquet(raw) as file,
        pytest.raises(parquet.TooLarge, match="pages of more than 1048576"),
    ):
        parquet.require_bounds(raw, file, ["x"], 10, 1 << 20)


def test_more_rows_than_asked_for() -> None:
    raw = written(pa.table({"x": [1, 2, 3]}))
    with pytest.raises(parquet.TooLarge, match="3 rows in 1 groups; at most 2"):
        parquet.read_parquet(raw, max_rows=2)


def test_a_column_that_lies_outside_of_the_file() -> None:
    raw = written(pa.table({"x": [1, 2, 3]}), compression="none")
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    refused = 0
    for at in range(footer, len(raw) - 8):
        changed = raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :]
        try:
            parquet.read_parquet(changed)
        except (parquet.TooLarge, pa.ArrowException, OSError, ValueError):
            refused += 1
    assert refused > 20


def test_histograms_of_a_wrong_length_do_not_end_the_process() -> None:
    """The library throws where nothing catches it, when Python asks for the metadata of such a column."""
    script = (
        "import io, numpy as np, pyarrow as pa, pyarrow.parquet as pq\n"
        "from stores.io import parquet\n"
        "column = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(40, np.float32)), 4)\n"
        "sink = io.BytesIO()\n"
        "pq.write_table(pa.table({'x': column}), sink)\n"
        "raw = sink.getvalue()\n"
        "footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], 'little')\n"
        "for at in range(footer, len(raw) - 8):\n"
        "    for value in (raw[at] ^ 0x10, raw[at] ^ 0x20):\n"
        "        try:\n"
        "            parquet.read_parquet(raw[:at] + bytes([value]) + raw[at + 1 :])\n"
        "        except (ValueError, OSError, KeyError, MemoryError, pa.ArrowException):\n"
        "            pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-300:]
