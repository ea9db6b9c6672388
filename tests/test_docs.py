"""Documentation: its code runs, its links lead somewhere, its pictures are there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores.format import features, manifest
from tests.tools.settings import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_reader_in_the_store_format_reads_a_store(store: Path) -> None:
    text = (ROOT / "docs/reference/store-format.md").read_text(encoding="utf-8")
    whole, code = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(whole, names)
    files = sorted(store.glob("manifest/**/*.parquet"))
    assert files
    assert all(names["parquet_is_whole"](path) for path in files)
    names = {}
    exec(code.replace('"brca"', repr(str(store))), names)
    assert set(names["targets"]) == {"a", "b", "c"}
    for row in manifest.read_slides(store):
        slide = features.open_features(store, row["slide_id"])
        np.testing.assert_array_equal(names["targets"][row["slide_id"]], slide.read_block(0, 0))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def test_no_machine_paths_are_documented() -> None:
    for page in PAGES:
        assert not re.search(r"(^|[^A-Za-z0-9_.])/(home|root|tmp|work)/", page.read_text(encoding="utf-8")), (
            page
        )
