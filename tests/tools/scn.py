"""Leica SCN slides: what was scanned is a part of a larger slide, as in the files of that scanner."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

_NAMESPACE = "http://www.leica-microsystems.com/scn/2010/10/01"
_MACRO_PX = (300, 200)


def write_scn(
    path: Path,
    pixels: npt.NDArray[np.uint8],
    corner_px0: tuple[int, int],
    size_px0: tuple[int, int],
    mpp: float = 0.5,
) -> None:
    """Write a slide of `size_px0` of which `pixels`, uint8 (h, w, 3), were scanned, from `corner_px0` on."""
    nm = round(1000 * mpp)
    height, width = pixels.shape[:2]
    slide = f'sizeX="{size_px0[0] * nm}" sizeY="{size_px0[1] * nm}"'
    scan = f'sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{corner_px0[0] * nm}" offsetY="{corner_px0[1] * nm}"'
    images = _image("macro", f'{slide} offsetX="0" offsetY="0"', 0.6, _MACRO_PX, (_MACRO_PX,), 0)
    images += _image("main", scan, 20, (width, height), ((width, height), (width // 2, height // 2)), 1)
    text = (
        f'<?xml version="1.0"?><scn xmlns="{_NAMESPACE}" uuid="urn:uuid:1"><collection name="c" uuid="urn:uuid:2" '
        f"{slide}><barcode>MA==</barcode>{images}</collection></scn>"
    )
    how: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    how |= {
        "resolution": (10_000 / mpp, 10_000 / mpp),
        "resolutionunit": "CENTIMETER",
        "software": "Leica SCN400",
    }
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        macro = np.full((*_MACRO_PX[::-1], 3), 250, np.uint8)
        file.write(macro, description=text, **how)
        file.write(pixels, **how)
        half = np.ascontiguousarray(pixels[: height // 2 * 2 : 2, : width // 2 * 2 : 2])
        file.write(half, subfiletype=1, **how)


def _image(
    name: str,
    view: str,
    objective: float,
    size_px: tuple[int, int],
    levels: tuple[tuple[int, int], ...],
    first_page: int,
) -> str:
    dimensions = "".join(
        f'<dimension sizeX="{width}" sizeY="{height}" r="{level}" ifd="{first_page + level}"/>'
        for level, (width, height) in enumerate(levels)
    )
    return (
        f'<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2011-01-01T00:00:00Z</creationDate>'
        f'<device model="Leica SCN400" version="1"/><pixels sizeX="{size_px[0]}" sizeY="{size_px[1]}">{dimensions}'
        f'</pixels><view {view} spacingZ="0"/><scanSettings><objectiveSettings><objective>{objective}</objective>'
        "</objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
    )
