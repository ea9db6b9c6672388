"""The term ``pair``: what it draws together, what it leaves apart, and that students with it do not collapse."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.loader import Batch, Paired
from pipeline.distill import loss_spec
from pipeline.distill.inputs import open_data
from pipeline.distill.losses import infonce
from pipeline.distill.model import Distiller, Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.several import build
from pipeline.distill.train import distill
from pipeline.distill.weighted import WeightedStore
from pipeline.encoders.load import load_encoder
from pipeline.metrics.rank import effective_rank
from stores.errors import OptionError, StoreError
from stores.export.export import ExportOptions, export
from stores.export.pseudonyms import Pseudonyms
from tests.tools.commands import g2l, one_error
from tests.tools.distill import OPTIONS, losses, same
from tests.tools.interrupted import Interrupted
from tests.tools.notes import Notes
from tests.tools.ranks import run_several
from tests.tools.steps import VIT, a_batch, a_teaching, a_trainer, gradients

PAIRS = replace(
    OPTIONS, student="tests.tools.tiny:student_of_64_px", loss="log-sum,pair:0.5", steps=8, threads=1
)


def reference(s: Tensor, t: Tensor, temperature: float, places: list[int]) -> float:
    """InfoNCE in both directions, entry by entry, without the entries of other views of the same place."""
    total = 0.0
    for one, other in ((s, t), (t, s)):
        for i in range(len(s)):
            of_i = [
                math.exp(float(functional.cosine_similarity(one[i], other[j], dim=0)) / temperature)
                for j in range(len(s))
                if i == j or places[i] < 0 or places[i] != places[j]
            ]
            own = math.exp(float(functional.cosine_similarity(one[i], other[i], dim=0)) / temperature)
            total -= math.log(own / sum(of_i))
    return total / (2 * len(s))


def test_views_of_one_place_are_no_wrong_answers() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(6, 5), torch.randn(6, 5)
    places = [3, -1, 3, 0, -1, 0]
    found = infonce(s, t, 0.2, torch.tensor(places))
    assert float(found) == pytest.approx(reference(s, t, 0.2, places), rel=1e-5)
    assert float(infonce(s, t, 0.2)) == pytest.approx(reference(s, t, 0.2, [-1] * 6), rel=1e-5)
    assert float(infonce(s, t, 0.2)) > float(found)


def made(loss: str, nested: str | None = None, dim: int = 24) -> Distiller:
    options = DistillOptions(student="s", loss=loss, nested=nested)
    student = load_encoder("tests.tools.tiny:student_of_64_px", random_weights=0)
    return build(student, [Teaching(dim, np.zeros(dim), np.ones(dim))], options)


def batch_of(has: list[bool], places: list[int], dim: int = 24) -> tuple[Tensor, Targets]:
    rng = np.random.default_rng(0)
    views, other = rng.integers(0, 256, (2, len(has), 64, 64, 3)).astype(np.uint8)
    none = np.empty((len(has), 0), np.int32)
    stored = rng.normal(size=(len(has), dim)).astype(np.float16), none[:, :, None].astype(np.float16), none
    paired = Paired(other, np.array(has), np.array(places, np.int32))
    return torch.from_numpy(views), Targets.of(Batch(0, views, *stored, paired=paired))


def test_the_term_compares_embeddings_of_views_that_have_one_beside_them() -> None:
    model = made("infonce,pair:0.5", "4,8")
    places = [0, 0, -1, 1, 2, 2]
    views, targets = batch_of([True, True, False, True, True, False], places)
    assert targets.beside is not None
    total, found = model(views, targets)
    rows = [0, 1, 3, 4]
    with torch.no_grad():
        mine, other = model.student(views[rows]), model.student(targets.beside[rows])
        each = [reference(mine[:, :n], other[:, :n], 0.1, [places[i] for i in rows]) for n in (12, 4, 8)]
        projected = model.every_projected(model.student(views)).values()
        target = model.target_norm(targets.features)
        of_teacher = [reference(s, target, 0.1, places) for s in projected]
    assert float(found["pair"]) == pytest.approx(np.mean(each), rel=1e-4)
    assert float(found["infonce"]) == pytest.approx(np.mean(of_teacher), rel=1e-4)  # masked too
    assert float(total.detach()) == pytest.approx(np.mean(of_teacher) + 0.5 * np.mean(each), rel=1e-4)


def test_a_batch_without_pairs_has_no_part_in_the_term() -> None:
    model = made("mse,pair")
    views, targets = batch_of([False] * 4, [-1] * 4)
    total, found = model(views, targets)
    assert float(found["pair"]) == 0
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


class _Student(nn.Module):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def trained(term: str) -> tuple[float, float, float]:
    """Effective rank, mean cosine of pairs and top-1 among all, of 256 places that two scanners show.

    A scanner adds noise and an offset of its own, as large as what differs between places.
    """
    torch.manual_seed(0)
    place, scanner = torch.randn(256, 32), 2 * torch.randn(2, 32)
    student = _Student()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)

    def seen(which: int) -> Tensor:
        return student(place + scanner[which] + 0.3 * torch.randn(256, 32))

    for _ in range(150):
        a, b = seen(0), seen(1)
        drawn = 1 - functional.cosine_similarity(a, b, dim=1).mean()
        loss = {"untrained": 0 * a.sum(), "drawn together": drawn, "pair": infonce(a, b)}[term]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        a, b = functional.normalize(seen(0), dim=1), functional.normalize(seen(1), dim=1)
    top = (a @ torch.cat([b, a]).T - 9 * torch.eye(256, 512).roll(256, 1)).argmax(1) == torch.arange(256)
    both = torch.cat([a, b]).numpy()
    return effective_rank(both), float((a * b).sum(1).mean()), float(top.float().mean())


def test_drawing_pairs_together_alone_collapses_and_the_term_does_not() -> None:
    before, alone, term = trained("untrained"), trained("drawn together"), trained("pair")
    assert alone[1] > 0.99  # the best cosine of all ...
    assert alone[0] < 0.4 * before[0]  # ... of a student that lost its dimensions
    assert term[0] > before[0]
    assert term[1] > before[1]
    assert term[2] > 0.95 > alone[2] > before[2]


def test_a_run_with_pairs_continues_exactly_and_is_the_same_in_two_processes(
    paired: Path, tmp_path: Path
) -> None:
    notes = Notes()
    whole = distill(paired, tmp_path / "whole", PAIRS, False, notes)
    assert "pairs: 45 of 48 training patches show 15 places that others show too; held out 15" in notes.said
    assert whole["val_loss_after"] is not None
    assert whole["val_loss_constant"] is None
    with pytest.raises(KeyboardInterrupt):
        distill(paired, tmp_path / "part", replace(PAIRS, checkpoint_every=2), False, Interrupted(6))
    distill(paired, tmp_path / "part", replace(PAIRS, threads=2), True, Notes())
    assert same(tmp_path / "whole", tmp_path / "part")
    run_several(paired, tmp_path / "two", replace(PAIRS, batch_size=4), 2)
    for (_, one), (_, two) in zip(losses(tmp_path / "whole"), losses(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.long
@pytest.mark.torchrun
def test_pairs_of_two_stores_in_two_processes(paired: Path, tmp_path: Path) -> None:
    """All at once: tiles, a second store of int8 values, pairs, an interruption, two processes."""
    export(paired, tmp_path / "b", ExportOptions("int8"))
    two = [WeightedStore(paired, 1.0, "store"), WeightedStore(tmp_path / "b", 0.5, "b")]
    notes = Notes()
    whole = distill(two, tmp_path / "whole", PAIRS, False, notes)
    assert any(text.startswith("pairs: 45 of 48 training patches show 15 places") for text in notes.said)
    assert whole["teachers"].keys() == {"store", "b"}
    with pytest.raises(KeyboardInterrupt):
        distill(two, tmp_path / "part", replace(PAIRS, checkpoint_every=2), False, Interrupted(6))
    distill(two, tmp_path / "part", replace(PAIRS, threads=2), True, Notes())
    assert same(tmp_path / "whole", tmp_path / "part")
    named = [(str(one.store), one.weight) for one in two]
    run_several(named, tmp_path / "two", replace(PAIRS, batch_size=4), 2)
    for (_, one), (_, other) in zip(losses(tmp_path / "whole"), losses(tmp_path / "two"), strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.long
def test_tiles_of_two_stores_under_pseudonyms_of_one_key(paired: Path, tmp_path: Path) -> None:
    """The same views in the same order: the same run."""
    options, found = replace(PAIRS, loss="log-sum", steps=4), []
    for name, key in (("plain", None), ("under pseudonyms", Pseudonyms(b"x" * 16))):
        folder = tmp_path / name
        for of, compact in (("a", "lossless"), ("b", "int8")):
            export(paired, folder / of, ExportOptions(compact, key))
        two = [WeightedStore(folder / of, 1.0, of) for of in "ab"]
        distill(two, folder / "run", options, False, Notes())
        found.append(losses(folder / "run"))
    assert found[0] == found[1]


def test_the_order_of_views_is_that_of_a_run_without_pairs(paired: Path, tmp_path: Path) -> None:
    """The first loss of the teacher's term is that of the plain run, to the bit: the same views, the same weights."""
    plain = distill(paired, tmp_path / "plain", replace(PAIRS, loss="log-sum", steps=1), False, Notes())
    distill(paired, tmp_path / "pair", replace(PAIRS, steps=1), False, Notes())
    text = (tmp_path / "pair" / "metrics.jsonl").read_text()
    assert f'"loss_log-sum": {plain["loss_first"]!r}' in text


