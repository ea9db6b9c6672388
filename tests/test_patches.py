"""Reading by threads or processes: the same bytes; a process that dies costs a second attempt and no more."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline import extract as stage
from pipeline.options import TileOptions
from pipeline.patches import PatchPool
from pipeline.progress import Silent
from stores.errors import ClusterError, DistillError
from tests.conftest import TEACHER
from tests.test_extract import contents
from tests.test_loader import OPTIONS, joined, stream


def readers_of(parent: int) -> list[psutil.Process]:
    """The processes of a pool."""
    return [p for p in psutil.Process(parent).children() if "spawn_main" in " ".join(p.cmdline())]


def test_processes_write_what_threads_write_and_survive_a_death(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    options = replace(TEACHER, teacher="tests.faulty:slow", batch_size=4, readers="processes")
    expected = stage.extract(
        [slides], tmp_path / "t", replace(options, readers="threads"), tile_options, Silent()
    )
    run = threading.Thread(target=stage.extract, args=([slides], path, options, tile_options, Silent()))
    run.start()
    while run.is_alive() and len(readers_of(os.getpid())) < 2:
        time.sleep(0.01)
    time.sleep(1.0)
    readers_of(os.getpid())[0].send_signal(signal.SIGKILL)
    run.join()
    assert contents(path) == contents(tmp_path / "t")
    assert expected.views > 0
    assert readers_of(os.getpid()) == []


def test_the_loader_with_processes(store: Path) -> None:
    few = replace(OPTIONS, processes=True)
    assert joined(stream(store, few, 0, 9)) == joined(stream(store, OPTIONS, 0, 9))


def test_the_loader_says_when_a_process_died(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_submit = PatchPool.submit
    submitted: list[int] = []

    def submit(self: PatchPool, *args: object) -> object:
        submitted.append(1)
        if len(submitted) == 20:
            for process in readers_of(os.getpid()):
                process.kill()
        return true_submit(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(PatchPool, "submit", submit)
    with pytest.raises(DistillError, match="a process that reads patches died"):
        stream(store, replace(OPTIONS, processes=True, window=400), 0, 99)


def test_a_worker_that_may_not_start_processes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("multiprocessing").current_process()._config, "daemon", True)
    with pytest.raises(ClusterError, match="or give --readers threads"):
        PatchPool(1, processes=True)
