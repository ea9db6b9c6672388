"""The questions about several teachers can be asked, and their tables say what was found."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bench.evidence import answers
from tests.bench.evidence.questions import Arm, Setting

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "experiments" / "several-teachers"
QUESTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "tissue")


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_arm_can_be_run(name: str, tmp_path: Path) -> None:
    base = yaml.safe_load((FOLDER / "tissue.yaml").read_text())
    setting = Setting(tmp_path, tmp_path / "tissue" / "tissue.csv", base)
    question = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(question) - {"means"} == {"question", "along", "agreement", "against", "arms"}
    means = question.get("means", {})
    assert question["against"] in {*question["arms"], *means}
    assert {arm for of in means.values() for arm in of} <= set(question["arms"])
    assert set(question["agreement"]) <= set(base["teachers"])
    for said in question["arms"].values():
        assert set(said) <= {"teachers", "distill"}
        arm = Arm.of(said)
        assert {teacher for teacher, _ in arm.teachers} <= set(base["teachers"])
        options = setting.options(arm.changes, 2)
        options.validate()
        assert (options.seed, options.random_weights) == (2, 2)


def test_weights_of_teachers() -> None:
    assert Arm.of({"teachers": ["a", "b"]}).teachers == (("a", 1.0), ("b", 1.0))
    assert Arm.of({"teachers": {"a": 1, "b": 0.5}}).teachers == (("a", 1.0), ("b", 0.5))


def test_an_answer_has_paired_differences_and_means_of_arms(tmp_path: Path) -> None:
    def runs(right: list[float], cosine: float) -> list[dict[str, Any]]:
        judged = {"image": ["0", "0", "1", "1"], "knn": right, "linear": right}
        agreement = {"a": {"cka_unbiased": 0.5, "cosine": cosine}, "b": {"cka_unbiased": 0.5, "cosine": 0.0}}
        return [{"lung_colon": judged, "colorectal": judged, "agreement": agreement}]

    question = {"along": "teachers", "agreement": ["a", "b"], "against": "one", "means": {"one": ["x", "y"]}}
    results = {
        "x": runs([1.0, 0.0, 0.0, 0.0], 0.2),
        "y": runs([1.0, 1.0, 0.0, 0.0], 0.4),
        "both": runs([1.0] * 4, 0.6),
    }
    answers.report(tmp_path / "question", question, results)
    assert (tmp_path / "question.png").stat().st_size > 0
    agreement, accuracy, difference = (tmp_path / "question.md").read_text().split("\n\n")
    assert (
        "| one | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) | 0.30 (0.30 to 0.30) | 0.00 (0.00 to 0.00) |"
        in agreement
    )
    assert "| both | 1.00 (1.00 to 1.00) |" in accuracy
    assert "0.62 (" in next(line for line in difference.splitlines() if line.startswith("| both |"))
    assert "+0.150 (+0.150 to +0.150)" in difference
    assert "| one |" not in difference
