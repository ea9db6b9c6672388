"""``make bench``: the CPU benchmarks one after another, and which ratios moved since the committed ones.

    python -m tests.bench [PART ...] [--record]

A comparison takes turns until its interval is narrow; a wide one that contains its limit is *undecided*, not missed.
Ends with 1 when a limit is missed. ``--record`` writes ``ratios.json``, to be committed.
"""

import argparse
import sys
import time

from tests.bench import (
    bench_growth,
    bench_read,
    bench_remote,
    bench_several,
    bench_shuffle,
    bench_stages,
    bench_store,
    bench_verify,
    bench_views,
)
from tests.bench.measure import NARROW, Ratio, committed, compare, narrow, record, say

PARTS = {
    "store": bench_store.main,  # first: for minutes after many files were deleted, ext4 makes new ones more slowly
    "views": bench_views.main,
    "read": bench_read.main,
    "growth": bench_growth.main,
    "stages": bench_stages.main,
    "verify": bench_verify.main,
    "shuffle": bench_shuffle.main,
    "remote": bench_remote.main,
    "several": bench_several.main,
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
    wide = [ratio.name for ratio in found if not narrow(ratio.rounds)]
    if wide:
        say(
            f"\nThe machine was too busy for {len(wide)} of {len(found)} ratios, whose intervals are wider than "
            f"{NARROW:.0%}: {'; '.join(wide)}"
        )
    for verdict in ("undecided", "missed"):
        names = [ratio.name for ratio in found if ratio.verdict == verdict]
        say(f"\n{len(names)} limits {verdict}{': ' if names else ''}{'; '.join(names)}")
    return int(any(ratio.verdict == "missed" for ratio in found))


if __name__ == "__main__":
    sys.exit(main())
