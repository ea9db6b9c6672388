"""Features of 1536 numbers in the store beside plain files.

Reading: rows shuffled chunk by chunk, as stage two takes them, checksum and whether they are finite included, against
``np.memmap`` of the same rows in the same order; both from the page cache. Writing: a block under four seeds with its
statistics and checksums, flushed to the disk, against ``np.save`` of the same four arrays, each with ``fsync``. What
was written leaves the page cache before the next turn: memory that a virtual machine never touched takes several times
as long to fill, and would go to one side or the other by chance.

    python -m tests.bench.bench_store
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from stores.format import features
from stores.format.feature_rows import RowReader
from tests.bench.measure import Ratio, milliseconds, race, ratios, say, spread

SEEDS, DIM, READS, WRITES, SHUFFLED, HELD = 4, 1536, 7, 23, 8, 8
SLIDE = "slide"


def forget(folder: Path) -> None:
    """Take all files below `folder` out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def main() -> list[Ratio]:
    """Measure and print."""
    n_rows = (1 + WRITES) * features.MAX_BLOCK_ROWS
    rng = np.random.default_rng(0)
    values = rng.standard_normal((SEEDS, n_rows, DIM), np.float32).astype(np.float16)
    coords = np.arange(2 * n_rows, dtype=np.int32).reshape(n_rows, 2)
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), Path(name) / "store"
        features.create_slide(store, SLIDE, coords, SEEDS, DIM)
        spans = [features.block_range(n_rows, block) for block in range(features.n_blocks(n_rows))]
        parts = [np.ascontiguousarray(values[:, span.start : span.stop]) for span in spans]
        ours, theirs = iter(range(len(spans))), iter(range(len(spans)))

        def write() -> None:
            block = next(ours)
            features.write_seeds(store, SLIDE, range(SEEDS), block, parts[block])

        def save() -> None:
            block = next(theirs)
            for seed in range(SEEDS):
                with (folder / f"{seed}-{block}.npy").open("wb") as file:
                    np.save(file, parts[block][seed])
                    file.flush()
                    os.fsync(file.fileno())

        written = race({"ours": write, "theirs": save}, WRITES, after=lambda: forget(folder), patience=0)
        values.tofile(folder / "values.bin")
        mapped = np.memmap(folder / "values.bin", np.float16, "r", shape=values.shape)
        reader = RowReader(store, HELD)
        order = rng.permutation(
            [(seed, block) for seed in range(SEEDS) for block in range(SHUFFLED)]
        ).tolist()
        listed = [(seed, block, rng.permutation(len(spans[block]))) for seed, block in order]

        def read_one(seed: int, block: int, shuffle: np.ndarray) -> np.ndarray:
            return reader.read(SLIDE, seed, block, shuffle + spans[block].start)

        def gather_one(seed: int, block: int, shuffle: np.ndarray) -> np.ndarray:
            return mapped[seed, spans[block].start : spans[block].stop][shuffle]

        assert all(np.array_equal(read_one(*of), gather_one(*of)) for of in listed)
        taken = race(
            {
                "ours": lambda: [len(read_one(*of)) for of in listed],
                "theirs": lambda: [len(gather_one(*of)) for of in listed],
            },
            READS,
        )
    n = sum(len(shuffle) for *_, shuffle in listed)
    speeds = {key: spread([n / s / 1e6 for s in took]) for key, took in taken.items()}
    found = [
        Ratio(
            "store, chunk-shuffled rows",
            ratios(taken["theirs"], taken["ours"]),
            detail=f"{speeds['ours']} million rows/s, memmap {speeds['theirs']}",
        ),
        Ratio(
            "store, write",
            ratios(written["theirs"], written["ours"]),
            detail=f"{milliseconds(written['ours'], SEEDS)} for one seed's {parts[0][0].nbytes / 1e6:.1f} MB, "
            f"np.save and fsync {milliseconds(written['theirs'], SEEDS)}",
        ),
    ]
    say(f"store: rows of {DIM} in float16; {n:,} read in {READS} rounds, {WRITES} blocks written; wall clock")
    for ratio in found:
        say(ratio.line())
    return found


if __name__ == "__main__":
    main()
