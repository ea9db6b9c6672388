"""Options of a short training, and whether two runs ended with the same weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.options import DistillOptions

VIT = "timm:vit_tiny_patch16_224?embed_dim=24&depth=1&num_heads=2&patch_size=32"


OPTIONS = DistillOptions(
    student=VIT,
    random_weights=1,
    steps=24,
    batch_size=8,
    lr=3e-3,
    val_every=10,
    checkpoint_every=8,
    threads=2,
    window=64,
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {**load_file(run / "student/model.safetensors"), **load_file(run / "projector.safetensors")}


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every training step."""
    return [(r["step"], r["loss"]) for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]
