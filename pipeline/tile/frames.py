"""Where the coordinates of a user's mask begin: at the corner of the slide, or of the part that was scanned.

OpenSlide counts from the corner of the slide. QuPath shows only what was scanned, where the file says what that is
(``openslide.bounds-x`` and its sisters: MRXS, SCN, BIF), and counts from there. A file of coordinates does not say
which of the two it means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.slides.slide import SlideInfo
from pipeline.tile.tissue import Bools
from stores.errors import TissueError

_ON, _OFF = 0.9, 0.5
"""Share of a mask on scanned area from which a frame is right, and below which it is wrong."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle of a slide in level-0 pixels, from whose corner coordinates count."""

    name: Literal["slide", "bounds"]
    corner_px0: tuple[int, int]
    """Left and top."""
    size_px0: tuple[int, int]
    """Width and height."""

    def __str__(self) -> str:
        width, height = self.size_px0
        if self.name == "slide":
            return f"slide ({width}x{height})"
        return f"scanned bounds ({width}x{height} at {self.corner_px0[0]},{self.corner_px0[1]})"


def frames_of(info: SlideInfo, wanted: str) -> list[Frame]:
    """The frames that a mask of this slide can be in: `wanted`, or both for ``auto``.

    Only one where the slide says no bounds, or bounds that are all of it: then they are the same.
    """
    size_px0 = (info.width_px0, info.height_px0)
    slide = Frame("slide", (0, 0), size_px0)
    if info.bounds_px0 is None or not has_choice(info):
        return [slide]
    x, y, width, height = info.bounds_px0
    both = [slide, Frame("bounds", (x, y), (width, height))]
    return [frame for frame in both if wanted in ("auto", frame.name)]


def has_choice(info: SlideInfo) -> bool:
    """Whether the two frames of a slide differ."""
    return info.bounds_px0 not in (None, (0, 0, info.width_px0, info.height_px0))


def choose_frame(
    path: Path,
    masks: Sequence[tuple[Frame, Bools]],
    scanned: npt.NDArray[np.float32],
    flag: str = "--mask-frame",
) -> tuple[Frame, Bools]:
    """The frame in which a mask lies on what was scanned, and the mask in it.

    Parameters
    ----------
    masks
        The mask in every frame whose edges it keeps, bool (h, w) of the whole slide; not empty, one or two.
    scanned : float32 (h, w)
        How much of each pixel was scanned.
    flag
        The option that says it, for messages.

    Raises
    ------
    TissueError
        When no pixel of it was scanned, or both frames are possible.
    """
    shares = [float(scanned[mask].mean()) if mask.any() else 0.0 for _, mask in masks]
    if max(shares) == 0:
        raise TissueError(
            f"{path}: no scanned pixel lies in it, counted from the corner of the "
            f"{' or the '.join(str(frame) for frame, _ in masks)}; "
            f"is it the file of this slide, and of its level 0? See {flag}"
        )
    if len(masks) == 1:
        return masks[0]
    best, other = sorted(range(2), key=shares.__getitem__, reverse=True)
    if shares[best] >= _ON and shares[other] < _OFF:
        return masks[best]
    said = " and ".join(
        f"{share:.0%} counted from the corner of the {frame}"
        for (frame, _), share in zip(masks, shares, strict=True)
    )
    raise TissueError(
        f"{path}: of what is marked, {said} was scanned, so both are possible; say {flag} bounds for "
        f"coordinates from QuPath, {flag} slide for those from OpenSlide"
    )


def frame_counts(rows: Sequence[Mapping[str, object]], column: str = "mask_frame") -> dict[str, int]:
    """How many slides' masks were read in which frame; empty where no slide had a choice."""
    found = [str(row[column]) for row in rows if row.get(column)]
    return {name: found.count(name) for name in ("slide", "bounds") if name in found}
