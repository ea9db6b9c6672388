"""The files of a run from elsewhere are regular files: a pipe would wait for ever, and a link may lead to anything."""

import os
from pathlib import Path

import pytest

from pipeline.report.origin import last_date
from pipeline.report.run_files import read_run
from pipeline.runtime.resume import BEGUN
from stores.errors import CorruptStore, OptionError
from stores.io import files

LOG = "log.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    files.write_json(folder / BEGUN, {"options": {"student": "x"}, "store_recipe": "y"})
    files.write_json(folder / "summary.json", {"steps": 1, "loss_first": 1.0, "loss_last": 0.5})
    files.write_json(folder / "student" / "config.json", {})
    files.write_text(folder / "metrics.jsonl", '{"kind": "train", "step": 1, "loss": 1.0}\n')
    files.write_text(folder / LOG, '{"time": "2026-01-02T03:04:05+00:00"}\n')
    return folder


def read(run: Path) -> None:
    assert read_run(run).records == [{"kind": "train", "step": 1, "loss": 1.0}]
    assert last_date(run / LOG) == "2026-01-02 03:04 UTC"


@pytest.mark.parametrize("name", [BEGUN, "summary.json", "metrics.jsonl", "student/config.json", LOG])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_files_of_a_run_are_regular(run: Path, name: str, kind: str) -> None:
    read(run)
    whole = run.with_name("whole")
    (run / name).rename(whole)
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(whole)
    with pytest.raises(CorruptStore, match=f"{name}.*is a (pipe|symbolic link)"):
        read(run)


def test_figures_of_several_teachers_are_read_by_the_names_of_their_stores(run: Path) -> None:
    begun = files.read_json(run / BEGUN)
    stores = [{"name": "a", "recipe": "y", "weight": 1.0}, {"name": "b\x1b", "recipe": "z", "weight": 2}]
    files.write_json(run / BEGUN, begun | {"stores": stores})
    summary = files.read_json(run / "summary.json")
    of_a = {"teacher": "t\n", "cka_after": 0.5, "cka_before": "high"}
    files.write_json(run / "summary.json", summary | {"teachers": {"a": of_a, "c": {"cka_after": 1.0}}})
    found = read_run(run)
    assert found.stores == [("a", "y", 1.0), ("b?", "z", 2.0)]
    assert found.summary["teachers"] == {
        "a": {"cka_after": 0.5, "teacher": "t"},
        "b?": {"teacher": "unknown"},
    }


@pytest.mark.parametrize(
    "stores", [7, {"a": 1}, ["a"], [{"name": "a", "recipe": "y"}], [{"name": 1, "recipe": "y", "weight": 1}]]
)
def test_stores_of_another_form(run: Path, stores: object) -> None:
    files.write_json(run / BEGUN, files.read_json(run / BEGUN) | {"stores": stores})
    with pytest.raises(OptionError, match="a store of the run has no name, recipe and weight"):
        read_run(run)
