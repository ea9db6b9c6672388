"""A student of several teachers: which targets have a part in the loss, names and weights, resumed runs."""

import html
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.data.loader import batch_of
from pipeline.distill import train
from pipeline.distill.model import Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.result import Distilled
from pipeline.distill.several import SeveralDistiller, build, drawn
from pipeline.distill.validate import identities
from pipeline.distill.weighted import WeightedStore, losses_of, named, parse_weight
from pipeline.encoders.load import load_encoder
from pipeline.report.options import ReportOptions
from pipeline.report.report import write_report
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from stores.format.recipe import Tokens
from tests.tools.distill import OPTIONS, VIT, losses, same
from tests.tools.made_stores import MadeSlide, make_store


def test_draws_follow_from_the_place_of_a_view() -> None:
    whole = drawn(3, 0, 64, 5, 0.3)
    for at, n in ((0, 7), (7, 40), (47, 17)):
        assert torch.equal(drawn(3, at, n, 5, 0.3), whole[at : at + n])
    assert 0.25 < float(drawn(0, 0, 20_000, 3, 0.3).float().mean()) < 0.35
    assert not torch.equal(drawn(4, 0, 64, 5, 0.3), whole)


def test_names_and_weights() -> None:
    pairs = [parse_weight("lab/uni2:0.5"), parse_weight("s3://c/virchow2")]
    assert [(s.name, s.weight) for s in named(pairs)] == [("uni2", 0.5), ("virchow2", 1.0)]
    assert [s.name for s in named([("x/store", 1.0), ("y/store", 1.0)])] == ["1", "2"]
    for text, path in (("x/a:2:1", "x/a:2"), ("x/a:b", "x/a:b"), ("http://host:9000", "http://host:9000")):
        assert parse_weight(text) == (path, 1.0)
    for text in ("a:0", "a:-1", "a:inf", "a:nan"):
        with pytest.raises(OptionError, match="allowed is a number above 0"):
            parse_weight(text)
    for again in ("a/", "./a", "b/../a"):
        with pytest.raises(OptionError, match="given twice"):
            named([("a", 1.0), (again, 2.0)])
    assert [s.name for s in named([("x/a store", 1.0), ("y", 1.0)])] == ["1", "2"]  # no name of a figure
    named([(str(n), 1.0) for n in range(16)])
    with pytest.raises(OptionError, match="17 stores; allowed are at most 16"):
        named([(str(n), 1.0) for n in range(17)])
    with pytest.raises(OptionError, match="one store has no weight"):
        named([("a", 0.5)])


def test_each_store_has_its_terms() -> None:
    two = named([("a", 1.0), ("b", 1.0)])
    own = losses_of(two, DistillOptions(loss="a=log-sum,koleo:0.1,b=cosine"))
    assert own == [{"log-sum": 1.0, "koleo": 0.1}, {"cosine": 1.0}]
    assert losses_of(two, DistillOptions(loss="mse")) == [{"mse": 1.0}] * 2
    for loss, said in (("a=mse", "no terms for the store b"), ("a=mse,c=mse", "c is no store of this run")):
        with pytest.raises(OptionError, match=said):
            losses_of(two, DistillOptions(loss=loss))
    with pytest.raises(OptionError, match="there is one store"):
        losses_of(two[:1], DistillOptions(loss="a=mse"))
    with pytest.raises(OptionError, match=r"teacher-drop 0.5: .* dino has none"):
        losses_of(two, DistillOptions(loss="a=mse,b=dino", teacher_drop=0.5))
    with pytest.raises(OptionError, match="is for several stores"):
        losses_of(two[:1], DistillOptions(teacher_drop=0.5))


@pytest.fixture
def model() -> SeveralDistiller:
    student = load_encoder("tests.tools.tiny:student", random_weights=0)
    loss = {"mse": 1.0}
    teachings = [
        Teaching(5, np.zeros(5), np.ones(5), name="a", loss=loss),
        Teaching(3, np.zeros(3), np.ones(3), name="b", weight=0.5, loss=loss),
    ]
    built = build(student, teachings, DistillOptions(teacher_norm="store"))
    assert isinstance(built, SeveralDistiller)
    built.train()
    return built


