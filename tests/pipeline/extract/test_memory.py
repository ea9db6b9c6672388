"""Stage one's memory does not grow with the number of slides (measured at 20 and 200 in docs/benchmarks.md)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.demo.synthetic_slides import write_slide
from tests.tools.settings import ROOT
from tests.tools.slide_copies import copy_slide


def peak(slides: Path, n_slides: int, store: Path) -> int:
    """Peak resident bytes of stage one, tiling included, over the first slides of a folder."""
    command = [
        sys.executable,
        "cli.py",
        "extract-teacher",
        *(str(slides / f"s{i}.tiff") for i in range(n_slides)),
    ]
    command += [
        "--store",
        str(store),
        "--teacher",
        "tests.tools.tiny:teacher",
        "--random-weights",
        "0",
        "--seeds",
        "2",
    ]
    done = subprocess.run(
        [*command, "--threads", "2", "--json"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    summary = json.loads(done.stdout)
    assert summary["complete"] == 1.0
    return int(summary["peak_rss_bytes"])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_slides(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(slides / "s0.tiff", seed=1, width_px=1024, height_px=1024)
    for i in range(1, 40):
        copy_slide(slides / "s0.tiff", slides / f"s{i}.tiff")
    few, many = (peak(slides, n, tmp_path / f"store{n}") for n in (8, 40))
    assert many < 1.1 * few
