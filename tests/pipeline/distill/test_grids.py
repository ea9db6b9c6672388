"""From one grid of patches to another, against integrals over a raster that both grids divide."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distill.grids import averaged, divided, shares

GRIDS = [(16, 14), (14, 16), (8, 14), (3, 2), (1, 5), (5, 1)]
SIDES = st.integers(1, 24)


def raster(values: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float64]:
    """The value at the middle of each of side * side points: (B, G * G, d) to (B, side, side, d)."""
    grid = math.isqrt(values.shape[1])
    at = np.arange(side) * grid // side
    return values.reshape(len(values), grid, grid, -1)[:, at][:, :, at]


def integrated(values: npt.NDArray[np.float64], grid: int) -> npt.NDArray[np.float64]:
    """The mean over each patch, point by point: no patch of either grid cuts a point of the raster."""
    side = math.lcm(grid, math.isqrt(values.shape[1]))
    points, size = raster(values, side), side // grid
    found = [
        points[:, i * size : (i + 1) * size, j * size : (j + 1) * size].mean(axis=(1, 2))
        for i in range(grid)
        for j in range(grid)
    ]
    return np.stack(found, axis=1)


@pytest.mark.parametrize(("of", "to"), GRIDS)
def test_averaging_and_dividing_are_integrals(of: int, to: int) -> None:
    values = np.random.default_rng(0).normal(size=(2, of**2, 3))
    np.testing.assert_allclose(averaged(torch.tensor(values), to).numpy(), integrated(values, to), rtol=1e-9)
    density = values[:, :, :1] * of**2  # per area of the view
    np.testing.assert_allclose(
        divided(torch.tensor(values[:, :, 0]), to).numpy(),
        integrated(density, to)[:, :, 0] / to**2,
        rtol=1e-9,
    )


@settings(deadline=None, max_examples=30)
@given(SIDES, SIDES)
def test_constants_stay_and_no_mass_is_lost(of: int, to: int) -> None:
    same = torch.full((1, of**2, 2), 3.5, dtype=torch.float64)
    torch.testing.assert_close(averaged(same, to), torch.full((1, to**2, 2), 3.5).double())
    mass = torch.rand(2, of**2, dtype=torch.float64, generator=torch.Generator().manual_seed(of))
    torch.testing.assert_close(divided(mass, to).sum(dim=1), mass.sum(dim=1))
    assert (divided(mass, to) > 0).all()
    torch.testing.assert_close(shares(of, to).sum(dim=1), torch.ones(to, dtype=torch.float64))


def test_an_equal_grid_is_left_alone() -> None:
    values = torch.rand(2, 49, 3)
    assert averaged(values, 7) is values
    assert torch.equal(divided(values[:, :, 0], 7), values[:, :, 0])


def test_gradients_flow_back_to_each_patch() -> None:
    values = torch.rand(1, 196, 2, requires_grad=True)
    averaged(values, 16).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.full_like(values, (16 / 14) ** 2))
