"""Pixel arithmetic of a view: six operations on uint8 RGB pixels, in integers only.

A crc32 of every view stands in the manifest, so one changed bit in another lab would stop its training.
Everything here is therefore exact by definition: NumPy integers, tables made of integers, and OpenCV calls
that only move pixels, plus `cv2.GaussianBlur` on uint8, which OpenCV computes in 8.8 fixed point with a
kernel from its software floats. torchvision's and OpenCV's floating-point paths change with the CPU's instruction
set, the batch size and the number of threads.

Factors are multiples of 2**-16. Every operation takes a C-contiguous uint8 array (height, width, 3), rounds
to nearest, clamps to 0..255 and returns a new array; no state is shared, so threads may run any of it.
"""

from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import cache
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
_T = TypeVar("_T", bound=np.generic)

ONE = 1 << 16
_HALF = ONE >> 1
_GREY = (19595, 38470, 7471)  # ITU-R BT.601 luma (0.299, 0.587, 0.114) in 2**-16; the sum is exactly ONE


def to_fixed(value: float) -> int:
    """`value` in units of 2**-16; exact for drawn parameters, also after a round trip through float32."""
    return round(value * ONE)


def adjust_brightness(image: Image, factor: float) -> Image:
    """``factor * x``, the meaning of torchvision's ``adjust_brightness``."""
    levels = np.arange(256, dtype=np.int64)
    return _look_up(image, (levels * to_fixed(factor) + _HALF) >> 16)


def adjust_contrast(image: Image, factor: float) -> Image:
    """``factor * x + (1 - factor) * mean`` with the mean of the grey image, as torchvision's ``adjust_contrast``."""
    fixed = to_fixed(factor)
    levels = np.arange(256, dtype=np.int64)
    pivot = (ONE - fixed) * _mean_grey(image)  # in 2**-32
    return _look_up(image, ((levels * fixed << 16) + pivot + (1 << 31)) >> 32)


def adjust_saturation(image: Image, factor: float) -> Image:
    """``factor * x + (1 - factor) * grey``, grey rounded to a level, as torchvision's ``adjust_saturation``."""
    fixed = to_fixed(factor)
    planes = _split(image)  # NumPy is about three times as fast on planes as on interleaved pixels
    grey = np.full(planes[0].shape, _HALF, dtype=np.int32)
    for plane, weight in zip(planes, _GREY, strict=True):
        grey += np.multiply(plane, weight, dtype=np.int32)
    grey >>= 16
    grey *= ONE - fixed
    grey += _HALF
    return _merge([_blend(plane, fixed, grey) for plane in planes])


def adjust_hue(image: Image, turns: float) -> Image:
    """HSV hue rotated by `turns` (-0.5..0.5), value and saturation kept, as torchvision's ``adjust_hue``.

    HSV hue is the way along a hexagon in the chroma plane. Measured in levels instead of degrees it needs no
    division: with C = max - min the hexagon is 6 C long, a pixel stands at a whole number ``position`` in -3C..3C
    (red 0, green 2C, blue -2C), turning it adds ``6 * turns * C``, and a channel that is ``way`` levels from
    its own corner is ``min + clamp(2C - way, 0, C)``. Only ``6 * turns * C`` is rounded, so the result is
    the exact one to half a level.
    """
    red, green, blue = _split(image)
    low = np.minimum(np.minimum(red, green), blue)
    high = np.maximum(np.maximum(red, green), blue)
    chroma_u8 = high - low
    r, g, b, chroma = (plane.astype(np.int16) for plane in (red, green, blue, chroma_u8))
    side2 = chroma * 2
    position = r - g - side2
    np.copyto(position, b - r + side2, where=green == high)
    np.copyto(position, g - b, where=red == high)
    position += np.take(_hue_shift(turns), chroma_u8)
    _wrap(position, chroma, forward=turns > 0)
    return _merge([_hue_channel(position, corner, chroma, low) for corner in (None, side2, -side2)])


