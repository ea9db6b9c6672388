"""``store reindex``: brings in line what follows from other things, without slides or teacher.

Checksums that older versions did not write, block statistics, and commit records that were written seed by seed.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from stores import arrays, features, files, layout, manifest, recipe
from stores.errors import StoreError
from stores.findings import Progress


def reindex(store: Path, dry_run: bool, start: Callable[[int], None], progress: Progress) -> list[str]:
    """Do what is needed, or with `dry_run` only say it; a line for each thing.

    Raises
    ------
    OptionError
        When the store is sealed.
    """
    layout.require_unsealed(store)
    done: list[str] = []
    swept = sum(1 for _ in store.rglob(f"*{files.PARTIAL}")) if dry_run else files.sweep_partials(store)
    if swept:
        done.append(f"{swept} unfinished files removed")
    stored = recipe.load(store)
    if "digest" not in files.read_json(store / recipe.FILE_NAME):
        done.append("recipe.json: digest added")
        if not dry_run:
            recipe.save(store, stored)
    rows = manifest.read_slides(store)
    if _lacks_checksum(manifest.slides_path(store)):
        done.append("manifest/slides.parquet: checksum added")
        if not dry_run:
            manifest.write_slides(store, rows)
    usable = [row["slide_id"] for row in rows if row["status"] == manifest.OK]
    start(len(usable))
    for slide_id in usable:
        for line in itertools.chain(
            _patches(store, slide_id, dry_run),
            _records(store, slide_id, dry_run),
            () if stored.compact is not None else _statistics(store, slide_id, dry_run),
        ):
            done.append(f"slide {slide_id}: {line}")
        progress(1, slide_id)
    return done


def _lacks_checksum(path: Path) -> bool:
    return path.is_file() and manifest.checksum_matches(path.read_bytes()) is None


def _patches(store: Path, slide_id: str, dry_run: bool) -> Iterator[str]:
    if _lacks_checksum(manifest.patches_path(store, slide_id)):
        yield "checksum added to its patches"
        if not dry_run:
            found = manifest.read_patches(store, slide_id)
            manifest.write_patches(store, slide_id, found.x_px0, found.y_px0, found.tissue)


def _records(store: Path, slide_id: str, dry_run: bool) -> Iterator[str]:
    """Join records of a block whose seeds follow each other; add checksums; remove what a joined record replaced.

    The joined record is written first and the parts go after it. A kill in between leaves both, which is no harm:
    `manifest.commits` passes over a record whose seeds lie within a wider one of its block.
    """
    records = list(manifest.commits(store, slide_id))
    for block, group in itertools.groupby(records, key=lambda commit: commit.block):
        for run in _runs(list(group)):
            if len(run) > 1:
                seeds = range(run[0].seeds.start, run[-1].seeds.stop)
                yield f"{len(run)} commit records of block {block} joined to seeds {seeds.start}-{seeds.stop - 1}"
                if not dry_run:
                    joined = pa.concat_tables([commit.read() for commit in run])
                    manifest.write_commit(store, slide_id, block, seeds, joined)
            elif _lacks_checksum(run[0].path):
                yield f"checksum added to {run[0].path.name}"
                if not dry_run:
                    manifest.write_commit(store, slide_id, block, run[0].seeds, run[0].read())
    kept = {commit.path for commit in manifest.commits(store, slide_id)}
    for path in sorted((store / "manifest" / "views" / slide_id).glob("*.parquet")):
        known = layout.classify(str(path.relative_to(store)))
        if known is not None and path not in kept:
            yield f"{path.name} removed, a wider record has its views"
            if not dry_run:
                path.unlink()


def _runs(records: list[manifest.Commit]) -> Iterator[list[manifest.Commit]]:
    """Records whose seeds follow each other and that list the same rows."""
    run: list[manifest.Commit] = []
    rows: set[int] = set()
    for commit in records:
        mine = set(commit.read(["row"])["row"].to_pylist())
        if run and run[-1].seeds.stop == commit.seeds.start and mine == rows:
            run.append(commit)
            continue
        if run:
            yield run
        run, rows = [commit], mine
    if run:
        yield run


def _statistics(store: Path, slide_id: str, dry_run: bool) -> Iterator[str]:
    name = features.array_name(slide_id, "stats")
    for commit in manifest.commits(store, slide_id):
        for seed in commit.seeds:
            values = features.open_features(store, slide_id).read_block(seed, commit.block)
            expected = features.mean_and_variance(values)
            try:
                spec = arrays.read_metadata(store, name)
                chunk = arrays.read_chunk(store, name, spec, (seed, commit.block, 0, 0))
            except StoreError:
                chunk = None
            if chunk is None or not np.allclose(chunk[0, 0], expected, rtol=1e-9, atol=0, equal_nan=True):
                yield f"statistics of block {commit.block} seed {seed} computed again"
                if not dry_run:
                    features.write_stats(store, slide_id, seed, commit.block, values)
