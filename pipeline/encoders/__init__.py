"""Encoders by name: presets, architectures, weights in every published layout, export.

`load_encoder` returns an `Encoder`. Both are imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.encoders.encoder import Encoder
    from pipeline.encoders.load import load_encoder

__all__ = ["Encoder", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name == "Encoder":
        from pipeline.encoders.encoder import Encoder

        return Encoder
    if name == "load_encoder":
        from pipeline.encoders.load import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
