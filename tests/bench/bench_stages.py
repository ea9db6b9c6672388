"""Both stages on a CPU beside what they cannot be faster than.

    python -m tests.bench.bench_stages

- ``extract-teacher``, from slide files to a store, against the same teacher's bare forward pass at the same batch size
  and number of threads (ViT-Ti, about 20 ms a view);
- the loader of stage two against reading and rendering the same views and nothing else;
- a training step from the store (ViT-S student) against the same step with the teacher online (ViT-B).

Pixels are those of CMU-1-Small-Region in JPEG tiles of 256 px where the folder of real slides is there, painted else.
"""

import itertools
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.data.committed import BlockCache
from pipeline.data.loader import LoaderOptions
from pipeline.demo.synthetic_slides import paint_slide
from pipeline.distill.inputs import Data, open_data
from pipeline.distill.model import Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Ranks
from pipeline.distill.trainer import Trainer, make_trainer
from pipeline.encoders.load import load_encoder
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.inference import worker
from pipeline.inference.loaded import EncoderSpec, OnDevice, load_on_device
from pipeline.runtime.progress import Silent
from pipeline.runtime.work import threads_of
from pipeline.slides.sources import Reader, Source
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from pipeline.views import draw
from pipeline.views.render import render
from stores import sampler
from tests.bench.bench_gpu import flop_per_view
from tests.bench.bench_read import APERIO, pixels_of, tiled
from tests.bench.measure import Ratio, race, ratios, rounds, say, spread
from tests.tools.slide_copies import copy_slide

TEACHER, STUDENT, ONLINE = (f"timm:vit_{size}_patch16_224" for size in ("tiny", "small", "base"))
SLIDES, SEEDS, ROUNDS, STEPS, BATCH = 4, 4, 5, 7, 8
BEFORE, COUNTED = 6, 8
"""Windows."""


def write_slides(folder: Path, repeat: int = 1) -> TileOptions:
    """The same slide a few times, one of them held out; its pixels are repeated in both directions."""
    folder.mkdir()
    real = APERIO.exists()
    pixels = pixels_of(APERIO) if real else paint_slide(5, 2048, 2048)[0]
    pixels = np.tile(pixels, (repeat, repeat, 1))
    tiled(folder / "s0.tiff", pixels, 256, "jpeg")
    for number in range(1, SLIDES):
        copy_slide(folder / "s0.tiff", folder / f"s{number}.tiff")
    rows = [f"s{i},p{i},{'val' if i == 0 else 'train'}" for i in range(SLIDES)]
    (folder / "slides.csv").write_text("slide_id,patient_id,split\n" + "\n".join(rows) + "\n")
    given = tuple(f"s{i}=0.5" for i in range(SLIDES))
    return TileOptions(slides_csv=folder / "slides.csv", slide_mpp=given)


def bench_extract(folder: Path, tiling: TileOptions) -> Ratio:
    """Stage one end to end: reading, rendering, encoding, writing, committing; the slides are tiled before."""
    threads = threads_of(None, 1)
    teacher = load_on_device(
        EncoderSpec(TEACHER, random_weights=0, device="cpu", dtype="float32", batch_size=16)
    )
    before = folder / "tiled"
    tile([folder], before, tiling, Silent())
    options = ExtractOptions(teacher=TEACHER, random_weights=0, seeds=SEEDS, batch_size=16, device="cpu")
    numbers = itertools.count()
    views_of: list[int] = []

    def run() -> None:
        store = folder / f"extracted{next(numbers)}"
        shutil.copytree(before, store)
        result = extract([folder], store, options, tiling, Silent())
        views_of.append(result.views)

    with teacher_given(teacher):
        run()
        n_views = views_of[0]
        batch = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:

            def bare() -> None:
                list(pool.map(lambda _: teacher.launch(batch).numpy(), range(round(n_views / 16))))

            took = race({"ours": run, "theirs": bare}, ROUNDS, warm=False, patience=60)
    torch.set_num_threads(threads)  # MKL keeps one number for all threads: the pool's is still set
    per_view = spread([s / n_views * 1e3 for s in took["theirs"]], 1)
    return Ratio(
        "extract-teacher, against the bare forward pass",
        ratios(took["theirs"], took["ours"]),
        0.90,
        f"{spread([n_views / s for s in took['ours']], 1)} views/s of {n_views} views, {threads} threads, "
        f"{TEACHER.removeprefix('timm:')} alone {per_view} ms a view",
    )


