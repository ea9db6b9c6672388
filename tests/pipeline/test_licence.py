"""A licence travels: from a teacher to its store, to a student, and to any store that is made with that student."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.distill.options import DistillOptions
from pipeline.distill.train import distill
from pipeline.encoders.export import export_encoder
from pipeline.encoders.load import load_encoder
from pipeline.encoders.presets import PRESETS
from pipeline.extract.extract import extract
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.format import terms
from stores.format.terms import Fact, Terms
from stores.io import files
from stores.publish.card import CardOptions, write_card
from tests.tools.encoders import TINY, trained_encoder
from tests.tools.settings import TEACHER

STUDENT = "vit_tiny_patch16_224?depth=1&embed_dim=24&num_heads=3"
NC = Terms("teacher", Fact("CC-BY-NC-ND-4.0", "https://example.org", "2026-11"), Fact("asked for"))
NC_LICENCE = "CC-BY-NC-ND-4.0 AND LicenseRef-teacher-access"
CARD = CardOptions("s", "2026-11-28")


def front_matter(readme: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(readme.read_text().split("---\n")[1])
    return found


@pytest.fixture(scope="module")
def student(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student folder of a run on a store whose teacher is not for commercial use."""
    folder = tmp_path_factory.mktemp("licence")
    shutil.copytree(store, folder / "store")
    path = folder / "store/options/extract-teacher.json"
    files.write_json(path, files.read_json(path) | terms.recorded([NC]))
    options = DistillOptions(student=STUDENT, random_weights=0, steps=2, batch_size=4, val_views=4, ema=0.5)
    distill(folder / "store", folder / "run", replace(options, threads=1), False, Silent())
    return folder / "run" / "student"


def test_a_student_is_under_the_terms_of_its_teacher(student: Path) -> None:
    for folder in (student, student.with_name("student-ema")):
        config = files.read_json(folder / "config.json")
        assert config["pretrained_cfg"]["license"] == config["g2l"]["licence"] == NC_LICENCE
        assert config["g2l"]["terms"] == terms.to_json([NC])
        readme = (folder / "README.md").read_text()
        assert front_matter(folder / "README.md")["license_name"] == (
            "cc-by-nc-nd-4.0-and-licenseref-teacher-access"
        )
        assert (
            "| teacher | CC-BY-NC-ND-4.0 (https&#58;//example.org, 2026-11) | asked for | unknown |" in readme
        )
        assert load_encoder(str(folder)).licence == NC_LICENCE


@pytest.mark.slow
def test_a_store_of_that_student_is_too(
    student: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    options = replace(TEACHER, teacher=str(student), random_weights=None, seeds=1, pixels=False)
    extract([slides], tmp_path / "s", options, tile_options, Silent())
    recorded = files.read_json(tmp_path / "s/options/extract-teacher.json")
    assert recorded["teacher_licence"] == NC_LICENCE
    write_card(tmp_path / "s", CARD)
    text = (tmp_path / "s/README.md").read_text()
    assert "| commercial use | no |" in text
    assert "| teacher | CC-BY-NC-ND-4.0 (https&#58;//example.org, 2026-11) | asked for | unknown |" in text
    assert front_matter(tmp_path / "s/README.md")["license"] == "other"
    assert json.loads((tmp_path / "s/croissant.json").read_text())["license"] == NC_LICENCE


def test_another_name_does_not_hide_whose_weights_they_are(student: Path, tmp_path: Path) -> None:
    for weights in (student, student / "model.safetensors"):
        assert load_encoder(STUDENT, weights=weights).licence == NC_LICENCE
        assert load_encoder(str(student), weights=weights).licence == NC_LICENCE
    alone = shutil.copy(student / "model.safetensors", tmp_path / "alone.safetensors")
    assert load_encoder(STUDENT, weights=Path(alone)).licence == "unknown"  # not timm's


def test_terms_that_cannot_be_read_are_unknown_not_absent(student: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(student, tmp_path / "copy"))
    (copy / "config.json").write_text('{"g2l": {"terms": 5}}')
    assert load_encoder(STUDENT, weights=copy).licence == "unknown"


def test_a_student_from_before_terms_were_recorded(tmp_path: Path) -> None:
    """Its config names the licence of what it began with, which says nothing of its teacher."""
    for teacher, expected in (
        ("uni2-h", f"Apache-2.0 AND {PRESETS['uni2-h'].licence}"),
        ("somebody's:make", "Apache-2.0 AND unknown"),
    ):
        folder = tmp_path / teacher[:3]
        export_encoder(trained_encoder(), folder, {"distilled_from": teacher})
        config = files.read_json(folder / "config.json")
        del config["g2l"]["terms"]
        config["g2l"] |= {"licence": "Apache-2.0", "note": "may be sold"}
        files.write_json(folder / "config.json", config)
        assert load_encoder(str(folder)).licence == expected


def test_random_weights_are_under_no_licence_and_others_keep_theirs(tmp_path: Path) -> None:
    assert load_encoder("demo-student", random_weights=0).terms == ()
    assert load_encoder("demo-teacher").terms == PRESETS["demo-teacher"].terms
    export_encoder(load_encoder(TINY, random_weights=0), tmp_path, {}, PRESETS["h-optimus-0"].terms)
    assert load_encoder(str(tmp_path)).terms == PRESETS["h-optimus-0"].terms
