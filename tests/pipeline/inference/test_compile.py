"""``--compile``: the same features to rounding, from batches of one shape, and errors in one line."""

import functools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.extract.extract import extract
from pipeline.inference.loaded import EncoderSpec, OnDevice, compiled, load_on_device
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.errors import EncoderError
from stores.format import features
from tests.tools.settings import TEACHER, VIT

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")


def load(spec: str, batch_size: int) -> OnDevice:
    return load_on_device(
        EncoderSpec(spec, random_weights=0, device="cpu", dtype="float32", batch_size=batch_size)
    )


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.slow
@needs_compiler
def test_extraction_with_a_compiled_teacher(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    notes = Notes()
    extract([slides], tmp_path / "s", replace(TEACHER, compile=True), tile_options, notes)
    assert any(
        "tests.tools.tiny:teacher on cpu: float32" in text and "; compiled in " in text for text in notes.said
    )
    for slide in ("a", "b", "c"):
        for seed in range(3):
            plain, fast = (
                features.open_features(s, slide).read_block(seed, 0) for s in (store, tmp_path / "s")
            )
            np.testing.assert_allclose(fast, plain, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_short_batches_have_the_shape_that_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # time
    plain, fast = load(VIT, 6), compiled(load(VIT, 6), tokens=True)
    shapes: list[Any] = []
    inner = fast.encoder.with_tokens

    def noted(views: torch.Tensor) -> Any:
        shapes.append(tuple(views.shape))
        return inner(views)

    object.__setattr__(fast.encoder, "with_tokens", noted)
    rng = np.random.default_rng(0)
    for n in (6, 1, 4):
        views = rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)
        positions = rng.integers(0, 64, (n, 5)).astype(np.int32)
        for ours, expected in zip(
            fast.launch_tokens(views, positions), plain.launch_tokens(views, positions), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert shapes == [(6, 224, 224, 3)] * 3


def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        def fail(*args: Any) -> Any:
            raise RuntimeError("no compiler\nand a page of text")

        return fail

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(
        EncoderError, match=r"^--compile: tests\.tools\.tiny:teacher cannot be compiled here \(no compiler\)"
    ):
        compiled(load("tests.tools.tiny:teacher", 4))
