"""The documents are enough: a reader that was written from them reads features and makes the very same views."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.views import operations
from stores.export.export import ExportOptions, export
from stores.format import features, manifest
from tests.tools import stranger
from tests.tools.stores import make_store


def read(store: Path) -> dict[str, Any]:
    """What the stranger finds, in a process of its own and not from this folder."""
    script = Path(stranger.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(store)], cwd=store, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ours(store: Path) -> dict[str, str]:
    sums = {}
    for row in manifest.read_slides(store):
        opened = features.open_features(store, row["slide_id"])
        for seed in range(opened.n_seeds):
            blocks = [opened.read_block(seed, b).tobytes() for b in range(features.n_blocks(opened.n_rows))]
            sums[f"{row['slide_id']} {seed}"] = hashlib.sha256(b"".join(blocks)).hexdigest()
    return sums


@pytest.mark.slow
def test_features_and_every_view(store: Path) -> None:
    found = read(store)
    assert found["foreign"] == []
    assert found["digest"]
    assert found["parquet"]
    assert found["views"] == manifest.count_views(store)["views"].to_numpy().sum()
    assert found["wrong"] == []
    assert found["sums"] == ours(store)
    used = [commit.read().to_pylist() for commit in manifest.commits(store)]
    views = [view for record in used for view in record if view["jitter"]]
    assert len({view["order"] for view in views}) > 10  # the fixture leaves little out
    assert any(view["blur"] for record in used for view in record)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [ExportOptions(compact="lossless"), ExportOptions(compact="int8"), ExportOptions(form="packed")],
)
def test_copies_in_another_form(tmp_path: Path, options: ExportOptions) -> None:
    make_store(tmp_path / "s", {"a": 40, "b": 1100})
    export(tmp_path / "s", tmp_path / "c", options)
    assert read(tmp_path / "c")["sums"] == ours(tmp_path / "c")


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.75, 1.0, 1.375, 2.0])
def test_the_blur_of_the_document_is_opencvs(store: Path, sigma: float) -> None:
    from stores.format import pixels

    patch = pixels.open_pixels(store, "a").read_chunk(0)[3]
    assert (stranger.blur(patch, 9, sigma) == operations.blur(patch, 9, sigma)).all()
