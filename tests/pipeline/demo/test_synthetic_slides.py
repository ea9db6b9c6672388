"""Synthetic slides, their ground truth, and the shipped demo teacher that was trained on such slides."""

import csv
import importlib.resources
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.synthetic_slides import (
    LABEL_PX0,
    NO_TISSUE,
    TISSUE_TYPES,
    SyntheticSlide,
    label_of_patch,
    paint_slide,
    write_cohort,
    write_slide,
)
from pipeline.demo.train_teacher import PRESET, centre_features, pure_patches, save
from pipeline.encoders.timm_models import create
from pipeline.metrics.knn import knn_predict
from stores.errors import OptionError

pytestmark = pytest.mark.slow

ASSET = Path(str(importlib.resources.files("pipeline.encoders") / "demo-teacher.safetensors"))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    """A slide of 1536 x 1024 px with a pen mark."""
    path = tmp_path_factory.mktemp("synthetic") / "a.tiff"
    return write_slide(path, seed=3, width_px=1536, height_px=1024, mpp=0.25, pen=True)


def test_openslide_opens_it_with_mpp_and_pyramid(slide: SyntheticSlide) -> None:
    with openslide.OpenSlide(slide.path) as opened:
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-6)
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(0.25, rel=1e-6)
        assert opened.level_dimensions == ((1536, 1024), (384, 256), (96, 64))
        read = np.asarray(opened.read_region((0, 0), 0, (1536, 1024)))[..., :3]
    assert np.array_equal(read, paint_slide(3, 1536, 1024, pen=True)[0])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_slide(tmp_path / f"{name}.tiff", seed=seed, width_px=768, height_px=512)
    a, b, c = ((tmp_path / f"{name}.tiff").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_labels_agree_with_what_is_painted(slide: SyntheticSlide) -> None:
    pixels, labels = paint_slide(3, 1536, 1024)
    assert labels.shape == (1024 // LABEL_PX0, 1536 // LABEL_PX0)
    assert set(np.unique(labels)) <= {*range(len(TISSUE_TYPES)), NO_TISSUE}
    green = cv2.resize(pixels, labels.shape[::-1], interpolation=cv2.INTER_AREA)[..., 1].astype(int)
    inner = cv2.erode((labels != NO_TISSUE).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    glass = cv2.dilate((labels != NO_TISSUE).astype(np.uint8), np.ones((3, 3), np.uint8)) == 0
    assert glass.any()
    assert green[glass].min() > 235
    assert np.mean(green[inner] < 225) > 0.98
    # the mark takes tissue away and changes no label otherwise
    assert np.all((slide.labels == labels) | (slide.labels == NO_TISSUE))
    assert np.count_nonzero(slide.labels != labels) > 0


@pytest.mark.parametrize("size", [(500, 1024), (1024, 480)])
def test_a_size_that_does_not_fit_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="multiples of 32 from 512"):
        paint_slide(0, *size)


@given(st.data())
def test_label_of_patch_equals_counting_pixels(data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.sampled_from([0, 1, 5, NO_TISSUE]), min_size=36, max_size=36))
    labels = np.array(cells, np.uint8).reshape(6, 6)
    side = data.draw(st.integers(1, 4))
    x, y = (data.draw(st.integers(0, 6 - side)) for _ in range(2))
    pixels = np.kron(labels, np.ones((LABEL_PX0, LABEL_PX0), np.uint8))
    area = pixels[y * LABEL_PX0 : (y + side) * LABEL_PX0, x * LABEL_PX0 : (x + side) * LABEL_PX0]
    expected = [kind for kind in (0, 1, 5) if np.mean(area == kind) >= 0.7]
    found = label_of_patch(labels, x * LABEL_PX0, y * LABEL_PX0, side * LABEL_PX0)
    assert found == (expected[0] if expected else -1)


def test_a_patch_outside_of_the_slide_has_no_type() -> None:
    assert label_of_patch(np.zeros((8, 8), np.uint8), 256, 0) == -1
    assert label_of_patch(np.zeros((8, 8), np.uint8), 128, 0) == -1  # half of it


def test_a_cohort_has_a_csv_with_patients_of_both_splits(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, 3, seed=1, width_px=512, height_px=512)
    with (tmp_path / "slides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == [slide.path.stem for slide in cohort]
    assert len({row["patient_id"] for row in rows}) == 3
    assert [row["split"] for row in rows].count("val") == 1
    assert all(slide.path.is_file() for slide in cohort)


def test_type_does_not_show_in_mean_colour_but_in_the_shipped_features() -> None:
    """Chance is 1/6. On 30 slides mean colour reached 0.18, the teacher 0.99."""
    train, types = pure_patches(range(7000, 7003))
    held_out, asked = pure_patches(range(7003, 7005))
    assert set(asked.tolist()) == set(range(len(TISSUE_TYPES)))
    centre = train.reshape(-1, 3).mean(axis=0)
    colour, colour_asked = (patches.mean(axis=(1, 2)) - centre for patches in (train, held_out))
    assert np.mean(knn_predict(colour, types, colour_asked, 10) == asked) < 0.4
    teacher = create(PRESET)
    teacher.load_state_dict(safetensors.torch.load_file(ASSET))
    some = slice(None, None, 3)  # time
    features, own = (centre_features(teacher.eval(), p[some]) for p in (train, held_out))
    assert features.shape[1] == PRESET.dim == 1536
    assert np.mean(knn_predict(features, types[some], own, 10) == asked[some]) > 0.9


def test_the_asset_fits_the_architecture_exactly() -> None:
    assert ASSET.stat().st_size <= 5_000_000
    state = safetensors.torch.load_file(ASSET)
    assert {v.dtype for v in state.values()} == {torch.float16, torch.int64}
    create(PRESET).load_state_dict(state, strict=True)


def test_save_keeps_every_tensor_to_float16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create(PRESET)
    save(model, tmp_path / "w.safetensors")
    again = create(PRESET)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"))
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
