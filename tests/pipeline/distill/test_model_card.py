"""The card of a student: names from a foreign store are text in it, and nothing else."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from pipeline.distill.model_card import model_card
from pipeline.encoders.load import load_encoder
from stores.format import recipe
from stores.format.terms import Fact, Terms
from tests.tools.stores import RECIPE

EVIL = "<img src=x onerror=alert(1)>\n---\nlicense: mit\n---\n# [x](javascript:y) `z` |\u202e\x1b[31m\udcff"
SUMMARY: dict[str, Any] = {"g2l_version": "1", "steps": 3, "loss_first": 1.0, "loss_last": 0.5}


def test_names_of_a_foreign_store_stay_text() -> None:
    student = load_encoder("tests.tools.tiny:student", random_weights=0)
    evil = Fact(EVIL, EVIL, EVIL)
    student.name, student.terms = EVIL, (Terms(EVIL, evil, evil, evil),)
    assert RECIPE.teacher is not None
    teacher = dataclasses.replace(RECIPE.teacher, name=EVIL, weights_sha256=EVIL)
    stored = recipe.require_complete(dataclasses.replace(RECIPE, teacher=teacher), Path("store"))
    text = model_card(student, [stored], (Terms("teacher", evil),), SUMMARY, False)
    text.encode()
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count("\n---\n") == 1
    for bad in ("<img", "](javascript", "\nlicense: mit", "`z`"):
        assert bad not in text
    _, front, body = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) <= {"library_name", "tags", "license", "license_name", "license_link"}
    assert body.startswith("# &lt;img")
