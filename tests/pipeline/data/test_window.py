"""The window is chosen by memory once, said, and kept by a run that continues elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.data import window
from pipeline.data.loader import LoaderOptions
from pipeline.data.split import files_and_recipe, open_split
from pipeline.distill import train
from pipeline.distill.inputs import Data
from pipeline.distill.metrics_log import read_metrics
from pipeline.runtime import devices
from pipeline.runtime.progress import Silent
from tests.tools.distill import OPTIONS, same, without_end
from tests.tools.notes import Notes

VIEW = 150_528


def test_what_is_said() -> None:
    assert window.said(8192, 8192, 10**6, VIEW, 8e9) == (
        "window: 8,192 views mixed in memory, 2.5 GB with those that come next"
    )
    assert window.said(8192, 8192, 5000, VIEW, 8e9).startswith(
        "window: all views of an epoch mixed in memory, 1.5 GB"
    )
    cut = window.said(2048, 8192, 10**6, VIEW, 1.5e9)
    assert "8,192 would take 2.5 GB of 1.5 GB that are free" in cut
    assert "--window 2048 gives this one everywhere" in cut


def test_memory_decides_once(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is continued where there is more memory has the order that it began with."""
    monkeypatch.setattr(Data, "view_bytes", property(lambda _: 1 << 20))
    monkeypatch.setattr(window, "MIXED_WELL", 64)
    monkeypatch.setattr(window, "_LEAST", 8)
    options = replace(
        OPTIONS, steps=24, batch_size=2, window=None, checkpoint_every=8, val_every=100, check_views="none"
    )

    def trained(name: str, free_mb: int, given: Any = None) -> tuple[list[str], int]:
        notes, run = Notes(), tmp_path / name
        monkeypatch.setattr(devices, "free_memory", lambda: free_mb << 20)
        train.distill(store, run, replace(options, window=given), False, notes)
        begun = json.loads((run / "options.json").read_text())["options"]["window"]
        return [text for text in notes.said if text.startswith("window")], begun

    said, begun = trained("small", 160)  # 2 * 32 views of 1 MiB fit into half of it, 2 * 64 do not
    assert begun == 32
    assert "--window 32 gives this one everywhere" in said[0]
    without_end(tmp_path / "small")
    assert trained("small", 1 << 20) == ([], 32)
    assert trained("given", 1 << 20, 32) == ([], 32)
    assert trained("large", 1 << 20)[1] == 64
    assert same(tmp_path / "small", tmp_path / "given")
    assert not same(tmp_path / "small", tmp_path / "large")
    assert trained("none", 1)[1] == 16


def test_each_view_knows_its_slide(store: Path, tmp_path: Path) -> None:
    files, recipe = files_and_recipe(store)
    split = open_split(files, recipe, "train", None)
    names = list(dict.fromkeys(unit.commit.slide_id for unit in split.units))
    assert split.n_slides == len(names) == 2
    arrays = (zarr.open_array(store / f"features.zarr/{name}/features", mode="r") for name in names)
    of_slide = [np.asarray(array[:]).reshape(-1, 24) for array in arrays]
    with split.loader(LoaderOptions(7, 32, 1, 0, "none", 1)) as loader:
        stream = iter(loader)
        for batch in (next(stream) for _ in range(12)):  # some of them are of two windows
            for number, target in zip(batch.slide, batch.targets, strict=True):
                assert (of_slide[number] == target).all(axis=1).any()
    run = tmp_path / "run"
    summary = train.distill(store, run, replace(OPTIONS, steps=3, check_views="none"), False, Silent())
    counts = [record["slides"] for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"]
    with split.loader(LoaderOptions(OPTIONS.batch_size, 64, 1, 0, "none", 1)) as loader:
        stream = iter(loader)
        assert counts == [len(np.unique(next(stream).slide)) for _ in range(3)]
    assert summary["slides_per_step"] == pytest.approx(np.mean(counts))


def test_memory_of_a_container_is_what_its_group_has_left(tmp_path: Path) -> None:
    said, root = tmp_path / "cgroup", tmp_path / "fs"
    job = root / "user/job"
    job.mkdir(parents=True)
    said.write_text("0::/user/job/step\n")
    assert list(devices._left_to_groups(said, root)) == []
    (job / "memory.max").write_text("1000\n")
    (job / "memory.current").write_text("700\n")
    (job / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    (root / "user" / "memory.max").write_text("max\n")
    assert list(devices._left_to_groups(said, root)) == [450]
    old = root / "memory" / "job"
    old.mkdir(parents=True)
    said.write_text("9:cpu,memory:/job\n1:name=systemd:/x\n")
    for name, value in (
        ("memory.limit_in_bytes", "90"),
        ("memory.usage_in_bytes", "100"),
        ("memory.stat", ""),
    ):
        (old / name).write_text(value)
    assert list(devices._left_to_groups(said, root)) == [0]
    assert list(devices._left_to_groups(tmp_path / "absent", root)) == []
    assert devices.free_memory() > 0