class teacher_given:
    """Stage one uses a teacher that is loaded already."""

    def __init__(self, teacher: OnDevice) -> None:
        self.teacher = teacher

    def __enter__(self) -> None:
        self.load, worker.load_on_device = worker.load_on_device, lambda spec: self.teacher

    def __exit__(self, *error: object) -> None:
        worker.load_on_device = self.load


def calls_of(
    data: Data, window: int, n_views: int
) -> list[tuple[Source, int, int, int, list[draw.ViewParams]]]:
    """What the loader reads and renders for the first views of the stream, in its order."""
    stream = sampler.Stream(data.train.units, 0, window, 1)
    cache, found, count = BlockCache(data.train.store), [], 0
    for plan in stream.windows():
        for share in plan.shares:
            block = cache.commit(share.segment.commit)
            listed = zip(share.rows.tolist(), share.seeds.tolist(), strict=True)
            for row, group in itertools.groupby(listed, key=lambda view: view[0]):
                x, y, wanted = block.request(row, {seed: False for _, seed in group})
                source = data.train.sources[share.segment.commit.slide_id]
                found.append((source, row, x, y, [stored.params for stored in wanted]))
        count += plan.n_views
        if count >= n_views:
            return found
    raise AssertionError("the stream is endless")


def bench_loader(folder: Path, store: Path, kept: bool) -> list[Ratio]:
    """Windows as `ViewLoader` makes them against decoding and rendering the same views, with as many threads.

    From the end of a window to the end of another, so that views which are counted and views which are made are as
    many; the windows before, in which files are opened and memory is touched first, make a ratio of their own.
    """
    threads, window = threads_of(None, 1), 1024
    slides = () if kept else (folder,)
    options = DistillOptions(
        student=STUDENT, slides=slides, random_weights=0, device="cpu", check_views="none", val_views=2
    )
    data = open_data(store, options, threads, Silent())
    plans = sampler.Stream(data.train.units, 0, window, 1).windows()
    ends = list(itertools.accumulate(next(plans).n_views for _ in range(BEFORE + COUNTED)))
    n_before, n_views = ends[BEFORE - 1], ends[-1] - ends[BEFORE - 1]
    listed = calls_of(data, window, n_views)
    n_listed = sum(len(params) for *_, params in listed)

    def loader() -> tuple[float, float]:
        """Seconds of the first windows with opening, and of those after."""
        chosen = LoaderOptions(32, window, 1, 0, "none", threads)
        times, seen = [time.perf_counter()], 0
        with data.train.loader(chosen) as batches:
            stream = iter(batches)
            for end in (n_before, ends[-1]):
                while seen + 32 <= end:
                    seen += len(next(stream).views)
                times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    out = np.empty((224, 224, 3), np.uint8)

    def some(part: Sequence[tuple[Source, int, int, int, list[draw.ViewParams]]]) -> None:
        readers: dict[str, Reader] = {}
        for source, row, x, y, params in part:
            if source.key not in readers:
                readers[source.key] = source.open()
            patch = readers[source.key].read(row, x, y)
            for drawn in params:
                np.copyto(out, render(patch, drawn, data.train.policy))
        for reader in readers.values():
            reader.close()

    half = -(-len(listed) // threads)
    with ThreadPoolExecutor(threads) as pool:

        def floor() -> float:
            began = time.perf_counter()
            list(pool.map(some, [listed[i : i + half] for i in range(0, len(listed), half)]))
            return (time.perf_counter() - began) * (n_views / n_listed)

        floor()
        pairs: list[tuple[tuple[float, float], float]] = []
        found: list[float] = []
        for number in rounds(found, 7, patience=40):
            pairs.append((loader(), floor()) if number % 2 else (floor(), loader())[::-1])
            found.append(pairs[-1][1] / pairs[-1][0][1])
    ours, floors = [steady for (_, steady), _ in pairs], [seconds for _, seconds in pairs]
    first = [begun / n_before * n_views for (begun, _), _ in pairs]
    where = "kept pixels" if kept else "slide files"
    return [
        Ratio(
            f"loader of stage two, {where}, against reading and rendering alone",
            found,
            0.90,
            f"{spread([n_views / s for s in ours], 0)} views/s, floor "
            f"{spread([n_views / s for s in floors], 0)}, {threads} threads",
        ),
        Ratio(
            f"loader of stage two, {where}, its first {n_before:,} views, with opening",
            ratios(floors, first),
            detail=f"{spread([begun for (begun, _), _ in pairs])} s",
        ),
    ]


def peak_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def batches_of(data: Data) -> Iterator[Any]:
    chosen = LoaderOptions(BATCH, 1024, 1, 0, "none", threads_of(None, 1))
    with data.train.loader(chosen) as loader:
        yield from loader


def bench_distill(folder: Path, store: Path) -> list[Ratio]:
    """A step from the store and the same step with the teacher online, in turn; waiting for data is part of both."""
    options = DistillOptions(
        student=STUDENT, slides=(folder,), random_weights=0, batch_size=BATCH, device="cpu", check_views="none",
        val_views=2,
    )  # fmt: skip
    data = open_data(store, options, threads_of(None, 1), Silent())
    student = load_encoder(STUDENT, random_weights=0)
    flop = flop_per_view(student, torch.device("cpu"), 224)
    trainer = make_trainer(student, data, options, Ranks(0, 1, 1, torch.device("cpu")))
    stream = batches_of(data)
    waits: list[float] = []
    numbers = itertools.count()
    online: list[OnDevice] = []

    def step(teacher: OnDevice | None, trainer: Trainer = trainer) -> None:
        began = time.perf_counter()
        batch = next(stream)
        waits.append(time.perf_counter() - began)
        targets = Targets.of(batch)
        if teacher is not None:
            # 192 numbers were stored: as many of the teacher's 768 stand in for its features
            features = teacher.launch(batch.views)[:, : data.train.recipe.teacher.dim].clone()
            targets = Targets(features, targets.tokens, targets.positions)
        trainer.step(torch.from_numpy(batch.views), targets, 1e-5, 0.05, next(numbers))

    for _ in range(2):
        step(None)
    alone = peak_rss()
    online.append(
        load_on_device(EncoderSpec(ONLINE, random_weights=0, device="cpu", dtype="float32", batch_size=BATCH))
    )
    teacher_flop = flop_per_view(online[0].encoder, torch.device("cpu"), 224)
    size = sum(p.numel() * p.element_size() for p in online[0].encoder.parameters()) / 1e9
    step(online[0])
    both = peak_rss()
    waits.clear()
    took = race(
        {"ours": lambda: step(None), "theirs": lambda: step(online[0])}, STEPS, warm=False, patience=40
    )
    stream.close()  # type: ignore[attr-defined]
    expected = 1 + teacher_flop / (3 * flop)
    share = [wait / step for wait, step in zip(waits[::2], took["ours"], strict=True)]
    found = ratios(took["theirs"], took["ours"])
    return [
        Ratio(
            "distill, a step with the teacher online against one from the store, by the ratio of their FLOP",
            [ratio / expected for ratio in found],
            0.85,
            f"{spread(found)} times as long, {expected:.2f} times the FLOP; {spread(took['ours'])} s a step of "
            f"{BATCH} views from the store; peak memory {alone:.2f} GB against {both:.2f} GB, teacher {size:.2f} GB",
            most=1.25,
        ),
        Ratio(
            "distill, share of a step that waits for data (ViT-S)",
            share,
            detail="from slide files",
            most=0.05,
        ),
    ]


def main() -> list[Ratio]:
    """Measure and print."""
    cv2.setNumThreads(1)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder, large = Path(name) / "small", Path(name) / "large"
        found.append(bench_extract(folder, write_slides(folder)))
        say(found[-1].line())
        tiling = write_slides(large, 2)
        for kept in (False, True):
            options = ExtractOptions(
                teacher="tests.tools.tiny:teacher", random_weights=0, seeds=SEEDS, device="cpu", pixels=kept
            )
            store = Path(name) / f"pixels {kept}"
            extract([large], store, options, tiling, Silent())
            for ratio in bench_loader(large, store, kept):
                found.append(ratio)
                say(ratio.line())
        for ratio in bench_distill(folder, folder / "extracted0"):
            found.append(ratio)
            say(ratio.line())
    return found


if __name__ == "__main__":
    main()
