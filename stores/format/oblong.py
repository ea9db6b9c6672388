"""Slides whose pixels are higher than wide, or the other way round, and patches of them that are square all the same.

The columns ``mpp`` and ``patch_px0`` of such a slide's row are those in x. Those in y stand in two further columns, as
text, which a table has only where it has such a slide.
"""

import math
from collections.abc import Mapping
from typing import Any

from stores.errors import CorruptStore

MPP_Y, PATCH_Y_PX0 = "mpp_y", "patch_y_px0"
COLUMNS = MPP_Y, PATCH_Y_PX0


def columns(mpp_y: float | None, patch_y_px0: int) -> dict[str, str]:
    """The two columns of a slide; none where `mpp_y` is None, since its pixels are square."""
    if mpp_y is None:
        return {}
    return {MPP_Y: repr(float(mpp_y)), PATCH_Y_PX0: str(patch_y_px0)}


def without_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the slides table without the two columns."""
    return {name: value for name, value in row.items() if name not in COLUMNS}


def mpp_in_y(row: Mapping[str, Any]) -> float | None:
    """Micrometres per level-0 pixel in y; None where pixels are square.

    Raises
    ------
    CorruptStore
        When one of the columns is no number above 0, or is without the other.
    """
    numbers = _numbers(row)
    return None if numbers is None else numbers[0]


def sides_px0(row: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of a patch in level-0 pixels, 1 where the row does not say it; errors as for `mpp_in_y`."""
    side, numbers = row["patch_px0"] or 1, _numbers(row)
    return side, side if numbers is None else numbers[1]


def _numbers(row: Mapping[str, Any]) -> tuple[float, int] | None:
    mpp, side = row.get(MPP_Y), row.get(PATCH_Y_PX0)
    if mpp is None and side is None:
        return None
    try:
        numbers = float(mpp or ""), int(side or "")
        if math.isfinite(numbers[0]) and min(numbers) > 0 and numbers[1] < 1 << 31:
            return numbers
    except (TypeError, ValueError):
        pass
    raise CorruptStore(
        f"slide {row['slide_id']}: {MPP_Y} {mpp!r:.40} and {PATCH_Y_PX0} {side!r:.40}; allowed are two numbers above 0"
    )
