"""A folder is continued with the options that it was begun with, and told which one differs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.distill.options import DistillOptions
from pipeline.runtime.options import to_json
from pipeline.runtime.resume import BEGUN, begun_otherwise, require_same_options
from stores.errors import OptionError

OPTIONS = DistillOptions(student="s", lr=0.0003, ema=0.9, qc_max=("blur=0.5", "fold=0.2"))


THAT, OUT = "use that, or another --out", "leave it out, or another --out"
QC = "blur=0.5 fold=0.2"


@pytest.mark.parametrize(
    ("begun", "now", "said"),
    [
        ({}, {"lr": 0.1}, f"--lr 0.1: RUN was begun with 0.0003; {THAT}"),
        ({}, {"ema": None}, f"--ema: not given, and RUN was begun with 0.9; {THAT}"),
        ({}, {"qc_max": ()}, f"--qc-max: not given, and RUN was begun with {QC}; {THAT}"),
        ({"qc_max": ()}, {}, f"--qc-max {QC}: RUN was begun without it; {OUT}"),
    ],
)
def test_what_differs_is_named(begun: dict[str, Any], now: dict[str, Any], said: str, tmp_path: Path) -> None:
    first = replace(OPTIONS, **begun)
    (tmp_path / BEGUN).write_text(json.dumps({"options": to_json(first)}))
    require_same_options(tmp_path, first, frozenset())
    with pytest.raises(OptionError) as refused:
        require_same_options(tmp_path, replace(OPTIONS, **now), frozenset())
    assert str(refused.value) == said.replace("RUN", str(tmp_path))


def test_a_switch_is_given_or_not() -> None:
    def said(now: bool) -> str:
        return str(begun_otherwise(Path("s"), "pixels", now, not now, "--store"))

    assert said(True) == "--pixels: s was begun without it; leave it out, or another --store"
    assert said(False) == "--pixels: not given, and s was begun with it; give it, or another --store"
