"""Peak memory of a training step on a CPU, beside what ``plan --student`` says: one measurement in a fresh process.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=0 \
        python -m tests.bench.memory_side hibou-l 2 '{"checkpointing": true}'

The variables make the C library give back what is freed; else gaps of the heap are measured too. What Python and the
libraries take is measured first, after a step of a tiny student, and subtracted.

The options are those of ``distill``; beside them ``teachers`` (their names) and ``tokens`` of each view.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.distill import loss_spec, memory
from pipeline.distill.options import DistillOptions
from pipeline.distill.taught import Named, of_teachers
from pipeline.distill.trainer import make_trainer
from pipeline.encoders.load import load_encoder
from pipeline.runtime import devices
from tests.tools.distill import ALONE
from tests.tools.steps import a_batch, a_trainer

SMALLEST = "timm:vit_tiny_patch16_224?img_size=32&patch_size=16&embed_dim=64&depth=1&num_heads=1"


def measured(student: str, batch_size: int, options: dict[str, Any]) -> tuple[int, int]:
    """Bytes that two steps added to the process at most, and those planned."""
    names, tokens = options.pop("teachers", ["h-optimus-0"]), options.pop("tokens", None)
    chosen = DistillOptions(student=student, random_weights=0, batch_size=batch_size, **options)
    lessons = of_teachers([Named(name, tokens=tokens) for name in names], chosen)
    planned = memory.of_step(chosen, lessons)["peak"]
    step = {
        name: value for name, value in options.items() if name in ("checkpointing", "micro_batch", "dtype")
    }
    a_trainer(SMALLEST, **step).step(*a_batch(4), 1e-4, 0.05)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    encoder = load_encoder(student, random_weights=0)
    lessons = replace(lessons, crop_px=encoder.image_px)
    trainer = make_trainer(encoder, lessons, chosen, ALONE)
    views, targets = memory.a_batch(lessons, batch_size, loss_spec.PAIR in chosen.loss)
    for pixels in (views, targets.beside):
        if pixels is not None:
            pixels.random_(0, 256)
    targets = targets.map(_filled)
    for number in range(2):  # the moments of the optimiser exist after the first
        trainer.step(views, targets, 1e-4, 0.05, number)
    return devices.peak_memory(ALONE.device)["peak_rss_bytes"] - before, planned


def _filled(tensor: Tensor) -> Tensor:
    return tensor.uniform_() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    torch.set_num_threads(1)
    found, planned = measured(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
    print(f"measured {found / 1e9:.3f} GB, planned {planned / 1e9:.3f} GB: {planned / found - 1:+.1%}")
