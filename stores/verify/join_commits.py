"""Commit records of a block that were written seed by seed, joined into one.

First the joined record is written (renamed into place, flushed), then its parts are removed. So every view is listed
at every moment: a kill in between leaves some views in two records, where the other order would leave hours of a
teacher's work unlisted. The names distinguish the two, because the seeds of a part lie within those of the joined
record: `manifest.commits` ignores a part. Seeds of records that are written side by side never lie within each other,
so nothing else is ignored. The next run finds the part, makes sure that the joined record has all of its rows, and
removes it. A reader that listed the folder before and opens a part afterwards gets an error, never fewer views. Still,
do not read a store while its records are joined.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from stores.format import manifest


def joinable(records: Sequence[manifest.Commit]) -> Iterator[list[manifest.Commit]]:
    """Two or more records of a block whose seeds follow each other, and whose seeds all list the same rows and status.

    Others stay apart: the sampler expects the seeds of a record to have the same rows.
    """
    for _, group in itertools.groupby(records, key=lambda commit: commit.block):
        of_block = list(group)
        if len(of_block) > 1:
            rows = [_rows_of_all_seeds(commit) for commit in of_block]
            starts = [0]
            for i, (one, other) in enumerate(itertools.pairwise(of_block), start=1):
                if one.seeds.stop != other.seeds.start or rows[i - 1] is None or rows[i - 1] != rows[i]:
                    starts.append(i)
            parts = [of_block[i:j] for i, j in itertools.pairwise([*starts, len(of_block)])]
            yield from (part for part in parts if len(part) > 1)


def _rows_of_all_seeds(commit: manifest.Commit) -> list[tuple[int, str]] | None:
    """(row, status) that every seed of a record has, None when they differ."""
    table = commit.read(["seed", "row", "status"])
    found: dict[int, list[tuple[int, str]]] = {seed: [] for seed in commit.seeds}
    for seed, row, status in zip(*(table[n].to_pylist() for n in ("seed", "row", "status")), strict=True):
        if seed not in found:
            return None
        found[seed].append((row, status))
    first = found[commit.seeds.start]
    return first if all(rows == first for rows in found.values()) else None


def join(store: Path, parts: Sequence[manifest.Commit]) -> None:
    """Write the joined record, then remove its parts."""
    seeds = range(parts[0].seeds.start, parts[-1].seeds.stop)
    joined = pa.concat_tables([part.read().select(manifest.VIEWS_SCHEMA.names) for part in parts])
    manifest.write_commit(store, parts[0].slide_id, parts[0].block, seeds, joined)
    for part in parts:
        part.path.unlink()


def replaced(store: Path, slide_id: str) -> list[tuple[manifest.Commit, manifest.Commit]]:
    """Records that do not count, each with the one that does."""
    relied = list(manifest.commits(store, slide_id))
    paths = {commit.path for commit in relied}
    return [
        (part, next(wider for wider in relied if _within(part, wider)))
        for part in manifest.commits(store, slide_id, replaced=True)
        if part.path not in paths
    ]


def _within(part: manifest.Commit, wider: manifest.Commit) -> bool:
    inside = wider.seeds.start <= part.seeds.start and part.seeds.stop <= wider.seeds.stop
    return part.block == wider.block and inside


def has_all(wider: manifest.Commit, part: manifest.Commit) -> bool:
    """Whether a record has every row of another."""
    rows = [set(map(repr, commit.read().to_pylist())) for commit in (part, wider)]
    return rows[0] <= rows[1]
