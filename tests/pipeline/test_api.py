"""The public functions: one name beside a room of the same name, options as keywords, the work of the commands."""

import importlib
import inspect
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pipeline as g2l
import stores
from pipeline.distill.options import DistillOptions
from pipeline.embed.options import EmbedOptions
from pipeline.extract.options import ExtractOptions
from pipeline.tile.options import TileOptions
from pipeline.verify.options import VerifyOptions
from stores.errors import OptionError
from tests.tools.commands import g2l as command
from tests.tools.settings import ROOT

TEACHER: dict[str, Any] = {"teacher": "tests.tools.tiny:teacher", "random_weights": 0, "threads": 1}
STAGES = ("tile", "extract", "distill", "embed", "export", "verify")


def run_python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "script",
    [
        "import pipeline; f = pipeline.{0}; import pipeline.{0}; g = pipeline.{0}",
        "import pipeline.{0}; import pipeline; f = pipeline.{0}; import pipeline.{0}.options; g = pipeline.{0}",
        "from pipeline.{0} import options; from pipeline import {0} as f; import pipeline; g = pipeline.{0}",
        "import importlib; m = importlib.import_module('pipeline.{0}.options'); import pipeline; "
        "f = pipeline.{0}; g = importlib.reload(m) and pipeline.{0}",
    ],
    ids=["function first", "room first", "from", "import_module"],
)
def test_a_function_keeps_its_name_beside_the_room(script: str) -> None:
    lines = [
        f"{script.format(name)}; assert f is g and f.__module__ == 'pipeline.api', (f, g); "
        f"import sys; assert sys.modules['pipeline.{name}'].__path__"
        for name in STAGES
    ]
    run_python("\n".join(lines))


def test_rooms_are_imported_as_usual() -> None:
    from pipeline.tile.grid import find_patches
    from pipeline.tile.tile import tile_slide

    assert pickle.loads(pickle.dumps(find_patches)) is find_patches
    assert pickle.loads(pickle.dumps(g2l.tile)) is g2l.tile
    assert importlib.import_module("pipeline.tile.tile").tile_slide is tile_slide
    assert importlib.import_module("pipeline.tile").__path__


def test_a_test_can_replace_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    before = g2l.tile
    with monkeypatch.context() as patch:
        patch.setattr(g2l, "tile", len)
        assert g2l.tile is len
    assert g2l.tile is before
    with pytest.raises(AttributeError, match="no attribute 'tilee'"):
        g2l.tilee  # type: ignore[attr-defined]  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    loaded = run_python(
        "import pipeline, pipeline.api, stores, sys; pipeline.tile, pipeline.verify; print(*sys.modules)"
    ).split()
    assert "pipeline.api" in loaded
    assert not {"torch", "numpy", "zarr", "pyarrow", "rich", "timm", "fsspec", "openslide"} & set(loaded)


@pytest.mark.parametrize("name", g2l.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    found = getattr(g2l, name)
    assert name in dir(g2l)
    assert inspect.getdoc(found)
    if name in STAGES:
        text = inspect.getdoc(found) or ""
        for part in ("Parameters\n", "Returns\n", "Raises\n", "**options"):
            assert part in text


def test_the_page_has_an_entry_for_each_public_name() -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    entries = re.findall(r"^### `([\w.]+)", page, re.MULTILINE)
    public = [f"g2l.{name}" for name in g2l.__all__] + [f"stores.{name}" for name in stores.__all__]
    assert sorted(entries) == sorted(public)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda path: g2l.tile(path, path, mmp=1.0), "tile: no option 'mmp'; did you mean mpp?"),
        (lambda path: g2l.verify(path, nonsense=1), "verify: no option 'nonsense'; allowed: batch_size, "),
        (lambda path: g2l.extract(path, path, seeds="many"), "option 'seeds': 'many' is not an integer"),
        (lambda path: g2l.tile(path, path, mpp=9), "--mpp 9.0: allowed is 0.05 to 5"),
        (lambda path: g2l.distill(path, path), "--student (missing): allowed is a preset"),
        (lambda path: g2l.tile(path, "s3://a/b"), "s3://a/b: a URL; this works on local folders"),
        (lambda path: g2l.prototypes("s3://a/b"), "--out: give a folder, since the store is behind a URL"),
    ],
)
def test_a_wrong_use_is_one_line(call: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        call(tmp_path)
    assert str(caught.value).startswith(said)


@pytest.mark.slow
def test_functions_do_what_the_commands_do(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    tiled = g2l.tile(slides, str(store), slides_csv=slides / "slides.csv", max_patches=4)
    assert tiled.n_patches == 12
    assert json.loads((store / "logs/tile-summary.json").read_text()) == tiled.to_json()
    assert (store / "logs/tile-summary.txt").read_text().splitlines() == tiled.lines()
    planned = g2l.plan(store, seeds=2, dim=24)
    assert (planned.views, planned.to_json()) == (24, g2l.plan([str(store)], seeds=2, dim=24).to_json())
    assert g2l.plan([slides], seeds=1, slides_csv=slides / "slides.csv").patches > 12
    extracted = g2l.extract([slides], store, seeds=2, pixels=True, **TEACHER)  # as it was tiled
    assert (extracted.views, extracted.views_before, extracted.some_failed) == (24, 0, False)
    with stores.open(store) as opened:
        assert g2l.verify(opened).findings == []
        assert g2l.plan(opened, seeds=2).views == 24
        student: dict[str, Any] = {"student": "tests.tools.tiny:student", "random_weights": 1, "threads": 1}
        trained = g2l.distill(opened, run, steps=2, batch_size=4, check_views="all", **student)
    assert trained.figures["steps"] == 2
    assert (run / "summary.txt").read_text().splitlines() == trained.lines()
    assert json.loads((run / "summary.json").read_text()) == trained.to_json()
    assert g2l.verify(store, views=True, sample="all").views_checked == 24
    embedded = g2l.embed(
        slides, tmp_path / "out", encoder=student["student"], weights=trained.student, max_patches=2
    )
    assert (embedded.views, embedded.published) == (6, 3)
    assert (tmp_path / "out/logs/embed-summary.json").is_file()
    assert capsys.readouterr() == ("", "")
    printed = command("extract-teacher", slides, "--store", store, "--teacher", TEACHER["teacher"],
                      "--random-weights", 0, "--seeds", 2, "--pixels")  # fmt: skip
    assert printed.stdout.splitlines() == g2l.extract(slides, store, seeds=2, pixels=True, **TEACHER).lines()


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (g2l.tile, TileOptions),
        (g2l.extract, ExtractOptions),
        (g2l.distill, DistillOptions),
        (g2l.embed, EmbedOptions),
        (g2l.verify, VerifyOptions),
    ],
)
def test_options_do_not_hide_parameters(function: Any, kind: type) -> None:
    named = set(inspect.signature(function).parameters)
    hidden = {name for name in named if name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    assert not hidden