def test_what_has_no_pairs_is_refused(store: Path, paired: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"--loss log-sum,pair:0.5: pair needs tiles of one place, and no two train"
    ):
        open_data(store, PAIRS, 1, Notes())
    run = (
        "distill",
        "--store",
        store,
        "--student",
        PAIRS.student,
        "--loss",
        "pair",
        "--out",
        tmp_path / "run",
    )
    one_error(
        g2l(*run),
        "--loss pair: pair does not use the teacher; add a term that does, such as log-sum,pair:0.1",
    )
    for text in ("pair", "koleo,pair"):
        with pytest.raises(OptionError, match="does not use the teacher"):
            loss_spec.parse(text)


@pytest.mark.parametrize("n_teachers", [1, 2])
def test_a_step_in_parts_has_the_gradient_of_the_step(n_teachers: int) -> None:
    loss = {"mse": 1.0, "pair": 0.5}
    teachings = [a_teaching(name=name, loss=loss) for name in "ab"[:n_teachers]]
    views, targets = a_batch(10, n_teachers)
    has = np.array([1, 1, 0, 1, 0, 0, 0, 1, 1, 1], bool)
    other = np.random.default_rng(0).integers(0, 256, views.shape).astype(np.uint8)
    paired = Paired(other, has, np.arange(10, dtype=np.int32) // 2)
    whole, parts = (
        a_trainer(VIT, *teachings, loss="mse,pair:0.5", drop_path=0.5, micro_batch=size) for size in (None, 3)
    )
    found = [trainer.backward(views, targets.with_pairs(paired), seed=3) for trainer in (whole, parts)]
    assert float(found[1][0]) == pytest.approx(float(found[0][0]), rel=1e-5)
    undivided, divided = gradients(whole), gradients(parts)
    assert undivided.keys() == divided.keys()
    for name, gradient in undivided.items():
        torch.testing.assert_close(divided[name], gradient, rtol=1e-3, atol=1e-6)
