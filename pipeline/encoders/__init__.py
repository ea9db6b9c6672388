"""Encoders by name: presets, architectures, weights in every published layout, export.

`load_encoder` returns an `Encoder`. Both are imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.encoders.encoder import Encoder
    from pipeline.encoders.load import load_encoder

__all__ = ["Encoder", "load_encoder"]

_HOMES = {"Encoder": "pipeline.encoders.encoder", "load_encoder": "pipeline.encoders.load"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
