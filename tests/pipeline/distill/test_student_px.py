"""A student that sees the teacher's view at a part of its resolution, in training and wherever it is used after."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.distill import train
from pipeline.encoders.encoder import token_grid
from pipeline.encoders.export import export_encoder
from pipeline.encoders.load import load_encoder
from pipeline.encoders.picture import shrunk
from pipeline.inference.loaded import EncoderSpec, load_on_device
from pipeline.report.options import ReportOptions
from pipeline.report.report import write_report
from pipeline.report.students import students_of
from pipeline.runtime.progress import Silent
from pipeline.slides.resample import resample_area
from pipeline.verify.options import VerifyOptions
from pipeline.verify.slide_views import require_teacher_of
from stores.errors import EncoderError, OptionError, RecipeMismatch
from stores.format import recipe
from tests.tools.distill import SHORT
from tests.tools.stores import RECIPE

VIT = "timm:vit_tiny_patch16_224?img_size=112&patch_size=14&depth=1&embed_dim=24&num_heads=3"
OPTIONS = replace(SHORT, student=VIT, student_px=112, batch_size=4, val_views=8)
VIEWS = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize("by", [2, 4, 7])
def test_a_pixel_is_the_mean_of_a_square_rounded_half_up(by: int) -> None:
    found = shrunk(torch.from_numpy(VIEWS), by).numpy()
    assert found.dtype == np.uint8
    side = 224 // by
    for number in range(200):
        b, y, x, c = np.random.default_rng(number).integers(0, (3, side, side, 3)).tolist()
        total = sum(int(VIEWS[b, y * by + i, x * by + j, c]) for i in range(by) for j in range(by))
        assert found[b, y, x, c] == int(total / by**2 + 0.5)
    if by != 7:
        assert np.array_equal(found, np.stack([resample_area(view, side) for view in VIEWS]))


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("half") / "run"
    train.distill(store, run, OPTIONS, False, Silent())
    return run


def test_the_exported_student_takes_whole_views(run: Path) -> None:
    assert json.loads((run / "options.json").read_text())["options"]["student_px"] == 112
    student = load_encoder(str(run / "student"))
    assert (student.image_px, student.shrink, token_grid(student)[0]) == (224, 2, 8)
    assert student.resizable is None  # its name with another img_size is another student
    views = torch.from_numpy(VIEWS)
    card = (run / "student/README.md").read_text()
    assert "RGB images of 224 px" in card
    assert "the network sees 112 px: means of squares of 2 px" in card
    lines = re.search(r"```python\n.*?\n(total = .*?)\n(x = .*?)\n```", card, re.S)
    assert lines is not None
    known: dict[str, Any] = {"uint8": views.permute(0, 3, 1, 2)}
    exec("\n".join(lines.groups()), known)
    import timm  # after torchvision's CPU build was made importable

    model = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    mean, std = (torch.tensor(value)[:, None, None] for value in (student.mean, student.std))
    with torch.inference_mode():
        torch.testing.assert_close(student(views), model((known["x"] - mean) / std), rtol=1e-4, atol=1e-5)
    with pytest.raises(EncoderError, match="takes 224x224 px"):
        student(views[:, :112, :112])


def test_its_weights_stay_bound_to_half_the_resolution(run: Path) -> None:
    """Under another name, in what a stage records, and when it learns on."""
    whole = load_encoder(str(run / "student"))
    named = load_encoder(VIT, weights=run / "student")
    assert (named.image_px, named.shrink) == (224, 2)
    with torch.inference_mode():
        assert torch.equal(named(torch.from_numpy(VIEWS)), whole(torch.from_numpy(VIEWS)))
    identity = load_on_device(EncoderSpec(str(run / "student"), device="cpu", view_px=224)).identity
    assert (identity.image_px, identity.shrink) == (224, 2)
    stored = replace(RECIPE, teacher=identity)
    assert recipe.from_json(stored.to_json(), "here") == stored
    assert stored.digest() != replace(RECIPE, teacher=replace(identity, shrink=1)).digest()
    assert "shrink" not in RECIPE.to_json()["teacher"]


def test_weights_of_a_function_stay_bound_too(tmp_path: Path) -> None:
    spec = "tests.tools.tiny:student"
    export_encoder(load_encoder(spec, random_weights=0).shrinking(2), tmp_path, {})
    found = load_encoder(spec, weights=tmp_path)
    assert (found.image_px, found.shrink) == (448, 2)
    (tmp_path / "config.json").write_text("{")  # it could say that they are no longer bound to anything
    with pytest.raises(
        EncoderError, match=r"config\.json: not a readable JSON file .*: it may say how these weights"
    ):
        load_encoder(spec, weights=tmp_path)


@pytest.mark.parametrize("shrink", [3, 0, -2, 2.5, "2", True, 1 << 40])
def test_a_config_with_squares_that_do_not_fill_the_view(run: Path, tmp_path: Path, shrink: Any) -> None:
    folder = Path(shutil.copytree(run / "student", tmp_path / "s"))
    config = json.loads((folder / "config.json").read_text())
    config["g2l"]["shrink"] = shrink
    (folder / "config.json").write_text(json.dumps(config))
    for spec, weights in ((str(folder), None), (VIT, folder)):
        with pytest.raises(EncoderError, match=r"shrink is .*; allowed"):
            load_encoder(spec, weights=weights)


def test_a_teacher_of_whole_views_is_another(run: Path) -> None:
    found = load_on_device(EncoderSpec(str(run / "student"), device="cpu", view_px=224))
    same = recipe.require_complete(replace(RECIPE, teacher=found.identity), Path("store"))
    require_teacher_of(same, found, VerifyOptions())
    other = replace(same, teacher=replace(found.identity, shrink=1))
    with pytest.raises(RecipeMismatch, match="shrink"):
        require_teacher_of(other, found, VerifyOptions())


def test_the_grid_of_a_student_of_any_size_is_that_of_what_it_sees() -> None:
    spec = VIT.replace("img_size=112", "dynamic_img_size=true")
    student = load_encoder(spec, random_weights=0).for_views(112).shrinking(2)
    with torch.inference_mode():
        _, tokens = student.with_tokens(torch.from_numpy(VIEWS))
    assert tokens.shape == (3, token_grid(student)[0] ** 2, 24) == (3, 64, 24)


@pytest.mark.slow
@pytest.mark.parametrize("px", [None, 112])
def test_it_learns_on_as_it_is(run: Path, store: Path, tmp_path: Path, px: int | None) -> None:
    options = replace(OPTIONS, student=str(run / "student"), random_weights=None, student_px=px, steps=1)
    train.distill(store, tmp_path / "run", options, False, Silent())
    assert load_encoder(str(tmp_path / "run/student")).shrink == 2
    with pytest.raises(OptionError, match="averages squares of 2 px of views of 224 px already; leave --stu"):
        train.distill(store, tmp_path / "other", replace(options, student_px=56), False, Silent())


@pytest.mark.slow
def test_a_cnn_sees_half_the_resolution(store: Path, tmp_path: Path) -> None:
    train.distill(store, tmp_path / "run", replace(OPTIONS, student="tinynet_e", steps=1), False, Silent())
    student = load_encoder(str(tmp_path / "run/student"))
    assert (student.image_px, student.shrink) == (224, 2)
    assert student.takes(448)
    assert not student.takes(225)
    recorded = json.loads((tmp_path / "run/options.json").read_text())["options"]
    _, before, _ = students_of(tmp_path / "run", recorded, ReportOptions())
    assert before is not None  # it would take whole views, but was not shown them
    expected = load_encoder("tinynet_e", random_weights=1).shrinking(2)
    with torch.inference_mode():
        torch.testing.assert_close(before(torch.from_numpy(VIEWS)), expected(torch.from_numpy(VIEWS)))


@pytest.mark.slow
@pytest.mark.parametrize("named", [{}, {"student": VIT, "random_weights": 1}], ids=["recorded", "named"])
def test_the_report_shows_the_run_before_and_after(
    run: Path, store: Path, tmp_path: Path, named: dict[str, Any]
) -> None:
    options = ReportOptions(store=store, max_slides=1, max_patches=4, views=0, **named)
    write_report(run, tmp_path / "r.html", options, Silent())
    text = (tmp_path / "r.html").read_text()
    assert "is left out" not in text
    assert "before training" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"student_px": 100},
            "--student-px 100: .* divisors of 224, the side of the views, such as 224, 112, 56",
        ),
        ({"student_px": 0}, "--student-px 0: allowed is 1 or more"),
        ({"student_px": 448}, "--student-px 448: .* divisors of 224"),
        ({"student_px": 56}, "takes 112 px, --student-px is 56"),
        (
            {"student": VIT.replace("img_size=112&", "")},
            r"takes 224 px, --student-px is 112, or have it built for such views: .*img_size=112",
        ),
        ({"student": "h0-mini"}, "--student h0-mini: takes 224 px, --student-px is 112"),
    ],
)
def test_sizes_that_are_refused(store: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        train.distill(store, tmp_path / "run", replace(OPTIONS, **change), False, Silent())
