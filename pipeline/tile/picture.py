"""The picture of a slide: tissue, and the patches that were kept."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.slides.slide import ReadPlan, SlideInfo
from pipeline.tile.qc import PatchQc
from stores.format.manifest import Patches
from stores.format.qc import described
from stores.io.files import replacing

_LONG_SIDE_PX = 1600
_CONTOUR, _GRID, _TEXT = (0, 140, 0), (40, 90, 220), (20, 20, 20)
_LEFT_OUT, _REGION = (215, 30, 30), (150, 0, 190)


def draw_slide(
    path: Path,
    info: SlideInfo,
    plan: ReadPlan,
    thumbnail: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_] | None,
    patches: Patches,
    qc: PatchQc | None = None,
    left_out: npt.NDArray[np.int32] | None = None,
) -> None:
    """Write a PNG of the slide with the tissue contour (green), where that is known, and every kept patch (blue).

    With `qc`, its regions are violet, and the patches that its limits left out are red with a diagonal.

    Parameters
    ----------
    thumbnail : uint8 (h, w, 3)
    mask : bool (h, w), or None
    left_out : int32 (n, 2), or None
        Their upper left corners.
    """
    scale = _LONG_SIDE_PX / max(thumbnail.shape[:2])
    size = (max(1, round(thumbnail.shape[1] * scale)), max(1, round(thumbnail.shape[0] * scale)))
    canvas = cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    per_px0 = size[0] / info.width_px0
    per_y_px0 = per_px0 * (info.mpp_xy[1] / info.mpp)
    wide, high = plan.sides_px0

    def square(x: int, y: int, colour: tuple[int, int, int], crossed: bool) -> None:
        corner = (round(x * per_px0), round(y * per_y_px0))
        opposite = (round((x + wide) * per_px0) - 1, round((y + high) * per_y_px0) - 1)
        cv2.rectangle(canvas, corner, opposite, colour, 1)
        if crossed:
            cv2.line(canvas, corner, opposite, colour, 1, cv2.LINE_AA)

    for x, y in zip(patches.x_px0.tolist(), patches.y_px0.tolist(), strict=True):
        square(x, y, _GRID, crossed=False)
    for x, y in [] if left_out is None else left_out.tolist():
        square(x, y, _LEFT_OUT, crossed=True)
    outlines = [(mask, _CONTOUR)] + ([(qc.regions, _REGION)] if qc is not None else [])
    for area, colour in outlines:
        if area is not None:
            large = cv2.resize(area.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, contours, -1, colour, 2)
    lines = [
        f"{info.slide_id}: {len(patches)} patches of {plan.size_px} px at {plan.mpp:.4g} mpp",
        f"{info.width_px0} x {info.height_px0} px at {_resolution(info)} mpp ({info.mpp_source})"
        + ("" if mask is None else f", {mask.mean():.0%} tissue"),
    ]
    if qc is not None:
        lines.append(_qc_line(qc))
    caption = np.full((8 + 24 * len(lines), canvas.shape[1], 3), 255, np.uint8)
    for i, text in enumerate(lines):
        cv2.putText(caption, text, (8, 22 + 24 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.6, _TEXT, 1, cv2.LINE_AA)
    write_png(path, np.vstack([caption, canvas]))


def _qc_line(qc: PatchQc) -> str:
    judged = qc.judged
    n_left_out = int((~judged.keep).sum())
    why = described(judged.beyond, judged.unknown).encode("ascii", "replace").decode()  # the font has no more
    said = f"QC: {n_left_out} patches left out (red)" + (f": {why}" if why else "")
    return said + ("; regions violet" if qc.regions is not None else "")


def _resolution(info: SlideInfo) -> str:
    return f"{info.mpp:.4g}" if info.mpp_y is None else f"{info.mpp:.4g} x {info.mpp_y:.4g}"


def write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write an RGB picture, uint8 (h, w, 3), atomically."""
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    with replacing(path) as partial:
        partial.write_bytes(encoded.tobytes())
