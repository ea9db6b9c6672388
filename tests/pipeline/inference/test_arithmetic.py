"""A new store's arithmetic is measured on its own views, once; after that the recipe has it."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.extract import extract as stage
from pipeline.extract.tasks import views_to_compare
from pipeline.inference.arithmetic import compare, read_views
from pipeline.inference.loaded import EncoderSpec, OnDevice, load_on_device
from pipeline.inference.task import Task
from pipeline.inference.worker import WorkerEncoder
from pipeline.runtime import devices
from pipeline.slides.sources import StoreSource
from pipeline.tile.options import TileOptions
from pipeline.verify.options import VerifyOptions
from pipeline.verify.slide_views import spec_of
from pipeline.views.policy import Policy
from stores.format import arithmetic, features, layout, manifest, recipe
from stores.io import files
from tests.tools.notes import Notes
from tests.tools.settings import TEACHER

BOTH = (torch.float16, torch.bfloat16)
LOUD = "tests.tools.tiny:loud_teacher"
VIEWS = np.random.default_rng(0).integers(0, 256, (20, 224, 224, 3), np.uint8)


def loaded(name: str = TEACHER.teacher) -> OnDevice:
    return load_on_device(EncoderSpec(name, random_weights=0, device="cpu"))


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has both half precisions, as a GPU has."""
    monkeypatch.setattr(devices, "half_precisions", lambda device: BOTH)


def test_float16_is_nearer_to_float32_where_nothing_overflows() -> None:
    found = compare(loaded(), VIEWS, BOTH)
    assert found is not None
    assert found.chosen == "float16"
    assert found.views == 20
    near, far = found.errors["float16"], found.errors["bfloat16"]
    assert near is not None
    assert far is not None
    assert 1e-5 < near < far / 4 < 1e-2
    exact = loaded().launch(VIEWS).double()
    rounded = loaded().computing_in("bfloat16").launch(VIEWS).half().double()
    assert far == pytest.approx(float((rounded - exact).norm() / exact.norm()), rel=1e-6)
    assert "nearest to those of float32 (relative error on 20 views: float16 " in found.reason


def test_bfloat16_is_taken_where_float16_overflows_within() -> None:
    """The features themselves stay finite: tanh of infinity is 1."""
    assert torch.isfinite(loaded(LOUD).computing_in("float16").launch(VIEWS)).all()
    found = compare(loaded(LOUD), VIEWS, BOTH)
    assert found is not None
    assert (found.chosen, found.errors["float16"]) == ("bfloat16", None)
    assert "float16 overflows, bfloat16 " in found.reason
    alone = compare(loaded(LOUD), VIEWS, (torch.float16,))
    assert alone is not None
    assert (alone.chosen, alone.reason) == ("float32", "float16 overflows on 20 views")


def test_features_that_float16_cannot_store_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = loaded()
    monkeypatch.setattr(type(teacher.encoder), "forward", lambda self, x: torch.full((len(x), 24), 1e5))
    found = compare(teacher, VIEWS, BOTH)
    assert found is not None
    assert found.chosen == "float32"


def test_a_cpu_stays_in_float32_and_measures_nothing() -> None:
    assert devices.half_precisions(torch.device("cpu")) == ()
    assert compare(loaded(), VIEWS, ()) is None
    assert compare(loaded(), VIEWS[:0], BOTH) is None


def test_views_are_spread_over_slides_and_seeds(store: Path) -> None:
    rows = manifest.read_slides(store)
    tasks = [
        Task(
            StoreSource(row["slide_id"], store),
            row["fingerprint"],
            row["split"],
            row["n_patches"],
            0,
            seeds,
            r,
        )
        for row in rows
        for seeds, r in [(range(3), range(row["n_patches"]))]
    ]
    wanted = views_to_compare(store, tasks, 8)
    assert len({view.source.key for view in wanted}) == 3
    assert [view.seed for view in wanted] == [0, 1, 2, 0, 1, 2, 0, 1]
    stored = recipe.load_complete(store)
    views = read_views(Policy.from_json(stored.policy), wanted, 1)
    kept = features.open_features(store, rows[0]["slide_id"]).read_block(wanted[0].seed, 0)[wanted[0].row]
    np.testing.assert_allclose(loaded().launch(views[:1])[0].numpy(), kept, rtol=2e-3, atol=1e-3)
    assert not views_to_compare(store, [])


