"""The formats of ``export``: a file in this folder with a `pipeline.export.base.Format`, and a line here."""

import importlib

from pipeline.export.base import Format

_HOMES = {
    "onnx": "onnx_file:ONNX",
    "torchscript": "torchscript:TORCHSCRIPT",
    "wsinfer": "wsinfer:WSINFER",
    "hf": "timm_folder:HF",
}
"""For each name in `pipeline.export.options.FORMATS` its module in this folder, and the name of the `Format` in it."""


def format_of(name: str) -> Format:
    """The format of a name."""
    module, _, attribute = _HOMES[name].partition(":")
    found: Format = getattr(importlib.import_module(f"pipeline.export.{module}"), attribute)
    return found