def targets_of(present: torch.Tensor, let_go: torch.Tensor | None = None) -> Targets:
    n, generator = len(present), torch.Generator().manual_seed(0)
    none = torch.zeros(n, 0, 0), torch.zeros(n, 0, dtype=torch.long)
    first, second = (Targets(torch.randn(n, dim, generator=generator), *none) for dim in (5, 3))
    return replace(first, others=(second,), present=present.to(torch.uint8), let_go=let_go)


def test_a_missing_target_has_no_part(model: SeveralDistiller) -> None:
    views = torch.randint(
        0, 256, (6, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    present = torch.ones(6, 2, dtype=torch.bool)
    total, found = model(views, targets_of(present))
    assert float(total.detach()) == pytest.approx(float(found["a"]) + 0.5 * float(found["b"]))
    present[[0, 2, 3, 5], 1] = False
    targets = targets_of(present)
    less, _ = model(views, targets)
    targets.others[0].features[[0, 2, 3, 5]] = 1e4  # what is not there cannot matter
    assert torch.equal(model(views, targets)[0], less)
    present[4, 1] = False  # one view: no part in the step, but in the graph
    total, found = model(views, targets_of(present))
    assert float(found["b"]) == 0
    total.backward()
    assert all(float(p.grad.abs().sum()) == 0 for p in model.others.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_held_out_views_are_known_by_their_pixels() -> None:
    views = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    shapes = (((4, 5), np.float16), ((4, 0, 5), np.float16), ((4, 0), np.int32), ((4, 0), np.float16))
    stored: list[npt.NDArray[Any]] = [np.zeros(shape, dtype) for shape, dtype in shapes]
    one = batch_of(0, views, *stored)
    (whole,) = identities(one)
    assert whole["views"] == 4
    mixed = one.rows([2, 0, 3, 1])
    assert identities(mixed) == [whole]  # their order does not matter
    present = np.array([[True, True], [True, False], [True, True], [True, True]])
    first, second = identities(batch_of(0, views, *stored, *stored, present))
    assert first == whole
    assert second["views"] == 3
    assert second == identities(one.rows([0, 2, 3]))[0]
    views[1, 0, 0, 0] ^= 1
    assert identities(batch_of(0, views, *stored))[0]["sha256"] != whole["sha256"]


def test_dropping_keeps_the_teacher_with_the_highest_loss(model: SeveralDistiller) -> None:
    error = torch.tensor([[1.0, 2.0], [4.0, 3.0], [1.0, 9.0]])
    pairs = [[(error[:, k : k + 1].sqrt(), torch.zeros(3, 1))] for k in range(2)]
    present, every = torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)
    assert model._kept(present, every, pairs).tolist() == [[False, True], [True, False], [False, True]]
    assert model._kept(present, ~every, pairs).all()
    # means over the dimensions of a teacher, of the whole embedding: neither more of them nor prefixes count
    one, other = torch.ones(3, 5), torch.full((3, 3), 1.2)
    pairs = [[(one, 0 * one), (9 * one, 0 * one)], [(other, 0 * other)]]
    assert model._kept(present, every, pairs).tolist() == [[False, True]] * 3
    present[0], present[1, 1] = False, False  # nothing is kept that is not there
    pairs = [[(one[:2], 0 * one[:2])], [(other[:1], 0 * other[:1])]]
    assert model._kept(present, every, pairs).tolist() == [[False, False], [True, False], [False, True]]


@pytest.fixture(scope="module")
def of_tokens() -> Callable[..., SeveralDistiller]:
    """Builds a student of two teachers with tokens and prefixes, always of the same weights."""
    loss, tokens = {"mse": 1.0, "token-cosine": 1.0}, Tokens(4, 7, 6, "rule")
    teachings = [
        Teaching(dim, np.zeros(dim), np.ones(dim), tokens, name=name, loss=loss)
        for name, dim in (("a", 5), ("b", 3))
    ]

    def made(gather: Callable[[torch.Tensor], torch.Tensor] | None = None) -> SeveralDistiller:
        built = build(
            load_encoder(VIT, random_weights=0), teachings, DistillOptions(nested="8"), gather=gather
        )
        assert isinstance(built, SeveralDistiller)
        built.train()
        return built

    return made


def with_tokens(present: torch.Tensor, let_go: torch.Tensor | None = None) -> tuple[torch.Tensor, Targets]:
    """Views, and targets with tokens of other places for each teacher."""
    n, g = len(present), torch.Generator().manual_seed(2)
    views = torch.randint(0, 256, (n, 224, 224, 3), dtype=torch.uint8, generator=g)
    first, second = (
        Targets(
            torch.randn(n, dim, generator=g),
            torch.randn(n, 4, 6, generator=g),
            torch.randint(0, 49, (n, 4), generator=g),
        )
        for dim in (5, 3)
    )
    return views, replace(first, others=(second,), present=present.to(torch.uint8), let_go=let_go)


def test_each_teacher_has_the_places_of_its_own_tokens(of_tokens: Callable[..., SeveralDistiller]) -> None:
    views, targets = with_tokens(torch.ones(6, 2))
    before = of_tokens()(views, targets)[1]
    moved = replace(targets, others=(replace(targets.others[0], positions=48 - targets.others[0].positions),))
    after = of_tokens()(views, moved)[1]
    assert before["a"] == after["a"]
    assert before["b"] != after["b"]


def test_rows_of_all_processes_are_put_together_in_one_order(
    of_tokens: Callable[..., SeveralDistiller],
) -> None:
    """Turning everything round changes no loss; turning features, tokens or targets alone does."""
    present, let_go = torch.ones(6, 2), torch.zeros(6, 2, dtype=torch.uint8)
    present[:2, 1], let_go[1:4] = 0, 1
    batch = with_tokens(present, let_go)
    plain, turned = (of_tokens(gather)(*batch)[1] for gather in (None, lambda tensor: tensor.flip(0)))
    assert {name: float(loss) for name, loss in plain.items()} == pytest.approx(
        {name: float(loss) for name, loss in turned.items()}, rel=1e-5
    )


def test_what_is_let_go_of_has_no_part(of_tokens: Callable[..., SeveralDistiller]) -> None:
    """Normalised over the views that the teacher has; the terms are over those that it keeps."""
    model, (views, targets) = of_tokens(), with_tokens(torch.ones(6, 2), torch.ones(6, 2, dtype=torch.uint8))
    found = model(views, targets)[1]
    model = of_tokens()
    students = model.embed_for(views, [targets.positions, targets.others[0].positions])
    pairs = [
        [(s, lesson.target_norm(target.features)) for s in lesson.every_projected(student.features).values()]
        for lesson, student, target in zip(model.lessons, students, (targets, *targets.others), strict=True)
    ]
    error = torch.stack([(s - t).square().mean(1) for (s, t), _ in pairs], 1)
    for k, name in enumerate("ab"):
        kept = (error.argmax(1) == k).nonzero().flatten()
        assert 2 <= len(kept) <= 4
        of_kept = [(s[kept], t[kept]) for s, t in pairs[k]]
        target = (targets, *targets.others)[k].alone(kept)
        terms = model.lessons[k].terms(students[k].rows(kept), target, of_kept)
        of_features = sum((s - t).square().mean() for s, t in of_kept) / 2
        assert float(found[name]) == pytest.approx(
            float((of_features + terms["token-cosine"]).detach()), rel=1e-5
        )


def test_a_teacher_without_a_part_is_in_the_graph(of_tokens: Callable[..., SeveralDistiller]) -> None:
    model, present = of_tokens(), torch.ones(6, 2)
    present[:, 1] = 0
    model(*with_tokens(present))[0].backward()
    assert all(p.grad is not None for p in model.others.parameters())


@pytest.mark.slow
def test_a_run_on_two_stores_goes_on_as_it_was(store: Path, token_store: Path, tmp_path: Path) -> None:
    two = [WeightedStore(store, 1.0, "a"), WeightedStore(token_store, 0.5, "b")]
    options = replace(OPTIONS, steps=12, checkpoint_every=6, teacher_drop=0.5)
    whole = tmp_path / "whole"
    summary = train.distill(two, whole, options, False, Silent())
    assert set(summary["teachers"]) == {"a", "b"}
    assert summary["cka_after"] == pytest.approx(
        np.mean([of["cka_after"] for of in summary["teachers"].values()])
    )
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / "summary.json").unlink()
    (cut / "checkpoints/step-00000012.pt").unlink()
    for other in ([replace(two[0], weight=2.0), two[1]], two[:1]):
        with pytest.raises(
            OptionError, match=r"begun with a \(recipe .* give the same stores|is for several stores"
        ):
            train.distill(other, cut, options, True, Silent())
    train.distill(two, cut, options, True, Silent())
    assert same(whole, cut)
    assert losses(whole) == losses(cut)
    begun = json.loads((whole / "options.json").read_text())
    assert [one["weight"] for one in begun["stores"]] == [1.0, 0.5]
    card = (whole / "student/README.md").read_text()
    assert "| tests.tools.tiny:teacher | a | 1 |" in card
    assert "figures are means over the teachers on held-out patients" in card
    said = "\n".join(Distilled(whole, summary).lines())
    assert f"CKA to the 2 teachers (mean) {summary['cka_before']:.3f}" in said
    prefix = Distilled(whole, summary | {"nested": {"8": {"cka": 0.5}}}).lines()
    assert "held out: CKA to the 2 teachers (mean) of the first 8 numbers 0.500" in prefix
    for name, of in summary["teachers"].items():
        changed = f"{of['cka_before']:.3f} {{}} {of['cka_after']:.3f}"
        assert f"  {of['teacher']} ({name}): CKA {changed.format('->')}, " in said
    of_given = {one.store: summary["teachers"][one.name]["teacher"] for one in two}
    for given in (store, token_store):
        write_report(whole, tmp_path / "page.html", ReportOptions(store=given), Silent())
        page = (tmp_path / "page.html").read_text()
        assert "distilled from 2 teachers" in page
        assert "to the teacher on the patches below" not in page  # it is one of two
        shown = f"{of_given[given]} ({'/'.join(given.parts[-2:])})"
        assert f"linear CKA to {html.escape(shown)} on the patches below" in page
        for name, of in summary["teachers"].items():
            assert of["held_out"]["views"] > 1
            changed = f"{of['cka_before']:.3f} → {of['cka_after']:.3f}"
            assert f"<td>{html.escape(of['teacher'])} ({name})</td><td>{changed}</td>" in page
        first, second = ((given, "b"), ("a", given))[given == token_store]
        assert f"--store {first} --store {second}:0.5 --out" in page
    stranger = make_store(tmp_path / "other", [MadeSlide("a")])
    with pytest.raises(OptionError, match="another store than the run trained on"):
        write_report(whole, tmp_path / "page.html", ReportOptions(store=stranger), Silent())


@pytest.mark.slow
def test_one_store_records_what_it_always_did(store: Path, tmp_path: Path) -> None:
    train.distill([WeightedStore(store)], tmp_path / "r", replace(OPTIONS, steps=2), False, Silent())
    begun = json.loads((tmp_path / "r/options.json").read_text())
    assert set(begun) == {"options", "store_recipe", "stream", "sample"}
    state = torch.load(tmp_path / "r/checkpoints/step-00000002.pt", weights_only=True)["model"]
    heads = {name for name in state if not name.startswith("student.")}
    names = {
        "linear.weight",
        "linear.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    assert heads == {f"projector.{name}" for name in names}
    assert "teachers" not in json.loads((tmp_path / "r/summary.json").read_text())


def test_heads_follow_from_the_seed() -> None:
    teachings = [Teaching(3, np.zeros(3), np.ones(3), name=name, loss={"mse": 1.0}) for name in "ab"]
    student = load_encoder("tests.tools.tiny:student", random_weights=0)
    built = [build(student, teachings, DistillOptions(seed=seed)).state_dict() for seed in (1, 1, 2)]
    first, again, other = (heads["others.0.projector.linear.weight"] for heads in built)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
