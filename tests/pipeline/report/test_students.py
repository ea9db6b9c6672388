"""The report of a run from elsewhere starts no code, downloads nothing, and says what it left out."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encoders import hub
from pipeline.encoders.load import load_encoder
from pipeline.report.options import ReportOptions
from pipeline.report.report import write_report
from pipeline.report.students import students_of
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from stores.io import files
from tests.tools.encoders import TINY, trained_encoder

SMALL = ReportOptions(max_slides=1, max_patches=4, views=0)
EVIL = "from pathlib import Path\nPath('ran').touch()\ndef make():\n    raise SystemExit('it ran')\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder as another lab may send it, beside a module with the name that it records."""
    from pipeline.encoders.export import export_encoder

    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    folder = tmp_path / "run"
    export_encoder(trained_encoder(), folder / "student", {"distilled_from": "x"})
    return folder


def nothing_happened(folder: Path) -> bool:
    return not (folder / "ran").exists() and "evil" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        "evil:make",
        "evil.py:make",
        "hf-hub:evil/model",
        f"hf-auto:evil/model@{40 * '0'}",
        "no such name",
        "x\0y",
    ],
)
def test_a_recorded_name_is_shown_and_not_loaded(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hub_problem", lambda *_: pytest.fail("the hub was asked"))
    trained, before, notes = students_of(run, {"student": name, "random_weights": 0}, SMALL)
    assert trained is not None  # its architecture stands in its folder
    assert before is None
    assert "the student before training is left out" in notes[0]
    assert "--student ENCODER" in notes[0]
    assert nothing_happened(tmp_path)


def test_a_recorded_path_is_not_opened(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_problem", lambda *_: pytest.fail("the hub was asked"))
    for recorded in ({"weights": "/etc/hostname"}, {}, {"random_weights": "7"}):
        _, before, notes = students_of(run, {"student": TINY, **recorded}, SMALL)
        assert before is None
        assert "name them: --student ENCODER, with --weights PATH" in notes[0]


def test_a_student_made_by_a_function_needs_its_name(run: Path, tmp_path: Path) -> None:
    files.write_json(run / "student" / "config.json", {"g2l": {"name": "evil:make"}})
    recorded = {"student": "evil:make", "random_weights": 0}
    trained, before, notes = students_of(run, recorded, SMALL)
    assert trained is None
    assert before is None
    assert "--student MODULE:FUNCTION" in notes[0]
    assert nothing_happened(tmp_path)
    with pytest.raises(SystemExit, match="it ran"):  # what the user names is the user's own program
        students_of(run, recorded, replace(SMALL, student="evil:make"))
    sys.modules.pop("evil", None)


def test_an_architecture_that_is_known_here_is_built(run: Path) -> None:
    _, before, notes = students_of(run, {"student": TINY, "random_weights": 3}, SMALL)
    assert before is not None
    assert notes == []
    views = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    assert torch.equal(before(views), load_encoder(TINY, random_weights=3)(views))
    _, before, notes = students_of(run, {"student": "h-optimus-0", "random_weights": 3}, SMALL)  # 4.5 GB
    assert before is None
    assert "another size" in notes[0]


def test_what_the_user_names_is_the_student_before_training(run: Path) -> None:
    named = replace(SMALL, student=TINY)
    _, before, notes = students_of(run, {"student": "evil:make", "random_weights": 3}, named)
    assert before is not None
    assert notes == []
    with pytest.raises(OptionError, match="gives 192 numbers, the student of the run 24"):
        students_of(
            run, {"student": "x", "random_weights": 0}, replace(SMALL, student="vit_tiny_patch16_224?depth=1")
        )


def foreign_run(folder: Path, begun: Any, summary: Any = None, metrics: str = "") -> Path:
    folder.mkdir()
    files.write_json(folder / "options.json", begun)
    (folder / "metrics.jsonl").write_text(metrics)
    if summary is not None:
        files.write_json(folder / "summary.json", summary)
    return folder


BEGUN: dict[str, Any] = {"options": {"student": "evil:make"}, "store_recipe": "0" * 64}


@pytest.mark.parametrize(
    ("begun", "summary", "part"),
    [
        ([1], None, "expected an object, found list"),
        ({}, None, "holds no options of `g2l distill`"),
        ({"options": {"student": 5}}, None, "holds no options of `g2l distill`"),
        ({"options": {"student": "x"}, "store_recipe": 5}, None, "names no recipe"),
        (BEGUN, [], "expected an object, found list"),
        (BEGUN, {"steps": "many"}, "steps is no number"),
        (BEGUN, {"steps": 5, "loss_first": 1, "loss_last": 1e300}, "loss_last is no number"),
    ],
)
def test_files_of_another_form_are_one_line(begun: Any, summary: Any, part: str, tmp_path: Path) -> None:
    folder = foreign_run(tmp_path / "run", begun, summary)
    with pytest.raises(OptionError) as caught:
        write_report(folder, tmp_path / "r.html", SMALL, Silent())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_figures_that_are_none_are_left_out(tmp_path: Path) -> None:
    lines = [
        "5",
        "[1]",
        '{"kind": "train", "step": "x", "loss": 1}',
        '{"kind": {}, "step": 1}',
        "[" * 100_000,
    ]
    lines += ['{"kind": "train", "step": 1, "loss": 1e308}', '{"kind": "val", "step": 2, "cka": [1]}']
    summary = {
        "steps": 1,
        "loss_first": 1,
        "loss_last": 2,
        "cka_after": {},
        "data_wait": "x",
        "g2l_version": "<b>",
    }
    folder = foreign_run(tmp_path / "run", BEGUN, summary, "\n".join(lines))
    shutil.copytree(folder, tmp_path / "copy")
    write_report(folder, tmp_path / "r.html", SMALL, Silent())
    text = (tmp_path / "r.html").read_text()
    assert "evil:make" in text
    assert "<b>" not in text.split("</style>")[1].split("evil:make")[0]
