"""Render a view: a patch under drawn parameters, in integer arithmetic, and its checksum."""

import zlib

import numpy as np

from pipeline.views import operations
from pipeline.views.draw import JITTER_ORDERS, ViewParams
from pipeline.views.operations import Image
from pipeline.views.policy import Policy
from stores.errors import OptionError

_ADJUST = {
    "brightness": operations.adjust_brightness,
    "contrast": operations.adjust_contrast,
    "saturation": operations.adjust_saturation,
    "hue": operations.adjust_hue,
}
_RENDERABLE = {  # what no policy exceeds; parameters may come from another lab's manifest
    **dict.fromkeys(("brightness", "contrast", "saturation", "stain_h", "stain_e", "stain_d"), (0.0, 2.0)),
    "hue": (-0.5, 0.5),
    "order": (0, len(JITTER_ORDERS) - 1),
    "sigma": (0.0, 16.0),
}


def render(patch: Image, params: ViewParams, policy: Policy) -> Image:
    """The view of `patch` under `params`: crop, flips, stain jitter, colour jitter, blur.

    Stain comes first: it varies on the glass, the other two in the scanner.

    Parameters
    ----------
    patch : uint8, (patch_px, patch_px, 3), RGB
    params : drawn by `draw`, or read back from a manifest (float32 and any integer type will do)
    policy : gives `patch_px`, `crop_px` and `blur_kernel_px`

    Returns
    -------
    uint8, (crop_px, crop_px, 3), C-contiguous, never a view of `patch`. The same bits on every machine,
    under any number of threads.
    """
    _check(patch, params, policy)
    x, y = int(params.crop_x_px), int(params.crop_y_px)
    view: Image = np.array(patch[y : y + policy.crop_px, x : x + policy.crop_px], order="C")
    if params.hflip or params.vflip:
        view = operations.mirror(view, bool(params.hflip), bool(params.vflip))
    if params.stain:
        view = operations.jitter_stains(view, (params.stain_h, params.stain_e, params.stain_d))
    if params.jitter:
        for operation in JITTER_ORDERS[params.order]:
            view = _ADJUST[operation](view, getattr(params, operation))
    if params.blur:
        view = operations.blur(view, policy.blur_kernel_px, params.sigma)
    return view


def _check(patch: Image, params: ViewParams, policy: Policy) -> None:
    shape = (policy.patch_px, policy.patch_px, 3)
    if patch.shape != shape or patch.dtype != np.uint8:
        raise OptionError(
            f"patch is {patch.dtype} {patch.shape}; policy {policy.name} needs uint8 {shape}: "
            "tile with its patch_px, or choose another policy"
        )
    room = policy.patch_px - policy.crop_px
    bounds = _RENDERABLE | {"crop_x_px": (0, room), "crop_y_px": (0, room)}
    if params.blur:  # OpenCV takes a sigma of 0 for "choose one yourself"
        bounds |= {"sigma": (1 / operations.ONE, 16.0)}
    for field, (least, most) in bounds.items():
        if not least <= getattr(params, field) <= most:
            raise OptionError(
                f"{field} {getattr(params, field)} does not fit policy {policy.name}, which has {least:g} to "
                f"{most:g}: use the policy that drew it"
            )


def view_crc32(view: Image) -> int:
    """CRC-32 (zlib) of the pixels in C order."""
    return zlib.crc32(np.ascontiguousarray(view).data)
