"""Both stages on a GPU, random weights: bare teacher, stage one end to end, training steps with and without teacher,
and whole commands with each option.

    python -m tests.bench.bench_gpu                                  h-optimus-0 and hibou-l, nine slides
    python -m tests.bench.bench_gpu --part stages --slides 120       stage one for ten minutes
    python -m tests.bench.bench_gpu --device cpu                     anywhere: the demo's encoders, in minutes

Throughput of random weights is that of trained ones. Slides are painted and copied, so that reading is real.
"""

import argparse
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.data.loader import LoaderOptions, ViewLoader
from pipeline.demo.synthetic_slides import write_slide
from pipeline.distill.inputs import open_data
from pipeline.distill.model import Targets
from pipeline.distill.options import DistillOptions
from pipeline.distill.ranks import Ranks
from pipeline.distill.trainer import Trainer, make_trainer
from pipeline.encoders.load import load_encoder
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions
from pipeline.inference import worker
from pipeline.inference.loaded import EncoderSpec, OnDevice, load_on_device
from pipeline.runtime import devices
from pipeline.runtime.progress import Silent
from pipeline.runtime.work import threads_of
from pipeline.tile.options import TileOptions
from tests.bench.gpu_commands import Case, commands
from tests.bench.measure import say
from tests.tools.slide_copies import copy_slide


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    teacher: str
    student: str
    batches: tuple[int, ...]
    step_batches: tuple[int, ...]
    slide_px: int
    slides: int
    seeds: int
    steps: int
    commands: Case


_VIT = "timm:vit_tiny_patch16_224?depth=2"
LARGE = Size("h-optimus-0", "hibou-l", (32, 128, 256), (32, 128), 8192, 9, 4, 30,
             Case("h-optimus-0", "hibou-l", slides=3, seeds=4, batch=32, steps=200, prototypes=1024))  # fmt: skip
SMALL = Size("demo-teacher", "demo-student", (16,), (32,), 2048, 2, 2, 6,
             Case(_VIT, _VIT, slides=2, seeds=2, batch=8, steps=4, prototypes=16))  # fmt: skip


