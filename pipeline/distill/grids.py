"""From one grid of patches of a view to another: what lies on patches is averaged or divided by the area they share.

Both grids cover the whole view, so the area that two patches share is a product of two lengths, one for each axis.
Shapes: B views, G * G patches of a grid counted row by row, d numbers of a patch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def shares(n_from: int, n_to: int) -> Tensor:
    """Along one axis, the share of each of `n_to` equal cells that lies in each of `n_from`, float64 (n_to, n_from).

    Lengths are integers in units of ``1 / (n_from * n_to)`` until the division, so that each row sums to 1 but for its
    own rounding.

    >>> shares(3, 2).mul(3).int().tolist()
    [[2, 1, 0], [0, 1, 2]]
    """
    to, of = torch.arange(n_to)[:, None] * n_from, torch.arange(n_from) * n_to
    shared = torch.minimum(to + n_from, of + n_to) - torch.maximum(to, of)
    return shared.clamp(min=0).double() / n_from


def averaged(values: Tensor, grid: int) -> Tensor:
    """The mean of `values` over each patch of another grid, (B, G * G, d) to (B, grid * grid, d).

    ``integral over the patch of v(x, y) / area of the patch``, v being constant on each patch of the first grid. The
    mean over the view stays, and what is equal everywhere stays as it is, to rounding. On a grid of the same side the
    same tensor is returned.
    """
    return _across(values, grid, lambda side: shares(side, grid))


def divided(mass: Tensor, grid: int) -> Tensor:
    """The sum of a mass over each patch of another grid, (B, G * G) to (B, grid * grid): a patch spreads it evenly.

    The sum over the view stays, to rounding. On a grid of the same side the same tensor is returned.
    """
    return _across(mass[:, :, None], grid, lambda side: shares(grid, side).T)[:, :, 0]


def _across(values: Tensor, grid: int, weights: Callable[[int], Tensor]) -> Tensor:
    """``weights`` along both axes of the grid of `values`."""
    side = math.isqrt(values.shape[1])
    if side == grid:
        return values
    matrix = weights(side).to(values)
    square = values.unflatten(1, (side, side))
    return torch.einsum("ir,jc,brcd->bijd", matrix, matrix, square).flatten(1, 2)
