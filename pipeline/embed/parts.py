"""Parts: what ``embed`` keeps of a block until its slide is whole, one Parquet file a block.

A part appears whole or not at all, so that it is its own commit record: a kill loses the blocks under way.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.inference.encoding import EncodedBlock
from pipeline.inference.task import Task
from stores.errors import CorruptStore
from stores.format import features, manifest
from stores.io import files
from stores.io.files import require_free

FOLDER = "parts"


def schema(dim: int) -> pa.Schema:
    """The columns of a part; ``features`` is empty in a row whose patch could not be read."""
    return pa.schema(
        [
            ("row", pa.int32()),
            ("x_px0", pa.int32()),
            ("y_px0", pa.int32()),
            ("tissue", pa.float32()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("features", pa.list_(pa.float32(), dim)),
        ]
    )


def part_path(out: Path, unit: str, block: int) -> Path:
    return out / FOLDER / unit / f"{block:05d}.parquet"


@dataclass(frozen=True, slots=True)
class PartSink:
    """Writes a task's part; DiskFull when there is no room for it."""

    out: Path
    task: Task

    def tokens(self, seed: int, index: int, values: npt.NDArray[np.float16]) -> None:
        """Parts have no room for tokens; `embed` keeps none."""
        raise TypeError(f"{self.task}: parts hold features alone, not tokens")

    def commit(self, block: EncodedBlock) -> None:
        """Write the block, of which only seed 0 is there."""
        values, task = block.features[0], self.task
        require_free(self.out, values.nbytes, str(task))
        start = features.block_range(task.n_patches, task.block).start
        table = block.views.select(["row", "x_px0", "y_px0", "tissue", "status"])
        rows = table["row"].to_numpy() - start
        ok = np.array([status == manifest.OK for status in table["status"].to_pylist()])
        reasons = [block.reasons.get(row) for row in table["row"].to_pylist()]
        table = table.append_column("reason", pa.array(reasons, pa.string()))
        table = table.append_column("features", feature_column(values[rows], ok))
        path = part_path(self.out, task.source.slide_id, task.block)
        # a file, not its path: Arrow opens none whose path is not UTF-8
        with files.replacing(path) as partial, partial.open("wb") as file:
            # floats do not compress
            pq.write_table(table, file, compression="none", use_dictionary=False, write_page_checksum=True)


def feature_column(values: npt.NDArray[Any], ok: npt.NDArray[np.bool_]) -> pa.Array:
    """Features (n, dim) as a column of lists of one length, empty where not `ok`."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(~ok))


def feature_matrix(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """A column of lists of one length without empty ones, as (n, dim); a view where there is one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = array.type.list_size
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)


def missing_blocks(out: Path, unit: str, n_patches: int) -> list[int]:
    """Blocks of a slide that have no part yet."""
    return [b for b in range(features.n_blocks(n_patches)) if not part_path(out, unit, b).is_file()]


def bad_rows(out: Path, unit: str, n_patches: int) -> dict[int, str]:
    """Rows that could not be read, with the reason."""
    found: dict[int, str] = {}
    for block in range(features.n_blocks(n_patches)):
        table = _read(part_path(out, unit, block), ["row", "status", "reason"])
        bad = table.filter(pc.not_equal(table["status"], manifest.OK))
        found |= dict(zip(bad["row"].to_pylist(), bad["reason"].to_pylist(), strict=True))
    return found


def remove_bad(out: Path, unit: str, n_patches: int) -> None:
    """Remove the parts with rows that could not be read: the next run reads them again."""
    for block in range(features.n_blocks(n_patches)):
        path = part_path(out, unit, block)
        if set(_read(path, ["status"])["status"].to_pylist()) != {manifest.OK}:
            path.unlink()


def remove(out: Path, unit: str) -> None:
    """Remove the parts of a slide, if there are any."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(out / FOLDER / unit)


def remove_folder(out: Path) -> None:
    """Remove the folder of parts, unless a slide that is not whole still has some."""
    folder = out / FOLDER
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        with path.open("rb") as file:
            return pq.read_table(file, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStore(
            f"{path}: damaged ({files.first_line(error)}); remove it and start the same command again"
        ) from None


def read_parts(out: Path, unit: str, n_patches: int, dim: int) -> Iterator[pa.Table]:
    """The parts of a slide in order of rows.

    Raises
    ------
    CorruptStore
        When one is damaged; it has to be removed, to be computed again.
    """
    for block in range(features.n_blocks(n_patches)):
        path = part_path(out, unit, block)
        table = _read(path)
        expected = features.block_range(n_patches, block)
        if table.schema != schema(dim) or table["row"].to_pylist() != list(expected):
            raise CorruptStore(f"{path}: not what embed wrote; remove it and start the same command again")
        yield table
