"""``make bench``: the CPU benchmarks one after another, and which ratios moved since the committed ones.

    python -m tests.bench [PART ...] [--record]

Ends with 1 when a limit is missed. ``--record`` writes ``ratios.json``, to be committed.
"""

import argparse
import sys
import time

from tests.bench import (
    bench_growth,
    bench_read,
    bench_remote,
    bench_shuffle,
    bench_stages,
    bench_store,
    bench_verify,
    bench_views,
)
from tests.bench.measure import Ratio, committed, compare, record, say

PARTS = {
    "store": bench_store.main,  # first: for minutes after many files were deleted, ext4 makes new ones more slowly
    "views": bench_views.main,
    "read": bench_read.main,
    "growth": bench_growth.main,
    "stages": bench_stages.main,
    "verify": bench_verify.main,
    "shuffle": bench_shuffle.main,
    "remote": bench_remote.main,
}


def main() -> int:
    """Measure, print, compare; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", help=f"which to run, all when none is named: {', '.join(PARTS)}")
    parser.add_argument("--record", action="store_true", help="commit these ratios from now on")
    chosen = parser.parse_args()
    unknown = set(chosen.part) - set(PARTS)
    if unknown:
        parser.error(f"{min(unknown)}: no such part; allowed: {', '.join(PARTS)}")
    found: list[Ratio] = []
    began = time.monotonic()
    for name in chosen.part or PARTS:
        say(f"\n## {name}")
        found += PARTS[name]()
    say(f"\n## Summary, after {(time.monotonic() - began) / 60:.1f} min: ratio (least-most), limit")
    for ratio in found:
        say(ratio.line())
    moved = compare(found, committed(), whole=not chosen.part)
    say("\n## Since the committed ratios\n" + ("\n".join(moved) or "nothing moved"))
    if chosen.record:
        record(found)
    missed = [ratio.name for ratio in found if not ratio.holds]
    say(f"\n{len(missed)} of {len(found)} limits missed{': ' if missed else ''}{'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