class Clock:
    """Times work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], rounds: int) -> list[float]:
        """Seconds of each round."""
        found = []
        for _ in range(rounds):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - began)
        return found

    def peak(self) -> float:
        """Peak gigabytes of the device since `reset`."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else float("nan")

    def reset(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def matmul_peak(clock: Clock, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product of random numbers."""
    side = 8192 if clock.device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=clock.device, dtype=dtype) for _ in range(2))
    clock.seconds(lambda: a @ b, 5)
    peak = 2 * side**3 / statistics.median(clock.seconds(lambda: a @ b, 15))
    say(f"matrix product {side}, {devices.dtype_name(dtype)}: {peak / 1e12:.1f} TFLOP/s")
    return peak


def flop_per_view(encoder: torch.nn.Module, device: torch.device, side: int) -> float:
    """FLOP of a forward pass, counted by torch."""
    views = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder(views)
    return float(counter.get_total_flops())


def bare(teacher: OnDevice, clock: Clock, size: Size, flop: float, peak: float) -> float:
    """The teacher's forward pass alone, from uint8 views on the device; returns the best views/s without compiling."""
    best = 0.0
    autocast = torch.autocast(clock.device.type, teacher.dtype, enabled=teacher.dtype != torch.float32)
    for compiled in (False, True):
        if compiled and clock.device.type != "cuda":
            continue
        encoder = torch.compile(teacher.encoder) if compiled else teacher.encoder
        for batch in size.batches if not compiled else size.batches[-1:]:
            views = torch.randint(
                0, 256, (batch, teacher.encoder.image_px, teacher.encoder.image_px, 3), dtype=torch.uint8
            ).to(clock.device)

            def forward(encoder: Any = encoder, views: Any = views) -> None:
                with torch.inference_mode(), autocast:
                    encoder(views)

            clock.reset()
            warm = sum(clock.seconds(forward, 2))
            times = clock.seconds(forward, 8)
            speed = batch / statistics.median(times)
            spread = f"{batch / max(times):.1f}-{batch / min(times):.1f}"
            how = "compiled" if compiled else "eager"
            best = best if compiled else max(best, speed)
            say(
                f"bare {size.teacher} {how} batch {batch}: {speed:.1f} views/s ({spread}), model-FLOP utilisation "
                f"{speed * flop / peak:.1%}, peak {clock.peak():.1f} GB, warm-up {warm:.1f} s"
            )
    return best


@contextlib.contextmanager
def utilisation(device: torch.device) -> Iterator[list[float]]:
    """Samples of the driver's share of time with a kernel running; empty without a GPU."""
    samples: list[float] = []
    if device.type != "cuda":
        yield samples
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def read() -> None:
        assert process.stdout is not None
        samples.extend(float(line) for line in process.stdout if line.strip().isdigit())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield samples
    finally:
        process.terminate()
        reader.join()


def write_slides(folder: Path, size: Size) -> None:
    """One painted slide, copied."""
    write_slide(folder / "s0.tiff", seed=5000, width_px=size.slide_px, height_px=size.slide_px)
    for number in range(1, size.slides):
        copy_slide(folder / "s0.tiff", folder / f"s{number}.tiff")
    rows = [f"s{i},p{i},{'val' if i == 0 and size.slides > 1 else 'train'}" for i in range(size.slides)]
    (folder / "slides.csv").write_text("slide_id,patient_id,split\n" + "\n".join(rows) + "\n")


class Pace(Silent):
    """When how many views were done."""

    def __init__(self) -> None:
        self.done: list[tuple[float, int]] = []

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.done = []

    def advance(self, by: int = 1, detail: str = "") -> None:
        self.done.append((time.perf_counter(), by))

    def steady(self) -> float:
        """Views a second after the first quarter: processes have started by then."""
        late = self.done[len(self.done) // 4 :]
        return sum(count for _, count in late[1:]) / (late[-1][0] - late[0][0])


def end_to_end(
    folder: Path, teacher: OnDevice, size: Size, bare_speed: float, flop: float, peak: float
) -> None:
    """Stage one, from slide files to a store, with the teacher that is loaded already."""
    options = ExtractOptions(
        teacher=size.teacher, random_weights=0, seeds=size.seeds, batch_size=teacher.batch_size
    )
    tiling = TileOptions(slides_csv=folder / "slides.csv")
    pace = Pace()
    load, worker.load_on_device = worker.load_on_device, lambda spec: teacher
    try:
        with utilisation(teacher.device) as samples:
            result = extract([folder], folder / "store", options, tiling, pace)
    finally:
        worker.load_on_device = load
    speed = result.views / result.seconds
    steady = pace.steady()
    say(
        f"extract-teacher, after its first quarter: {steady:.1f} views/s, {steady / bare_speed:.3f} of the bare "
        f"forward, model-FLOP utilisation {steady * flop / peak:.1%}"
    )
    hours = 1000 * 10_000 * 4 / steady / 3600
    say(f"1,000 slides of 10,000 patches under 4 seeds at that speed: {hours:.1f} GPU-hours")
    busy = statistics.median(samples[5:-5]) if len(samples) > 20 else float("nan")
    say(
        f"extract-teacher: {result.views} views in {result.seconds:.1f} s: {speed:.1f} views/s, "
        f"{speed / bare_speed:.3f} of the bare forward, model-FLOP utilisation {speed * flop / peak:.1%}, waited for "
        f"data {result.wait_seconds / result.device_seconds:.1%}, GPU idle {1 - min(speed / bare_speed, 1):.1%} by "
        f"the bare forward, driver says {busy:.0f} % busy (median of {len(samples)} samples)"
    )


def steps(
    trainer: Trainer, loader: ViewLoader, clock: Clock, size: Size, teacher: OnDevice | None
) -> tuple[list[float], list[float]]:
    """Seconds of training steps and of waiting for their batches; targets from the store or from `teacher`."""
    times, waits = [], []
    stream = iter(loader)
    for number in range(size.steps + 5):
        began = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - began
        targets = Targets.of(batch)
        if teacher is not None:
            fresh = teacher.launch(batch.views).clone()  # out of inference mode
            targets = Targets(fresh, targets.tokens, targets.positions)
        trainer.step(torch.from_numpy(batch.views), targets, 1e-5, 0.05, number)
        clock.wait()
        times.append(time.perf_counter() - began)
        waits.append(waited)
    return times[5:], waits[5:]


def training(
    folder: Path, teacher: OnDevice | None, clock: Clock, size: Size, peak: float
) -> dict[int, float]:
    """Training steps of the student at each batch size; returns the median seconds."""
    found = {}
    for batch in size.step_batches:
        clock.reset()
        options = DistillOptions(
            student=size.student, slides=(folder,), random_weights=0, batch_size=batch, device=str(clock.device),
            check_views="none", val_views=2,
        )  # fmt: skip
        threads = threads_of(None, 1)
        data = open_data(folder / "store", options, threads, Silent())
        student = load_encoder(size.student, random_weights=0)
        flop = flop_per_view(student, torch.device("cpu"), student.image_px)
        trainer = make_trainer(student, data, options, Ranks(0, 1, 1, clock.device))
        loader_options = LoaderOptions(
            batch, 2048, 1, 0, "none", threads, processes=clock.device.type != "cpu"
        )
        with data.train.loader(loader_options) as loader:
            times, waits = steps(trainer, loader, clock, size, teacher)
        median = statistics.median(times)
        what = "teacher online" if teacher is not None else "from the store"
        say(
            f"distill {size.student} batch {batch}, {what}: {median * 1e3:.0f} ms a step "
            f"({min(times) * 1e3:.0f}-{max(times) * 1e3:.0f}), {batch / median:.1f} views/s, data wait "
            f"{sum(waits) / sum(times):.1%}, model-FLOP utilisation {3 * flop * batch / median / peak:.1%}, "
            f"peak {clock.peak():.1f} GB"
        )
        found[batch] = median
        del trainer, student
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--part", choices=["all", "stages", "commands"], default="all")
    parser.add_argument("--slides", type=int, help="of stage one; 120 take an H200 ten minutes")
    chosen = parser.parse_args()
    device = devices.choose_device(chosen.device)
    size = LARGE if device.type == "cuda" else SMALL
    clock = Clock(device)
    dtype, _ = devices.choose_dtype("auto", device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    say(f"{name}, {os.cpu_count()} CPUs, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if chosen.part in ("all", "stages"):
            (folder / "stages").mkdir()
            many = replace(size, slides=chosen.slides or size.slides)
            stages(folder / "stages", many, clock, dtype)
        if chosen.part in ("all", "commands"):
            (folder / "commands").mkdir()
            write_slides(folder / "commands", replace(size, slides=size.commands.slides))
            if not commands(folder / "commands", size.commands, str(device)):
                sys.exit("a command failed")


def stages(folder: Path, size: Size, clock: Clock, dtype: torch.dtype) -> None:
    """The teacher alone, stage one, and steps with and without the teacher, all in this process."""
    device = clock.device
    painting = threading.Thread(target=write_slides, args=(folder, size))
    painting.start()
    began = time.perf_counter()
    teacher = load_on_device(
        EncoderSpec(size.teacher, random_weights=0, device=str(device), batch_size=size.batches[-1])
    )
    say(f"{size.teacher} made in {time.perf_counter() - began:.0f} s, arithmetic {teacher.identity.dtype}")
    peak = matmul_peak(clock, dtype)
    flop = flop_per_view(teacher.encoder, device, teacher.encoder.image_px)
    say(f"{size.teacher}: {flop / 1e12:.3f} TFLOP a view")
    speed = bare(teacher, clock, size, flop, peak)
    painting.join()
    say(f"slides ready after {time.perf_counter() - began:.0f} s")
    end_to_end(folder, teacher, size, speed, flop, peak)
    online = training(folder, teacher, clock, size, peak)
    del teacher
    alone = training(folder, None, clock, size, peak)
    for batch, seconds in alone.items():
        say(
            f"batch {batch}: a step with the teacher takes {online[batch] / seconds:.2f} times one from the store"
        )


if __name__ == "__main__":
    main()
