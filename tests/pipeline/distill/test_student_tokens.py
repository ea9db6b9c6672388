"""A class token for each teacher: what each is compared with, what it starts from, and what becomes of it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.distill import train
from pipeline.distill.layers import freeze, parameter_groups
from pipeline.distill.losses import koleo
from pipeline.distill.model import Embedded, Targets, Teaching
from pipeline.distill.options import DistillOptions
from pipeline.distill.several import SeveralDistiller, build
from pipeline.distill.weighted import WeightedStore
from pipeline.encoders.attention import with_attentions
from pipeline.encoders.class_tokens import with_class_tokens
from pipeline.encoders.load import load_encoder
from pipeline.report.options import ReportOptions
from pipeline.report.students import students_of
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from stores.format.recipe import Attention
from tests.tools.distill import SHORT, STUDENT, losses, same
from tests.tools.encoders import shaken

OPTIONS = replace(SHORT, student_tokens="per-teacher", steps=4, checkpoint_every=2)
WIDTH = 24
LOSS = {"log-sum": 1.0, "koleo": 0.5, "attention": 1.0}


@pytest.fixture(scope="module")
def model() -> SeveralDistiller:
    teachings = [
        Teaching(dim, np.zeros(dim), np.ones(dim), attention=Attention(8, "rule"), name=name, loss=LOSS)
        for name, dim in (("a", 5), ("b", 3))
    ]
    student = with_class_tokens(load_encoder(STUDENT, random_weights=1), 2)
    built = build(student, teachings, replace(OPTIONS, loss="log-sum,koleo,attention"))
    assert isinstance(built, SeveralDistiller)
    return built.train()  # type: ignore[return-value]


def batch(n: int = 6) -> tuple[torch.Tensor, Targets]:
    g = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (n, 224, 224, 3), dtype=torch.uint8, generator=g)
    none = torch.zeros(n, 0, 0), torch.zeros(n, 0, dtype=torch.long)
    first, second = (
        Targets(torch.randn(n, dim, generator=g), *none, torch.rand(n, 64, generator=g)) for dim in (5, 3)
    )
    return views, replace(first, others=(second,), present=torch.ones(n, 2, dtype=torch.uint8))


def test_a_teacher_is_compared_with_its_own_token(model: SeveralDistiller) -> None:
    views, targets = batch()
    students = model.embed_for(views, [targets.positions] * 2)
    assert students[0].features.shape == (6, 2 * WIDTH)
    found = model._losses(students, targets)
    g = torch.Generator().manual_seed(1)
    for own, other, place in ((0, 1, slice(WIDTH, None)), (1, 0, slice(None, WIDTH))):
        moved = students[0].features.detach().clone()
        moved[:, place] = torch.randn(6, WIDTH, generator=g)  # what belongs to the other
        after = model._losses([Embedded(moved, None, one.attention) for one in students], targets)
        assert torch.equal(after[own], found[own])
        assert not torch.equal(after[other], found[other])
    lesson = model.lessons[1]
    terms = lesson.terms(students[1], targets.others[0], [(torch.ones(6, 3), torch.ones(6, 3))])
    assert torch.equal(terms["koleo"], koleo(students[1].features[:, WIDTH:]))
    assert model.student.dim == 2 * lesson.projector.linear.in_features  # type: ignore[union-attr]


def test_copies_part_at_the_first_step(model: SeveralDistiller) -> None:
    """Tokens and places are equal; what a teacher asks of its own is not."""
    views, targets = batch()
    backbone: Any = model.student.backbone
    assert torch.equal(backbone.cls_token[:, 0], backbone.reg_token[:, 0])
    assert torch.equal(backbone.pos_embed[:, 0], backbone.pos_embed[:, 1])
    one, other = (found.attention for found in model.embed_for(views, [targets.positions] * 2))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
    model.zero_grad()
    model(views, targets)[0].backward()
    first, second = backbone.cls_token.grad[0, 0], backbone.reg_token.grad[0, 0]
    assert float(torch.cosine_similarity(first, second, dim=0)) < 0.9
    assert all(p.grad is not None for p in model.parameters())


def test_each_teacher_has_the_attention_of_its_token() -> None:
    student = shaken(with_class_tokens(load_encoder(STUDENT, random_weights=1), 2))
    teachings = [
        Teaching(
            5, np.zeros(5), np.ones(5), attention=Attention(8, "rule"), name=name, loss={"attention": 1.0}
        )
        for name in "ab"
    ]
    built = build(student, teachings, replace(OPTIONS, loss="attention")).eval()
    views, targets = batch(2)
    with torch.inference_mode():
        found = built.embed_for(views, [targets.positions] * 2)
        expected = with_attentions(student, views)[2]
    assert not torch.equal(expected[:, 0], expected[:, 1])
    for number, one in enumerate(found):
        assert one.attention is not None
        assert torch.equal(one.attention, expected[:, number])


def test_rows_of_two_processes(model: SeveralDistiller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathered features are those of all tokens: turning everything round changes no loss."""
    plain = model(*batch())[1]
    monkeypatch.setattr(model, "gather", lambda tensor: tensor.flip(0))
    turned = model(*batch())[1]
    assert {k: float(v) for k, v in plain.items()} == pytest.approx(
        {k: float(v) for k, v in turned.items()}, rel=1e-5
    )


