"""Which half precision a teacher is given: the one whose features are nearest to float32, measured on real views.

float16 keeps 11 bits of a number and bfloat16 8, so float16 is the better one as long as nothing overflows: it ends at
65504, and some teachers have activations beyond that.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.inference.loaded import OnDevice
from pipeline.runtime import devices
from pipeline.slides.pool import PatchPool
from pipeline.slides.sources import Source
from pipeline.views.patch_views import draw_row
from pipeline.views.policy import Policy
from stores.errors import SlideError
from stores.format.features import FLOAT16_MAX

COMPARED = 64
"""Views on which arithmetics are compared."""
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ViewToRead:
    """A view to compare on."""

    source: Source
    key: str
    """What keys its draws, see `pipeline.views.patch_views.draw_row`."""
    row: int
    x_px0: int
    y_px0: int
    seed: int


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The chosen arithmetic, and what was measured."""

    chosen: str
    views: int
    errors: dict[str, float | None]
    """Relative error of the features to those in float32, as they are stored; None where a number overflowed."""

    @property
    def reason(self) -> str:
        """Why it was chosen, in words."""
        said = ", ".join(
            f"{name} overflows" if error is None else f"{name} {error:.1e}"
            for name, error in self.errors.items()
        )
        if self.chosen == "float32":
            return f"{said} on {self.views} views"
        return f"its features are nearest to those of float32 (relative error on {self.views} views: {said})"


def read_views(policy: Policy, wanted: Sequence[ViewToRead], threads: int) -> npt.NDArray[np.uint8]:
    """The views that can be read, uint8 (n, crop_px, crop_px, 3)."""
    found = []
    with PatchPool(threads) as pool:
        jobs = [
            pool.submit(
                view.source,
                functools.partial(draw_row, policy, (view.seed,), False, ()),
                *(view.key, view.row, view.x_px0, view.y_px0),
            )
            for view in wanted
        ]
        for job in jobs:
            with contextlib.suppress(SlideError):
                found += job.result().views
    return np.stack(found) if found else np.empty((0, policy.crop_px, policy.crop_px, 3), np.uint8)


def compare(
    encoder: OnDevice, views: npt.NDArray[np.uint8], candidates: Sequence[torch.dtype]
) -> Arithmetic | None:
    """The candidate with the smallest error of those that do not overflow; float32 where all do.

    Overflow is a number that is not finite in what any module of the encoder returns, or a feature that cannot be
    stored as float16. None when there is nothing to compare.

    Parameters
    ----------
    views : uint8 (n, crop_px, crop_px, 3)
    """
    if not candidates or not len(views):
        return None
    with _exact(encoder.device):
        expected, _ = _features(replace(encoder, dtype=torch.float32), views)
    errors: dict[str, float | None] = {}
    for dtype in candidates:
        features, finite = _features(replace(encoder, dtype=dtype), views)
        finite = finite and float(features.abs().max()) <= FLOAT16_MAX
        stored = features.half().double()
        error = float((stored - expected).norm() / expected.norm().clamp(min=1e-30))
        errors[devices.dtype_name(dtype)] = error if finite and np.isfinite(error) else None
    kept = {name: error for name, error in errors.items() if error is not None}
    return Arithmetic(min(kept, key=lambda name: kept[name], default="float32"), len(views), errors)


def _features(encoder: OnDevice, views: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, bool]:
    """Features (n, dim) float64 on the CPU, and whether all that the modules returned is finite."""
    with _watching(encoder.encoder) as finite:
        parts = [
            encoder.launch(views[at : at + _AT_ONCE]).double().cpu() for at in range(0, len(views), _AT_ONCE)
        ]
    return torch.cat(parts), all(map(bool, finite))


@contextlib.contextmanager
def _watching(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list to which every module of a model adds whether what it returned is finite."""
    finite: list[torch.Tensor] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        finite.extend(torch.isfinite(part).all() for part in _floats(output))

    handles = [module.register_forward_hook(look) for module in model.modules()]
    try:
        yield finite
    finally:
        for handle in handles:
            handle.remove()


def _floats(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _floats(part)


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """On CUDA convolutions of float32 use TF32 by default, which has the 11 bits of float16."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