def blur(image: Image, kernel_px: int, sigma: float) -> Image:
    """Gaussian blur, `kernel_px` square, borders reflected without repeating the edge, as torchvision's.

    The hint asks for OpenCV's bit-exact path by name; a build may otherwise prefer its vendor's approximation.
    """
    blurred = cv2.GaussianBlur(
        image,
        (kernel_px, kernel_px),
        sigmaX=float(sigma),
        borderType=cv2.BORDER_REFLECT_101,
        hint=cv2.ALGO_HINT_ACCURATE,
    )
    return np.asarray(blurred, dtype=np.uint8)


def mirror(image: Image, horizontally: bool, vertically: bool) -> Image:
    """Flipped copy. NumPy needs 160 us to mirror 3-byte pixels, OpenCV 5."""
    axis = -1 if horizontally and vertically else int(horizontally)
    return np.asarray(cv2.flip(image, axis), dtype=np.uint8)


def _split(image: Image) -> list[Image]:
    return [np.asarray(plane, dtype=np.uint8) for plane in cv2.split(image)]


def _merge(planes: Sequence[Image]) -> Image:
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


def _look_up(image: Image, levels: NDArray[np.int64]) -> Image:
    return np.asarray(cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8)), dtype=np.uint8)


def _mean_grey(image: Image) -> int:
    """Mean of the grey image in units of 2**-16, from exact sums per channel."""
    height, width, _ = image.shape
    sums = image.reshape(height, width * 3).sum(axis=0, dtype=np.uint32).reshape(width, 3).sum(axis=0)
    weighted = sum(int(total) * weight for total, weight in zip(sums, _GREY, strict=True))
    return (weighted + height * width // 2) // (height * width)


def _blend(plane: Image, factor: int, addend: NDArray[np.int32]) -> Image:
    blended = np.multiply(plane, factor, dtype=np.int32)
    blended += addend
    blended >>= 16
    return np.clip(blended, 0, 255, out=blended).astype(np.uint8)


def _hue_shift(turns: float) -> NDArray[np.int16]:
    """``round(6 * turns * C)`` for every chroma C."""
    chroma = np.arange(256, dtype=np.int64)
    return ((chroma * (6 * to_fixed(turns)) + _HALF) >> 16).astype(np.int16)


def _wrap(position: NDArray[np.int16], chroma: NDArray[np.int16], forward: bool) -> None:
    """Bring positions that a turn carried past the end of the hexagon back into -3C..3C, in place."""
    if forward:
        position -= chroma * 6 * (position > chroma * 3)
    else:
        position += chroma * 6 * (position < chroma * -3)


def _hue_channel(
    position: NDArray[np.int16], corner: NDArray[np.int16] | None, chroma: NDArray[np.int16], low: Image
) -> Image:
    way = np.abs(position if corner is None else position - corner)
    side2 = chroma * 2
    level = np.maximum(side2 - way, way - side2 * 2)  # the shorter way round: 6C - way
    np.minimum(level, chroma, out=level)
    np.maximum(level, np.zeros_like(level), out=level)  # with arrays 4 us, np.clip or a scalar bound 20 to 40
    level += low
    return level.astype(np.uint8)


# Stain jitter. Optical densities are natural logarithms in units of 2**-11, matrix entries in units of 2**-13.

_HED = (("0.65", "0.70", "0.29"), ("0.07", "0.99", "0.11"), ("0.27", "0.57", "0.78"))
"""RGB densities of haematoxylin, eosin and DAB: Ruifrok & Johnston 2001, as ``skimage.color.rgb_from_hed``."""

_DENSITY_BITS = 11  # one step moves white by an eighth of a level
_MATRIX_BITS = 13  # a column's magnitudes sum to 5.6 at most (factors 0..2): 14188 * 5.6 * 2**13 < 2**31
_BLACK = Decimal("0.25")  # level 0 has no logarithm; it counts as a quarter of a level


def jitter_stains(image: Image, factors: Sequence[float]) -> Image:
    """Multiply the haematoxylin, eosin and DAB densities of every pixel by `factors` (h, e, d).

    Densities of RGB are ``ln(255 / x)``; unmixing, scaling and mixing are one 3x3 matrix. Unlike
    ``skimage.color.rgb2hed`` negative stain densities are kept, so neutral factors change nothing.
    """
    density, level = _density_table(), _level_table()
    matrix = _stain_matrix([to_fixed(factor) for factor in factors])
    densities = [np.take(density, plane) for plane in _split(image)]
    planes = []
    for column in zip(*matrix, strict=True):
        mixed = np.full(image.shape[:2], 1 << (_MATRIX_BITS - 1), dtype=np.int32)
        for values, weight in zip(densities, column, strict=True):
            mixed += values * np.int32(weight)
        mixed >>= _MATRIX_BITS
        planes.append(np.take(level, mixed, mode="clip"))
    return _merge(planes)


def _stain_matrix(factors: Sequence[int]) -> list[list[int]]:
    """Matrix from RGB densities to jittered RGB densities (row = from, column = to), in Python integers."""
    shift = 32 + 16 - _MATRIX_BITS
    projectors = _stain_projectors()
    return [
        [
            (sum(f * p[i][j] for f, p in zip(factors, projectors, strict=True)) + (1 << (shift - 1))) >> shift
            for j in range(3)
        ]
        for i in range(3)
    ]


@cache
def _stain_projectors() -> tuple[list[list[int]], ...]:
    """For each stain the matrix that keeps this stain alone, in units of 2**-32; they sum to the identity."""
    mix = [[Fraction(entry) for entry in row] for row in _HED]
    unmix = _inverse(mix)

    def keep(k: int) -> list[list[int]]:
        return [[round(unmix[i][k] * mix[k][j] * (1 << 32)) for j in range(3)] for i in range(3)]

    h, e = keep(0), keep(1)
    d = [[((i == j) << 32) - h[i][j] - e[i][j] for j in range(3)] for i in range(3)]
    return h, e, d


def _inverse(m: list[list[Fraction]]) -> list[list[Fraction]]:
    def cofactor(i: int, j: int) -> Fraction:
        a, b, c, d = (m[(i + p) % 3][(j + q) % 3] for p, q in ((1, 1), (2, 2), (1, 2), (2, 1)))
        return a * b - c * d

    determinant = sum((m[0][j] * cofactor(0, j) for j in range(3)), Fraction(0))
    return [[cofactor(j, i) / determinant for j in range(3)] for i in range(3)]


def _density(level: Decimal, rounding: str) -> int:
    """``ln(255 / level)`` in steps; `decimal` rounds logarithms correctly, whichever libm the machine has."""
    context = Context(prec=40)
    density = context.multiply(context.ln(context.divide(Decimal(255), level)), Decimal(1 << _DENSITY_BITS))
    return int(density.to_integral_value(rounding=rounding))


@cache
def _density_table() -> NDArray[np.int32]:
    """Density of each of the 256 levels."""
    levels = [_BLACK, *map(Decimal, range(1, 256))]
    return _frozen(np.array([_density(level, ROUND_HALF_EVEN) for level in levels], dtype=np.int32))


@cache
def _level_table() -> Image:
    """Nearest level of each density: level v begins at the density of v + 1/2, ends at that of v - 1/2."""
    ends = [_density(Decimal(v) - Decimal("0.5"), ROUND_CEILING) for v in range(255, 0, -1)]
    lengths = np.diff([0, *ends, _density(_BLACK, ROUND_CEILING) + 1])
    return _frozen(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), lengths))


def _frozen(table: NDArray[_T]) -> NDArray[_T]:
    table.flags.writeable = False
    return table
