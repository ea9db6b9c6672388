"""Paths and small settings that tests share."""

from pathlib import Path

from pipeline.extract.options import ExtractOptions

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
SHARED = ROOT.parent / "shared" / "data"
"""Real slides and tiles, beside the checkout; absent on most machines."""


TEACHER = ExtractOptions(
    teacher="tests.tools.tiny:teacher", random_weights=0, seeds=3, threads=2, pixels=True
)


VIT = "vit_tiny_patch16_224?patch_size=28&depth=2&embed_dim=24&num_heads=3&reg_tokens=4"
"""A vision transformer of 8x8 patch tokens for views of 224 px, with registers."""
