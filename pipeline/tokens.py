"""Patch tokens of an encoder: their grid, and those at chosen places."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from stores.errors import EncoderError

if TYPE_CHECKING:
    from pipeline.encoders.load import Encoder


def token_grid(encoder: "Encoder") -> tuple[int, int]:
    """Side of the grid of patch tokens, and their length.

    Raises
    ------
    EncoderError
        The backbone is no vision transformer of timm with a square grid.
    """
    backbone: Any = encoder.backbone
    known = all(hasattr(backbone, name) for name in ("forward_features", "forward_head", "num_prefix_tokens"))
    sides = tuple(getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or ())
    if not known or len(sides) != 2 or sides[0] != sides[1]:
        raise EncoderError(
            f"{encoder.name} has no square grid of patch tokens; tokens need a vision transformer (ViT) of timm"
        )
    return int(sides[0]), int(backbone.embed_dim)


def take_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """Of the patch tokens (B, grid * grid, width) of each view those at int64 `positions` (B, t): (B, t, width)."""
    return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[2]))
