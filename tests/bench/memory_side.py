"""Peak memory of a training step on a CPU, beside what ``plan --student`` says: one measurement in a fresh process.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=0 \
        python -m tests.bench.memory_side hibou-l 2 '{"checkpointing": true}'

The variables make the C library give back what is freed; else gaps of the heap are measured too. What Python and the
libraries take is measured first, after a step of a tiny student, and subtracted.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from pipeline.distill import memory
from pipeline.distill.inputs import Data
from pipeline.distill.model import Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.trainer import make_trainer
from pipeline.encoders.load import load_encoder
from pipeline.runtime import devices
from tests.tools.distill import ALONE
from tests.tools.steps import a_batch, a_trainer

DIM = 1536
SMALLEST = "timm:vit_tiny_patch16_224?img_size=32&patch_size=16&embed_dim=64&depth=1&num_heads=1"


def measured(student: str, batch_size: int, options: dict[str, Any]) -> tuple[int, int]:
    """Bytes that two steps added to the process at most, and those planned."""
    chosen = DistillOptions(student=student, random_weights=0, batch_size=batch_size, **options)
    memory.VIEWS_AT_ONCE = 1  # no validation is measured
    planned = memory.of_step(chosen, DIM)["peak"]
    a_trainer(SMALLEST, **options).step(*a_batch(4), 1e-4, 0.05)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    encoder = load_encoder(student, random_weights=0)
    px = encoder.image_px
    teaching = Teaching(DIM, np.zeros(DIM), np.ones(DIM))
    data = SimpleNamespace(train=SimpleNamespace(policy=SimpleNamespace(crop_px=px)), teachings=(teaching,))
    trainer = make_trainer(encoder, cast(Data, data), chosen, ALONE)
    targets = Targets(
        torch.randn(batch_size, DIM), torch.zeros(batch_size, 0, 0), torch.zeros(batch_size, 0).long()
    )
    views = torch.randint(0, 256, (batch_size, px, px, 3), dtype=torch.uint8)
    for step in range(2):  # the moments of the optimiser exist after the first
        trainer.step(views, targets, 1e-4, 0.05, step)
    return devices.peak_memory(ALONE.device)["peak_rss_bytes"] - before, planned


if __name__ == "__main__":
    torch.set_num_threads(1)
    found, planned = measured(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
    print(f"measured {found / 1e9:.3f} GB, planned {planned / 1e9:.3f} GB: {planned / found - 1:+.1%}")
