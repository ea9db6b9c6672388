"""The teacher of the small experiments: a vision transformer at random, with features about as many-sided as they come.

No published weights fit two CPU cores, and a small network that was trained to tell a few synthetic tissue types apart
has features of effective rank 3 on real patches: any student learns those. timm's random start gives 4. With the
weights of all blocks doubled it is 11 (16 when dimensions are standardised) and the features still follow the patch
smoothly; with four times the weights it is 62, and no student of this size follows.
"""

from typing import Any

import torch
from torch import nn

from pipeline.encoders.torchvision_cpu import make_importable

SCALE = 2.0


def make() -> tuple[nn.Module, dict[str, Any]]:
    """8x8 patch tokens of views of 112 px, 192-d; seeded by ``--random-weights``."""
    make_importable()
    import timm

    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=112,
        patch_size=14,
        embed_dim=192,
        depth=6,
        num_heads=6,
        reg_tokens=4,
        weight_init="jax",
        num_classes=0,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks.") and parameter.ndim > 1:
                parameter.mul_(SCALE)
    return model, {"image_px": 112, "licence": "Apache-2.0"}
