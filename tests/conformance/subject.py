"""A store under judgement, read with NumPy, pyarrow, Zarr and the standard library: none of the project's readers."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


def block_rows(n_rows: int) -> int:
    """Rows of a block, as the format defines them."""
    if n_rows <= 32:
        return n_rows
    blocks = math.ceil(n_rows / 1024)
    return math.ceil(n_rows / blocks / 32) * 32


def token_chunk_rows(block: int, count: int, dim: int) -> int:
    """Rows of a chunk of tokens in blocks of so many rows, as the format defines them."""
    fits = [n for n in range(1, block + 1) if block % n == 0 and 2 * n * count * dim <= 8 * 1024 * 1024]
    return max(fits, default=1)


@dataclass(frozen=True, slots=True)
class Record:
    """A commit record by its name."""

    slide_id: str
    block: int
    seeds: range
    path: Path

    def read(self) -> Any:
        return pq.ParquetFile(self.path).read()


class Subject:
    """The store at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def recipe(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "recipe.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def slides(self) -> dict[str, dict[str, Any]]:
        """Usable slides by id."""
        rows = pq.ParquetFile(self.path / "manifest/slides.parquet").read().to_pylist()
        return {row["slide_id"]: row for row in rows if row["status"] == "ok"}

    @cached_property
    def dim(self) -> int:
        return int(self.recipe["teacher"]["dim"])

    @property
    def tokens(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.recipe.get("tokens")
        return found

    @property
    def attention(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.recipe.get("attention")
        return found

    @property
    def compact(self) -> bool:
        return self.recipe.get("compact") is not None

    def records(self, slide_id: str) -> list[Record]:
        found = []
        for path in sorted((self.path / "manifest/views" / slide_id).glob("*.parquet")):
            block, first, last = path.stem.split("-")
            found.append(Record(slide_id, int(block), range(int(first[1:]), int(last) + 1), path))
        return found

    def begun(self) -> list[str]:
        """Slides of which something was extracted."""
        return [slide_id for slide_id in self.slides if self.records(slide_id)]

    def array(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / name / "zarr.json").read_text())
        return found

    def shards(self, name: str) -> dict[str, Any] | None:
        """The configuration of the codec ``sharding_indexed`` of a packed array; None of a loose one."""
        codecs = self.array(name)["codecs"]
        return codecs[0]["configuration"] if codecs[0]["name"] == "sharding_indexed" else None

    def committed(self, slide_id: str) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """By (seed, block): the rows that a record lists, and which of them are ok."""
        found = {}
        for record in self.records(slide_id):
            table = record.read()
            rows, seeds = table["row"].to_numpy(), table["seed"].to_numpy()
            ok = np.array(table["status"].to_pylist()) == "ok"
            for seed in record.seeds:
                found[seed, record.block] = (rows[seeds == seed], ok[seeds == seed])
        return found
