"""A full disk: noticed before and during, one line, everything so far intact; after making room the run goes on."""

import contextlib
import errno
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.distill import checkpoint, train
from pipeline.extract import block as blocks
from pipeline.extract import extract as stage
from pipeline.inference.encoding import EncodedBlock
from pipeline.inference.task import Task
from pipeline.runtime.progress import Silent
from pipeline.tile.options import TileOptions
from stores.errors import DiskFull
from stores.format import manifest
from stores.io import files
from tests.tools.distill import OPTIONS, same
from tests.tools.extract import contents
from tests.tools.settings import TEACHER
from tests.tools.verify import structure


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up all room."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    assert shutil.disk_usage(folder).free == 0
    return path


def unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks see nothing, as under a quota: the system's own error comes in the middle of a write."""
    for module in (blocks, checkpoint):
        monkeypatch.setattr(module, "require_free", lambda *args: None)


@pytest.mark.slow
@pytest.mark.parametrize("noticed", [True, False])
def test_a_disk_that_fills_up_in_stage_one(
    store: Path,
    slides: Path,
    tile_options: TileOptions,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    noticed: bool,
) -> None:
    path = small_disk / "s"
    written: list[Task] = []
    true_commit = blocks.StoreSink.commit

    def commit(sink: blocks.StoreSink, block: EncodedBlock) -> None:
        if written:
            fill(small_disk)
        written.append(sink.task)
        true_commit(sink, block)

    with monkeypatch.context() as patch:
        if not noticed:
            unnoticed(patch)
        patch.setattr(blocks.StoreSink, "commit", commit)
        with pytest.raises((DiskFull, OSError)) as caught:
            stage.extract([slides], path, TEACHER, tile_options, Silent())
    if noticed:
        assert "all that was committed is kept: make room and start the same command again" in str(
            caught.value
        )
    assert files.is_full(caught.value) or isinstance(caught.value, DiskFull)
    assert len(list(manifest.commits(path))) == 1
    assert [f for f in structure(path, partial=True) if f.kind != "missing"] == []
    (small_disk / "filler").unlink()
    stage.extract([slides], path, TEACHER, tile_options, Silent())
    assert contents(path) == contents(store)


@pytest.mark.slow
@pytest.mark.parametrize("noticed", [True, False])
def test_a_disk_that_fills_up_in_stage_two(
    store: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    train.distill(store, tmp_path / "whole", OPTIONS, False, Silent())
    run = small_disk / "r"
    true_save = checkpoint.save

    def save(run: Path, step: int, *args: Any) -> None:
        if step == 16:
            fill(small_disk)
        true_save(run, step, *args)

    with monkeypatch.context() as patch:
        if not noticed:
            unnoticed(patch)
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(DiskFull, match="all that was committed is kept: make room"):
            train.distill(store, run, OPTIONS, False, Silent())
    assert [file.name for file in checkpoint.saved(run)] == ["step-00000008.pt"]
    (small_disk / "filler").unlink()
    train.distill(store, run, OPTIONS, True, Silent())
    assert same(run, tmp_path / "whole")


@pytest.mark.slow
def test_stage_one_is_refused_when_it_will_not_fit(
    slides: Path, tile_options: TileOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda folder: 30_000_000)
    with pytest.raises(
        DiskFull, match=r"--store .*: 267 views need 17\.\d MB and 30\.0 MB are free: make room, or take"
    ):
        stage.extract([slides], tmp_path / "s", TEACHER, tile_options, Silent())
    stage.extract([slides], tmp_path / "s", replace(TEACHER, pixels=False), tile_options, Silent())


def test_stage_two_is_refused_when_its_checkpoints_will_not_fit(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda folder: 100)
    with pytest.raises(DiskFull, match=r"checkpoints and student: needs \d\.\d MB, .* has 100 B free"):
        train.distill(store, tmp_path / "r", OPTIONS, False, Silent())


def test_what_a_library_says_of_a_full_disk_becomes_one_line(small_disk: Path) -> None:
    """torch and safetensors raise errors of their own, without a number."""
    fill(small_disk)
    with pytest.raises(DiskFull, match="the disk is full"), files.replacing(small_disk / "x") as partial:
        raise RuntimeError(f"PytorchStreamWriter failed writing {partial}")
    with pytest.raises(ZeroDivisionError), files.replacing(small_disk.parent / "x"):
        raise ZeroDivisionError


def test_quotas_and_wrapped_errors_count() -> None:
    wrapped = ValueError("zarr")
    wrapped.__cause__ = OSError(errno.EDQUOT, "quota")
    assert files.is_full(wrapped)
    assert not files.is_full(OSError(errno.EACCES, "no"))
