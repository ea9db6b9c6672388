"""The files of docs/experiments say what can be run, for small encoders and for true ones; how runs are judged."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
import yaml

from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.encoders.load import load_encoder
from pipeline.extract.options import ExtractOptions
from pipeline.tile.options import TileOptions
from pipeline.views.policy import load_policy
from tests.bench import experiments
from tests.bench.experiments import Setting

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "experiments"
BASES = ("small", "real", "real-vit-s")
QUESTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in (*BASES, "small-policy"))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_every_arm_can_be_run(
    base: str, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    setting = Setting(tmp_path, tmp_path, None, yaml.safe_load((FOLDER / f"{base}.yaml").read_text()))
    found = yaml.safe_load((FOLDER / f"{question}.yaml").read_text())
    assert set(found) == {"question", "along", "arms"}
    for name, arm in found["arms"].items():
        assert isinstance(name, str)
        assert set(arm) <= {"tile", "extract", "prototypes", "distill", "fresh", "untrained"}, name
        tile = TileOptions(**setting.section(arm, "tile"))
        tile.validate()
        extract = ExtractOptions(**setting.section(arm, "extract"))
        extract.validate()
        assert load_policy(extract.policy).patch_px == tile.patch
        PrototypeOptions(**setting.section(arm, "prototypes")).validate()
        distill = DistillOptions(**setting.section(arm, "distill"), random_weights=0)
        replace(distill, prototypes=tmp_path).validate()
        assert distill.seeds is None or distill.seeds <= extract.seeds


def test_the_teacher_of_the_small_ones() -> None:
    teacher = load_encoder("tests.bench.experiment_teacher:make", random_weights=0)
    features, tokens = teacher.with_tokens(torch.zeros(2, 112, 112, 3, dtype=torch.uint8))
    assert features.shape == (2, 192)
    assert tokens.shape == (2, 64, 192)


@pytest.mark.slow
def test_a_slide_is_cut_into_strips(slides: Path, tmp_path: Path) -> None:
    table = experiments.cut(slides, tmp_path, 4, {"a": 0.25})
    with table.open(newline="") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 12
    assert [rows[f"a-{i}"]["split"] for i in range(4)] == ["train", "val", "train", "train"]
    assert float(rows["a-0"]["mpp"]) == 0.25
    assert float(rows["b-0"]["mpp"]) == pytest.approx(0.5)
    with (
        openslide.OpenSlide(str(slides / "a.tiff")) as whole,
        openslide.OpenSlide(str(tmp_path / "a-2.tiff")) as strip,
    ):
        assert strip.dimensions == (1536, 384)
        expected = np.asarray(whole.read_region((100, 768 + 50), 0, (64, 64)))
        np.testing.assert_array_equal(np.asarray(strip.read_region((100, 50), 0, (64, 64))), expected)


def test_cosine_after_the_best_linear_map() -> None:
    rng = np.random.default_rng(0)
    x, mix = rng.normal(size=(300, 6)), rng.normal(size=(6, 9))
    y = x @ mix * np.logspace(0, 3, 9) + 5  # dimensions of very different size
    assert experiments.mapped_cosine(x[:200], y[:200], x[200:], y[200:]) > 0.999
    noise = rng.normal(size=(300, 6))
    assert abs(experiments.mapped_cosine(noise[:200], y[:200], noise[200:], y[200:])) < 0.1


def test_table_and_picture(tmp_path: Path) -> None:
    arms = {"one": [{"cka": 0.5}, {"cka": 0.7}, {"cka": 0.6}], "two": [{"cka": 0.1}] * 3}
    experiments.report(tmp_path / "q", "what", arms)
    assert (tmp_path / "q.md").read_text().splitlines()[2:] == [
        "| one | 0.600 (0.500 to 0.700) |",
        "| two | 0.100 (0.100 to 0.100) |",
    ]
    assert (tmp_path / "q.png").stat().st_size > 1000
