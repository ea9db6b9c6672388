"""Reading patches on one core, beside openslide's read_region of the same patches.

Patches come in the order of the store's rows, as both stages read them; OpenSlide's own cache is on. Its time is that
of ``read_region`` alone, which returns RGBA; ours is that of a patch, RGB.

    python -m tests.bench.bench_read
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import tifffile

from pipeline.demo.synthetic_slides import paint_slide
from pipeline.slides.openslide_reader import OpenSlidePatches, flatten
from pipeline.slides.resample import resample_area
from pipeline.slides.slide import ReadPlan
from pipeline.tile.grid import morton_order
from tests.bench.measure import Ratio, milliseconds, race, ratios, say

SLIDES = Path(__file__).resolve().parents[3] / "shared" / "data" / "slides"
APERIO, JPEG2000 = SLIDES / "CMU-1-Small-Region.svs", SLIDES / "TCGA-CR-7395-01A-01-TS1.svs"
ROUNDS = 6


def grid(width: int, height: int, step: int) -> list[tuple[int, int]]:
    """Corners of whole patches, in Morton order."""
    column, row = (a.ravel() for a in np.meshgrid(np.arange(width // step), np.arange(height // step)))
    order = morton_order(column, row)
    return [(int(x) * step, int(y) * step) for x, y in zip(column[order], row[order], strict=True)]


def pixels_of(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return flatten(slide.read_region((0, 0), 0, slide.dimensions), (255, 255, 255))


def tiled(path: Path, pixels: np.ndarray, tile_px: int, compression: str) -> Path:
    """A generic TIFF of the same pixels."""
    args = {"level": 80} if compression == "jpeg" else {"level": 6}
    extra: dict[str, Any] = {"subsampling": (2, 2)} if compression == "jpeg" else {}
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(tile_px, tile_px), compression=compression, compressionargs=args,
        metadata=None, **extra,
    )  # fmt: skip
    return path


def compare(name: str, path: Path, read_px: int, least: float | None, exact: bool = True) -> Ratio:
    """Race over all patches of a slide; 256 px come out of each, whatever is read."""
    with openslide.OpenSlide(path) as slide:
        corners = grid(*slide.dimensions, read_px)
    plan = ReadPlan(0, read_px, 256, read_px, 0.5)
    identical = same(path, plan, corners)
    assert identical == len(corners), f"{name}: {identical} of {len(corners)} patches are OpenSlide's"

    def theirs() -> None:
        with openslide.OpenSlide(path) as slide:
            for corner in corners:
                region = slide.read_region(corner, 0, (read_px, read_px))
                if read_px != 256:
                    resample_area(flatten(region, (255, 255, 255)), 256)

    def ours() -> None:
        reader = OpenSlidePatches(path, plan)
        for corner in corners:
            reader.read(*corner)
        reader.close()

    took = race({"ours": ours, "theirs": theirs}, ROUNDS, time.thread_time)
    n = len(corners)
    detail = (
        f"{milliseconds(took['ours'], n)} a patch, OpenSlide {milliseconds(took['theirs'], n)}; "
        f"{identical} of {n} patches identical"
    )
    return Ratio(name, ratios(took["theirs"], took["ours"]), least, detail)


def same(path: Path, plan: ReadPlan, corners: Sequence[tuple[int, int]]) -> int:
    """How many patches have OpenSlide's pixels."""
    reader, count = OpenSlidePatches(path, plan), 0
    with openslide.OpenSlide(path) as slide:
        for corner in corners:
            expected = flatten(slide.read_region(corner, 0, (plan.read_px, plan.read_px)), (255, 255, 255))
            if plan.read_px != plan.size_px:
                expected = resample_area(expected, plan.size_px)
            count += int(np.array_equal(reader.read(*corner), expected))
    reader.close()
    return count


def profile(path: Path) -> None:
    """Where the time of a patch goes, OpenSlide's way and ours."""
    with openslide.OpenSlide(path) as slide:
        corners = grid(*slide.dimensions, 256)
        parts: dict[str, Callable[[], object]] = {
            "OpenSlide, read_region": lambda: [slide.read_region(c, 0, (256, 256)) for c in corners],
            "OpenSlide, read_region of what is in its cache": lambda: [
                slide.read_region(corners[0], 0, (256, 256)) for _ in corners
            ],
        }
        plan = ReadPlan(0, 256, 256, 256, 0.5)
        reader = OpenSlidePatches(path, plan)
        tiles = reader._tiles
        assert tiles is not None
        level = tiles._level
        numbers = range(len(level.sizes))
        data = [tiles._data(i, int(level.sizes[i])) for i in numbers]
        tile = np.empty((level.tile_px[1], level.tile_px[0], 3), np.uint8)
        parts |= {
            "ours, all": lambda: [reader.read(*c) for c in corners],
            "ours, reading each tile's bytes once": lambda: [
                tiles._data(i, int(level.sizes[i])) for i in numbers
            ],
            "ours, decoding each tile once": lambda: [level.codec.decode(d, tile) for d in data],  # type: ignore[func-returns-value]
        }
        took = race(parts, ROUNDS, time.thread_time, patience=0)
        reader.close()
    say(f"profile of {path.name}, a patch of 256 px:")
    for name, values in took.items():
        say(f"  {milliseconds(values, len(corners)):>26}  {name}")


def main() -> list[Ratio]:
    """Measure and print."""
    cv2.setNumThreads(1)
    say("reading patches, one core; rounds in turn, CPU time of the thread")
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = APERIO.exists()
        pixels = pixels_of(APERIO) if real else paint_slide(5, 2048, 2048)[0]
        say("pixels of CMU-1-Small-Region" if real else "painted pixels: the folder of real slides is absent")
        aligned = tiled(folder / "aligned.tiff", pixels, 256, "jpeg")
        apart = APERIO if real else tiled(folder / "apart.tiff", pixels, 240, "jpeg")
        found += [
            compare("read, JPEG tiles of the grid", aligned, 256, 4),
            compare("read, JPEG tiles of 240 px", apart, 256, 3),
            compare("read, 512 to 256 px, JPEG tiles of the grid", aligned, 512, 3),
            compare("read, 512 to 256 px, JPEG tiles of 240 px", apart, 512, 3),
            compare("read, 507 to 256 px, JPEG tiles of 240 px", apart, 507, None),
            compare("read, Deflate tiles of the grid", tiled(folder / "d.tiff", pixels, 256, "deflate"), 256, None),
        ]  # fmt: skip
        if JPEG2000.exists():
            found.append(compare("read, JPEG 2000 tiles of the grid", JPEG2000, 256, 1.3))
        for ratio in found:
            say(ratio.line())
        profile(apart)
        if JPEG2000.exists():
            profile(JPEG2000)
    return found


if __name__ == "__main__":
    main()
