"""The evidence: folds without a leak, and figures whose intervals are paired."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from pipeline.metrics.bootstrap import bootstrap
from tests.bench.evidence import tissue
from tests.bench.evidence.encoder import renamed
from tests.bench.evidence.figures import compare, difference, overall, pooled
from tests.bench.evidence.pages import closed_table, control_table
from tests.bench.evidence.runs import Arm
from tests.bench.evidence.tissue import FOLDS, PATCH_PX, LabelledSet


def _set(folder: Path, classes: int, images: int) -> Path:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "image_id"])
        for i in range(classes * images):
            PIL.Image.fromarray(rng.integers(0, 256, (512, 512, 3), np.uint8)).save(
                folder / f"images/{i}.png"
            )
            writer.writerow([f"images/{i}.png", f"class{i % classes}", f"image{i}"])
    return folder


def test_an_image_is_in_one_fold_and_a_fold_has_all_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tissue.SAME_FIELD, "image6", "image0")  # in the set's order they are in two folds
    of = LabelledSet("a_set", quarters=True, native=True)
    found = list(tissue._of_set(_set(tmp_path / "a_set", 2, 5), of))
    judged = [row for row, _ in found if "judged" in row]
    assert len(judged) == 4 * 10
    assert len(found) == 2 * len(judged)  # 512 px are four patches of their own resolution too
    assert all(pixels.shape == (PATCH_PX, PATCH_PX, 3) for _, pixels in found)
    for image in {row["image"] for row in judged}:
        assert len({row["fold"] for row in judged if row["image"] == image}) == 1
    assert len([row for row in judged if row["image"] == "image0"]) == 8
    for fold in map(str, range(FOLDS)):
        assert {row["label"] for row in judged if row["fold"] == fold} == {"class0", "class1"}


def _runs(right: list[list[float]]) -> list[dict[str, Any]]:
    """Two tiles an image, the images of a run apart from those of the others."""
    return [
        {
            name: {
                "image": [f"{fold}-{i // 2}" for i in range(len(of_fold))],
                "knn": of_fold,
                "linear": of_fold,
            }
            for name in ("lung_colon", "colorectal")
        }
        for fold, of_fold in enumerate(right)
    ]


def test_differences_are_paired_and_over_images() -> None:
    rng = np.random.default_rng(1)
    untrained = rng.integers(0, 2, (3, 40)).astype(float)
    better = untrained.copy()
    better[:, :8] = 1  # every run has the same images right, and some more
    teacher = np.ones((3, 40))
    found = compare(
        _runs(better.tolist()), _runs(untrained.tolist()), _runs(teacher.tolist()), "lung_colon", "knn"
    )
    assert found.accuracy.value == pytest.approx(better.mean())
    assert found.gain.value == pytest.approx(better.mean() - untrained.mean())
    assert found.closed.value == pytest.approx((better.mean() - untrained.mean()) / (1 - untrained.mean()))
    assert 0 < found.gain.low < found.gain.value < found.gain.high
    assert found.gain.high - found.gain.low < found.accuracy.high - found.accuracy.low
    images = [image for run in _runs(better.tolist()) for image in run["lung_colon"]["image"]]
    groups = np.unique(images, return_inverse=True)[1]  # the two tiles of an image are drawn together
    mean = better.ravel()
    (expected,) = bootstrap(
        lambda weights: np.array([mean @ weights / weights.sum()]),
        120,
        groups,
        np.random.default_rng(0),
        2000,
    )
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((expected.low, expected.high))
    same = difference(_runs(better.tolist()), _runs(better.tolist()), "lung_colon", "knn")
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_other_tiles_are_not_compared() -> None:
    fewer = _runs([[1.0] * 4])
    with pytest.raises(ValueError, match="did not judge the same tiles"):
        difference(_runs([[1.0] * 6]), fewer, "colorectal", "knn")


def test_a_table_says_which_share_of_the_lead_is_closed() -> None:
    arm, start = Arm("cnn", "mse", 10), Arm("cnn")
    results = {arm: _runs([[1.0, 1.0, 1.0, 0.0]]), start: _runs([[1.0, 0.0, 0.0, 0.0]])}
    table = closed_table(results, _runs([[1.0] * 4]), [arm])
    assert "+0.50" in table
    assert "0.67" in table


def test_a_control_is_compared_with_its_own_run() -> None:
    control = Arm("vit", "mse", 10, untaught=True)
    results = {Arm("vit", "mse", 10): _runs([[1.0, 1.0, 1.0, 0.0]]), control: _runs([[1.0, 0.0, 0.0, 0.0]])}
    (row,) = control_table(results, [control]).splitlines()[2:]
    assert row.startswith("| vit mse, 10 steps | +0.50 (")
    assert row.count("| +0.50 (") == 4


def test_the_mean_of_all_counts_each_set_alike_and_is_paired() -> None:
    runs = _runs([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    for run in runs:
        run["colorectal"] = {key: value[:2] for key, value in run["colorectal"].items()}
    found = overall(runs, None, ("lung_colon", "colorectal"), ("knn", "linear"))
    assert found.value == pytest.approx((3 / 8 + 3 / 4) / 2)
    same = overall(runs, runs, ("lung_colon", "colorectal"), ("knn",))
    assert (same.low, same.value, same.high) == (0, 0, 0)
    with pytest.raises(
        ValueError, match="lung_colon: the runs that are compared did not judge the same tiles"
    ):
        overall(runs, runs[:1], ("lung_colon", "colorectal"), ("knn",))


def test_arms_are_averaged_tile_by_tile() -> None:
    first, second = _runs([[1.0, 1.0, 0.0, 0.0]]), _runs([[1.0, 0.0, 0.0, 0.0]])
    first[0]["agreement"], second[0]["agreement"] = {"lite0": {"cosine": 0.5}}, {"lite0": {"cosine": 0.25}}
    (found,) = pooled([first, second])
    assert found["colorectal"]["knn"] == [1.0, 0.5, 0.0, 0.0]
    assert found["colorectal"]["image"] == first[0]["colorectal"]["image"]
    assert found["agreement"] == {"lite0": {"cosine": 0.375}}


def test_a_teacher_is_renamed_by_the_order_of_its_tensors() -> None:
    expected = {
        "conv_stem.weight": torch.zeros(2, 3),
        "bn1.weight": torch.zeros(2),
        "bn1.bias": torch.zeros(2),
    }
    given = {
        "_a.weight": torch.ones(2, 3),
        "_b.weight": torch.full((2,), 2.0),
        "_b.bias": torch.full((2,), 3.0),
    }
    found = renamed(given, expected)
    assert {name: value.max().item() for name, value in found.items()} == dict(
        zip(expected, (1, 2, 3), strict=True)
    )
    with pytest.raises(ValueError, match=r"_b.bias \(2,\) does not fit bn1.weight \(2,\)"):
        renamed(dict([("_a.weight", given["_a.weight"]), *reversed(list(given.items())[1:])]), expected)
    with pytest.raises(ValueError, match=r"_a.weight \(3, 2\) does not fit conv_stem.weight \(2, 3\)"):
        renamed({**given, "_a.weight": torch.ones(3, 2)}, expected)
