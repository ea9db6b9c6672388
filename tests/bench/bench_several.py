"""``distill`` from three stores against one: CPU time of a step, peak memory, and how often a view is rendered.

Each run has a process of its own. The teachers are of the widths of UNI2-h, Virchow2 and H-optimus-0, and compute next
to nothing, since stage two never loads them. CPU time, because a machine that is busy with other work changes it least;
of the steps after the first one, reading and rendering in other threads included.

    python -m tests.bench.bench_several
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import api
from pipeline.demo.synthetic_slides import write_slide
from tests.bench.measure import Ratio, ratios, rounds, say, spread
from tests.tools.slide_copies import copy_slide
from tests.tools.tiny import Tiny

SLIDES, ROUNDS = 6, 3


def uni2() -> nn.Module:
    """1536-d features."""
    return Tiny(1536)


def virchow2() -> nn.Module:
    """2560-d features."""
    return Tiny(2560)


def optimus() -> nn.Module:
    """1536-d features."""
    return Tiny(1536)


TEACHERS = (uni2, virchow2, optimus)


def write_family(folder: Path) -> list[Path]:
    """Three stores of the same slides, without pixels."""
    slides = folder / "slides"
    slides.mkdir()
    write_slide(slides / "s0.tiff", seed=5000, width_px=2048, height_px=2048)
    for number in range(1, SLIDES):
        copy_slide(slides / "s0.tiff", slides / f"s{number}.tiff")
    stores = [folder / teacher.__name__ for teacher in TEACHERS]
    for number, (store, teacher) in enumerate(zip(stores, TEACHERS, strict=True)):
        asked: dict[str, Any] = {"teacher": f"tests.bench.bench_several:{teacher.__name__}"}
        asked |= {"like": stores[0]} if number else {"seeds": 4}
        api.extract([slides], store, random_weights=number, threads=2, device="cpu", **asked)
    return stores


def run(folder: Path, stores: list[Path]) -> dict[str, float]:
    """What ``several_side`` measured of a training."""
    command = [sys.executable, "-m", "tests.bench.several_side", str(folder / "slides"), *map(str, stores)]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))


def main() -> list[Ratio]:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = write_family(folder)
        one: list[dict[str, float]] = []
        three: list[dict[str, float]] = []
        found: list[float] = []
        for number in rounds(found, ROUNDS, patience=60):
            for side, chosen in ((one, stores[:1]), (three, stores))[:: 1 if number % 2 == 0 else -1]:
                side.append(run(folder, chosen))
            found.append(three[-1]["cpu_s"] / one[-1]["cpu_s"])

    def of(figure: str) -> tuple[list[float], list[float]]:
        return [r[figure] for r in three], [r[figure] for r in one]

    (memory, memory_of_one), (cpu, cpu_of_one) = of("peak_mb"), of("cpu_s")
    most = max(times for side in of("most") for times in side)
    result = [
        Ratio(
            "distill, CPU time of a step from three stores, against one",
            found,
            None,
            f"{spread(cpu_of_one, 3)} s and {spread(cpu, 3)} s; a view is rendered {most:.0f} times at most",
        ),
        Ratio(
            "distill, peak memory from three stores, against one",
            ratios(memory, memory_of_one),
            None,
            f"{spread(memory_of_one, 0)} MB and {spread(memory, 0)} MB",
        ),
    ]
    for ratio in result:
        say(ratio.line())
    return result


if __name__ == "__main__":
    main()
