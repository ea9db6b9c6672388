"""Ten times the slides: time and memory of ``extract-teacher``, and how long ``cli.py --help`` takes.

Each run has a process of its own, which does one slide first, so that what is done once is not counted; time is that
of tiling and extraction, memory the peak of the process.

    python -m tests.bench.bench_growth
"""

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.demo.synthetic_slides import write_slide
from tests.bench.measure import Ratio, race, ratios, rounds, say, spread
from tests.tools.slide_copies import copy_slide

FEW, TIMES, ROUNDS = 6, 10, 5


def run(slides: Path, store: Path) -> tuple[float, float, int]:
    """Seconds, peak megabytes and views of tiling and stage one."""
    command = [sys.executable, "-m", "tests.bench.growth_side", str(slides), str(store)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    for path in (store, store.with_name(store.name + "-first")):
        shutil.rmtree(path)
    seconds, megabytes, n_views = json.loads(done.stdout)
    return seconds, megabytes, n_views


def growth(folder: Path) -> list[Ratio]:
    """Ten times the slides against a few."""
    (folder / "few").mkdir()
    (folder / "many").mkdir()
    write_slide(folder / "few" / "s0.tiff", seed=5000, width_px=2048, height_px=2048)
    for number in range(FEW * TIMES):
        copy_slide(folder / "few" / "s0.tiff", folder / "many" / f"s{number}.tiff")
        if 0 < number < FEW:
            copy_slide(folder / "few" / "s0.tiff", folder / "few" / f"s{number}.tiff")
    found: list[list[tuple[float, float, int]]] = []
    grown: list[float] = []
    for _ in rounds(grown, ROUNDS, patience=90):
        found.append([run(folder / which, folder / "store") for which in ("few", "many")])
        grown.append(found[-1][1][0] / found[-1][0][0])
    few, many = zip(*found, strict=True)
    seconds, memory = (
        ratios([m[i] for m in many], [f[i] for f in few]) for i in (0, 1)
    )  # fmt: skip
    of = f"{few[0][2]} and {many[0][2]} views"
    return [
        Ratio(
            "growth, time of ten times the slides, by ten",
            [value / TIMES for value in seconds],
            0.9,
            f"{spread([f[0] for f in few])} s and {spread([m[0] for m in many])} s, {of}",
            most=1.1,
        ),
        Ratio(
            "growth, peak memory of ten times the slides",
            memory,
            None,
            f"{spread([f[1] for f in few], 0)} MB and {spread([m[1] for m in many], 0)} MB",
            most=1.1,
        ),
    ]


def start() -> Ratio:
    """Seconds that ``--help`` takes beyond starting Python."""
    commands = {"ours": ["cli.py", "--help"], "theirs": ["-c", "pass"]}
    took = race(
        {
            name: functools.partial(
                subprocess.run, [sys.executable, *args], stdout=subprocess.DEVNULL, check=True
            )
            for name, args in commands.items()
        },
        9,
    )
    more = [a - b for a, b in zip(took["ours"], took["theirs"], strict=True)]
    detail = f"{spread(took['ours'], 3)} s, python -c pass {spread(took['theirs'], 3)} s"
    return Ratio("cli.py --help, seconds more than python -c pass", more, detail=detail)


def main() -> list[Ratio]:
    """Measure and print."""
    found = [start()]
    with tempfile.TemporaryDirectory() as name:
        found += growth(Path(name))
    for ratio in found:
        say(ratio.line())
    return found


if __name__ == "__main__":
    main()
