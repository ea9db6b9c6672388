"""Features of 1536 numbers in the store beside plain files.

Reading: rows shuffled chunk by chunk, as stage two takes them, against ``np.memmap`` of the same rows in the same
order; both from the page cache. Writing: a block with its statistics and checksum, flushed to the disk, against
``np.save`` of the same bytes and ``fsync``.

    python -m tests.bench.bench_store
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from stores import features
from tests.bench.measure import Ratio, milliseconds, race, ratios, say, spread

ROWS, SEEDS, DIM, ROUNDS = 8192, 4, 1536, 9
SLIDE = "slide"


def main() -> list[Ratio]:
    """Measure and print."""
    # glibc gives freed memory back at once until an array of this size was freed, as soon happens in both stages
    np.ones(24 << 20, np.uint8).sum()
    rng = np.random.default_rng(0)
    values = rng.standard_normal((SEEDS, ROWS, DIM), np.float32).astype(np.float16)
    coords = np.arange(2 * ROWS, dtype=np.int32).reshape(ROWS, 2)
    blocks = [(seed, block) for seed in range(SEEDS) for block in range(features.n_blocks(ROWS))]
    order = [blocks[i] for i in rng.permutation(len(blocks))]
    shuffles = [rng.permutation(len(features.block_range(ROWS, block))) for _, block in order]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = [folder / f"store{i}" for i in range(ROUNDS + 1)]  # of each round its own, as a run writes
        for store in stores:
            features.create_slide(store, SLIDE, coords, SEEDS, DIM)
        ours, theirs = iter(stores), iter(range(ROUNDS + 1))

        def rows(block: int) -> slice:
            span = features.block_range(ROWS, block)
            return slice(span.start, span.stop)

        def write() -> None:
            store = next(ours)
            for seed, block in blocks:
                features.write_block(store, SLIDE, seed, block, values[seed, rows(block)])

        def save() -> None:
            number = next(theirs)
            for seed, block in blocks:
                with (folder / f"{number}-{seed}-{block}.npy").open("wb") as file:
                    np.save(file, values[seed, rows(block)])
                    file.flush()
                    os.fsync(file.fileno())

        written = race({"ours": write, "theirs": save}, ROUNDS)
        values.tofile(folder / "values.bin")
        mapped = np.memmap(folder / "values.bin", np.float16, "r", shape=values.shape)
        opened = features.open_features(stores[0], SLIDE)
        window = [np.empty((len(shuffle), DIM), np.float16) for shuffle in shuffles]

        def read() -> None:
            for (seed, block), shuffle, out in zip(order, shuffles, window, strict=True):
                np.take(opened.read_block(seed, block), shuffle, axis=0, out=out)

        def gather() -> None:
            for (seed, block), shuffle, out in zip(order, shuffles, window, strict=True):
                np.take(mapped[seed, rows(block)], shuffle, axis=0, out=out)

        gather()
        expected = [out.copy() for out in window]
        read()
        assert all(np.array_equal(a, b) for a, b in zip(window, expected, strict=True))
        taken = race({"ours": read, "theirs": gather}, ROUNDS)
    n = SEEDS * ROWS
    speeds = {key: spread([n / s / 1e6 for s in took]) for key, took in taken.items()}
    found = [
        Ratio(
            "store, chunk-shuffled rows",
            ratios(taken["theirs"], taken["ours"]),
            0.25,
            f"{speeds['ours']} million rows/s, memmap {speeds['theirs']}",
        ),
        Ratio(
            "store, write",
            ratios(written["theirs"], written["ours"]),
            0.5,
            f"{milliseconds(written['ours'], len(blocks))} a block of {values[0, rows(0)].nbytes / 1e6:.1f} MB, "
            f"np.save and fsync {milliseconds(written['theirs'], len(blocks))}",
        ),
    ]
    say(f"store: {n:,} rows of {DIM} in float16, {ROUNDS} rounds in turn, wall clock")
    for ratio in found:
        say(ratio.line())
    return found


if __name__ == "__main__":
    main()