def extracted(
    slides: Path, store: Path, options: TileOptions, teacher: str, **more: Any
) -> tuple[list[str], recipe.CompleteRecipe]:
    notes = Notes()
    asked = replace(TEACHER, teacher=teacher, seeds=1, limit=6, pixels=False, threads=1)
    stage.extract([slides], store, replace(asked, **more), options, notes)
    return notes.said, recipe.load_complete(store)


def test_the_choice_is_said_recorded_and_kept(
    slides: Path, tile_options: TileOptions, tmp_path: Path, halves: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, stored = extracted(slides, tmp_path / "s", tile_options, LOUD)
    assert stored.teacher.dtype == "bfloat16"
    (line,) = [text for text in said if text.startswith("teacher ")]
    assert "cpu: bfloat16, because its features are nearest" in line
    assert "relative error on 6 views: float16 overflows, bfloat16 " in line
    kept = layout.read_options(tmp_path / "s", "extract-teacher")
    assert kept["dtype"] == "auto"
    assert kept["teacher_arithmetic"]["chosen"] == "bfloat16"
    assert kept["teacher_arithmetic"]["relative_error_to_float32"]["float16"] is None
    shown = arithmetic.said_of(tmp_path / "s", "bfloat16")
    assert shown.startswith("relative error to float32 on 6 views: bfloat16 ")
    assert shown.endswith("float16 overflows")
    assert arithmetic.said_of(tmp_path / "s", "float32") == ""

    def never(self: WorkerEncoder, *args: object) -> None:
        raise AssertionError("measured again")

    # another machine, whose device has no half precision, continues in that of the recipe
    monkeypatch.setattr(devices, "half_precisions", lambda device: ())
    monkeypatch.setattr(WorkerEncoder, "compare", never)
    said, again = extracted(slides, tmp_path / "s", tile_options, LOUD, limit=9)
    assert again.digest() == stored.digest()
    assert any("bfloat16, because the store was begun with it" in text for text in said)
    files.write_json(
        tmp_path / "s/options/extract-teacher.json", {"teacher_arithmetic": {"chosen": "bfloat16"}}
    )
    assert arithmetic.said_of(tmp_path / "s", "bfloat16") == ""


def test_an_arithmetic_that_is_asked_for_is_not_measured(
    slides: Path, tile_options: TileOptions, tmp_path: Path, halves: None
) -> None:
    said, stored = extracted(slides, tmp_path / "s", tile_options, TEACHER.teacher, dtype="bfloat16")
    assert stored.teacher.dtype == "bfloat16"
    assert any("bfloat16, because asked for" in text for text in said)
    assert "teacher_arithmetic" not in json.loads((tmp_path / "s/options/extract-teacher.json").read_text())


def test_the_weights_are_loaded_once(halves: None) -> None:
    spec = EncoderSpec(TEACHER.teacher, random_weights=0, device="cpu")
    first = WorkerEncoder("job of test_arithmetic", spec).loaded()
    second = WorkerEncoder("job of test_arithmetic", replace(spec, dtype="float16")).loaded()
    assert first.encoder is second.encoder
    assert (first.identity.dtype, second.identity.dtype) == ("float32", "float16")


def test_verify_computes_as_the_store_does_where_it_can(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = recipe.load_complete(store)
    half = dataclasses.replace(stored, teacher=replace(stored.teacher, dtype="float16"))
    options = VerifyOptions(teacher=TEACHER.teacher, random_weights=0, device="cpu")
    assert spec_of(options, half).dtype == "auto"
    assert spec_of(options, stored).dtype == "float32"
    monkeypatch.setattr(devices, "half_precisions", lambda device: BOTH)
    assert spec_of(options, half).dtype == "float16"
    assert spec_of(replace(options, dtype="float32"), half).dtype == "float32"
