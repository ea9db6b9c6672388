"""``--compile`` changes the program and not the training: weights, checkpoints, moving average and validation."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.distill import compiled, train
from pipeline.distill.model import Targets
from pipeline.distill.options import DistillOptions
from pipeline.runtime.progress import Silent
from stores.errors import DistillError, OptionError
from tests.pipeline.inference.test_compile import needs_compiler
from tests.tools.distill import OPTIONS, STUDENT, losses, made, weights, without_end
from tests.tools.steps import PX, a_batch, a_trainer

TINY = f"timm:vit_tiny_patch16_224?img_size={PX}&patch_size=16&embed_dim=16&depth=1&num_heads=2"
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs are traced, and run without code of their own: as different as names and modes are, and quick."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "_BACKEND", "eager")
    yield
    torch._dynamo.reset()


def after_steps(*, n: int = 2, **options: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights and losses after a few steps."""
    trainer = a_trainer(TINY, **options)
    views, targets = a_batch(6)
    found = [trainer.step(views, targets, 1e-3, 0.05, 6 * number)["loss"] for number in range(n)]
    state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    if trainer.ema is not None:
        state |= {f"ema.{name}": tensor.clone() for name, tensor in trainer.ema.state_dict().items()}
    return state, found


@pytest.mark.parametrize(
    "options",
    [{}, {"checkpointing": True, "ema": 0.5}, {"micro_batch": 4}],
    ids=["as it is", "checkpointing and average", "parts"],
)
def test_a_traced_student_learns_the_same(options: dict[str, Any], traced: None) -> None:
    state, found = after_steps(compile=True, **options)
    expected, plain = after_steps(**options)
    assert found == pytest.approx(plain, rel=1e-6)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)


def test_validation_is_not_compiled() -> None:
    trainer = a_trainer(TINY)
    views, _ = a_batch(4)
    calls: list[int] = []

    def noted(given: torch.Tensor) -> Any:
        calls.append(len(given))
        return trainer.model.student_pass(given)

    trainer.model.compiled = noted
    nowhere = torch.zeros(4, 0).long()
    trainer.model.embed(views, nowhere)
    trainer.model.eval().embed(views, nowhere)
    assert calls == [4]


def test_what_is_missing_or_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="--compile: --loss mse,attention has attention"):
        DistillOptions(student=TINY, loss="mse,attention", compile=True).validate()

    def fails(views: torch.Tensor) -> Any:
        raise torch._dynamo.exc.TorchDynamoException("beyond me\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(DistillError, match=r"cannot be compiled here \(beyond me\); leave --compile out"):
        after_steps(compile=True)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        OptionError, match=r"needs a C\+\+ compiler, and there is no g\+\+ or clang\+\+ on this"
    ):
        a_trainer(TINY, compile=True)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_run_continues_without_and_the_other_way_round(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "_BACKEND", backend)
    student = "timm:vit_tiny_patch16_224?embed_dim=16&depth=1&num_heads=2&patch_size=56"
    options = replace(
        OPTIONS, student=student, steps=2, batch_size=4, checkpoint_every=1, val_every=100, check_views="none"
    )
    expected: list[float] = []
    for name, first in (("plain", False), ("begun compiled", True), ("begun plain", False)):
        run = tmp_path / name
        train.distill(store, run, replace(options, compile=first), False, Silent())
        if expected:
            without_end(run)
            train.distill(store, run, replace(options, compile=not first), True, Silent())
        found = [loss for _, loss in losses(run)]
        expected = expected or found
        assert found == pytest.approx(expected, rel=1e-3)
        assert weights(run).keys() == weights(tmp_path / "plain").keys()


def test_targets_travel_as_they_are_stored(token_store: Path) -> None:
    """Half the bytes, and the same numbers."""
    trainer, held_out = made(token_store, replace(OPTIONS, loss="log-sum,token-cosine", student=STUDENT))
    batch = held_out.rows(slice(0, 4))
    sent: list[torch.Tensor] = []
    stored, wide = Targets.stored(batch), Targets.of(batch)
    stored.map(lambda tensor: sent.append(tensor) or tensor)  # type: ignore[func-returns-value]
    assert [tensor.dtype for tensor in sent] == [torch.float16, torch.float16, torch.int32]
    assert np.shares_memory(stored.features.numpy(), batch.targets)
    for a, b in (
        (stored.features, wide.features),
        (stored.tokens, wide.tokens),
        (stored.positions, wide.positions),
    ):
        assert a.nbytes * 2 == b.nbytes
        assert torch.equal(a.to(b.dtype), b)
    views = torch.from_numpy(batch.views)
    assert trainer.step(views, stored, 0.0, 0.0) == trainer.step(views, wide, 0.0, 0.0)
