"""Memory of a window is used again only when nobody holds a part of it."""

import gc
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.loader import LoaderOptions, ViewLoader
from pipeline.data.memory import WindowMemory
from pipeline.slides.sources import StoreSource
from pipeline.views.policy import POLICIES
from stores import sampler


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


HOLDS = {
    "whole": lambda window: window[:],
    "slice": lambda window: window[2:5],
    "slice of a slice": lambda window: window[2:5][1:],
    "reshaped": lambda window: window.reshape(-1)[3:9],
    "tensor": lambda window: torch.from_numpy(window)[1:],
    "buffer": lambda window: memoryview(window[1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("hold", HOLDS)
def test_whatever_part_is_held_keeps_the_memory(hold: str) -> None:
    memory = WindowMemory()
    window = memory.take((6, 4, 2))
    window[:] = np.arange(48).reshape(6, 4, 2)
    first, part = address(window), HOLDS[hold](window)
    expected = part.tolist()
    del window
    gc.collect()
    other = memory.take((6, 4, 2))
    other[:] = 255
    assert address(other) != first
    assert part.tolist() == expected
    del part
    again = memory.take((3, 4, 2))
    assert address(again) == first
    assert again.shape == (3, 4, 2)
    assert again.flags.writeable
    assert again.flags.c_contiguous


def test_memory_that_is_too_small_is_not_handed_out() -> None:
    memory = WindowMemory()
    memory.take((2, 3))
    larger = memory.take((5, 3))
    larger[:] = 7
    assert larger.size == 15
    assert memory.take((0, 3)).shape == (0, 3)


def test_the_loader_takes_a_handful_of_windows_in_turn(store: Path) -> None:
    units = sampler.find_units(store, "train", None)
    sources = {unit.commit.slide_id: StoreSource(unit.commit.slide_id, store) for unit in units}
    options = LoaderOptions(batch_size=8, window=40, views_per_read=1, seed=0, check_views="none", threads=2)
    policy, used, asked = POLICIES["g2l"], set(), 0
    with ViewLoader(store, units, sources, policy, options) as loader:
        take = loader._memory.take

        def noted(shape: tuple[int, ...]) -> np.ndarray:
            nonlocal asked
            asked += 1
            window = take(shape)
            used.add(address(window))
            return window

        loader._memory.take = noted  # type: ignore[method-assign]
        for batch in itertools.islice(loader, 80):
            assert len(batch.views) == 8
    assert asked > 15
    assert len(used) <= 6  # in use, full, being filled, begun; a larger one takes the place of a smaller
