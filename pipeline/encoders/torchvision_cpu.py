"""Lets ``import torchvision`` (and so ``import timm``) work beside a CPU-only torch.

torchvision's registry wheels are CUDA builds. Beside a CPU torch their C++ operator library does
not load, and the import then fails with ``operator torchvision::nms does not exist``, because
torchvision registers Python-side kernels for two operators that nobody declared. Declaring the two
schemas first is enough; nothing here ever calls them. Where the C++ library loads, it declares
the schemas itself, and then this module must not. So the plain import is tried first.
"""

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the declarations live as long as this object


def make_importable() -> None:
    """Import torchvision, declaring the two missing operators only when the first attempt fails."""
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _library is not None:
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half-imported modules would be reused by the second attempt
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        import torchvision  # noqa: F401