def test_class_tokens_learn_like_heads(model: SeveralDistiller) -> None:
    """Frozen with the stem, or at its slow rate, they would stay copies of each other."""
    groups = parameter_groups(model, 0.05, 0.5, False)
    rates = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    backbone: Any = model.student.backbone
    assert rates[id(backbone.cls_token)] == rates[id(backbone.reg_token)] == 1.0
    assert rates[id(backbone.pos_embed)] == rates[id(backbone.patch_embed.proj.weight)] == 0.5
    one = load_encoder(STUDENT, random_weights=1)
    for student, learns in ((one, False), (with_class_tokens(one, 2), True)):
        freeze(student, 1)
        parts: Any = student.backbone
        assert [p.requires_grad for p in (parts.cls_token, parts.reg_token, parts.pos_embed)] == [
            learns,
            learns,
            False,
        ]


@pytest.fixture(scope="module")
def two(store: Path, token_store: Path) -> list[WeightedStore]:
    return [WeightedStore(store, 1.0, "a"), WeightedStore(token_store, 0.5, "b")]


@pytest.fixture(scope="module")
def run(two: list[WeightedStore], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("tokens") / "run"
    train.distill(two, run, OPTIONS, False, Silent())
    return run


def views_of(n: int = 3) -> torch.Tensor:
    return batch(n)[0]


def test_the_exported_student(run: Path) -> None:
    student = load_encoder(str(run / "student"))
    assert (student.class_tokens, student.dim, student.pooling) == (2, 2 * WIDTH, "cls")
    config = json.loads((run / "student/config.json").read_text())
    assert [one["class_token"] for one in config["g2l"]["extra"]["teachers"]] == [0, 1]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["class_tokens"] == ["a", "b"]
    assert summary["teachers"]["a"]["cosine_after"] != summary["teachers"]["b"]["cosine_after"]
    card = (run / "student/README.md").read_text()
    assert "embedding: cls of 2 class tokens, one after another." in card
    assert re.search(r"\| 0 to 23 \| tests\.tools\.\S+ \| a \|\n\| 24 to 47 \| vit_tiny\S+ \| b \|", card)
    code = re.search(r"```python\nimport timm\n(.*?)```", card, re.S)
    assert code is not None
    views = views_of()
    known: dict[str, Any] = {"x": student.normalized(views)}
    with torch.inference_mode():
        import timm

        known["timm"] = timm
        exec(code[1].replace("local-dir:student", f"local-dir:{run / 'student'}"), known)
        known["model"].eval()
        exec("\n".join(code[1].splitlines()[1:]), known)
        assert torch.equal(known["features"], student(views))
        mean = re.search(r"`(features\[.*)`", card)
        assert mean is not None
        tokens = student(views).reshape(3, 2, WIDTH)
        torch.testing.assert_close(
            eval(mean[1], {"features": student(views)}), (tokens[:, 0] + tokens[:, 1]) / 2
        )


def test_the_report_finds_the_student_as_it_began(run: Path) -> None:
    recorded = json.loads((run / "options.json").read_text())["options"]
    expected = with_class_tokens(load_encoder(STUDENT, random_weights=1), 2)
    for options in (ReportOptions(), ReportOptions(student=STUDENT, random_weights=1)):
        _, before, notes = students_of(run, recorded, options)
        assert not notes
        assert before is not None
        with torch.inference_mode():
            assert torch.equal(before(views_of()), expected(views_of()))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_it_was(run: Path, two: list[WeightedStore], tmp_path: Path) -> None:
    cut = Path(shutil.copytree(run, tmp_path / "cut"))
    (cut / "summary.json").unlink()
    (cut / "checkpoints/step-00000004.pt").unlink()
    with pytest.raises(OptionError, match=r"--student-tokens shared: .* was begun with per-teacher"):
        train.distill(two, cut, replace(OPTIONS, student_tokens="shared"), True, Silent())
    train.distill(two, cut, OPTIONS, True, Silent())
    assert same(run, cut)
    assert losses(run) == losses(cut)


@pytest.mark.slow
def test_it_learns_on(run: Path, two: list[WeightedStore], tmp_path: Path) -> None:
    again = replace(OPTIONS, student=str(run / "student"), random_weights=None, steps=1)
    train.distill(two, tmp_path / "own", again, False, Silent())
    shared = replace(again, student_tokens="shared")
    train.distill(two[1:], tmp_path / "shared", shared, False, Silent())
    for name in ("own", "shared"):
        found = load_encoder(str(tmp_path / name / "student"))
        assert (found.class_tokens, found.dim) == (2, 2 * WIDTH)
        assert ("## Class tokens" in (tmp_path / name / "student/README.md").read_text()) == (name == "own")


REFUSED: list[tuple[dict[str, Any], Callable[[list[WeightedStore]], list[WeightedStore]], str]] = [
    ({"nested": "8"}, list, "--nested 8: with --student-tokens per-teacher the first numbers"),
    (
        {"pooling": "cls-average"},
        list,
        "--pooling cls-average: a student is trained with all its class tokens",
    ),
    ({}, lambda two: two[:1], "--student-tokens: is for several stores; give --store more than once"),
    (
        {"student": "tinynet_e"},
        list,
        "--student-tokens per-teacher: --student tinynet_e: tinynet_e cannot have several class tokens; allowed is a "
        "vision transformer",
    ),
]


@pytest.mark.parametrize(("change", "stores", "said"), REFUSED)
def test_what_is_refused(
    two: list[WeightedStore],
    tmp_path: Path,
    change: dict[str, Any],
    stores: Callable[[list[WeightedStore]], list[WeightedStore]],
    said: str,
) -> None:
    options: DistillOptions = replace(OPTIONS, **change)
    with pytest.raises(OptionError, match=re.escape(said)):
        train.distill(stores(two), tmp_path / "run", options, False, Silent())
    assert not (tmp_path / "run/options.json").exists()  # another try is no other run


def test_attention_of_one_of_several_tokens() -> None:
    teaching = Teaching(5, np.zeros(5), np.ones(5), attention=Attention(8, "rule"))
    student = with_class_tokens(load_encoder(STUDENT, random_weights=1), 2)
    with pytest.raises(
        OptionError, match="has 2 class tokens, and attention compares one; use --student-tok"
    ):
        build(student, [teaching], replace(SHORT, loss="attention"))
