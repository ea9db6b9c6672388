"""Reading by threads or processes: the same bytes; a process that dies costs a second attempt and no more."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.extract import extract as stage
from pipeline.runtime.progress import Silent
from pipeline.slides.pool import PatchPool, rows_at_once
from pipeline.slides.sources import StoreSource
from pipeline.tile.options import TileOptions
from stores.errors import ClusterError, SlideError, ViewMismatch
from stores.format import pixels
from tests.tools.child_work import Counted, dies, fails, names, whose
from tests.tools.extract import contents
from tests.tools.loader import OPTIONS, joined, stream
from tests.tools.made_stores import MadeSlide, make_store
from tests.tools.settings import TEACHER


def readers_of(parent: int) -> list[psutil.Process]:
    """The processes of a pool."""
    return [p for p in psutil.Process(parent).children() if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.kill
def test_processes_write_what_threads_write_and_survive_a_death(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    options = replace(TEACHER, teacher="tests.tools.faulty:slow", batch_size=4, readers="processes")
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


@pytest.mark.kill
def test_the_loader_with_processes_and_deaths(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them die, twice in a window: the stream is that of threads."""
    true_submit, submitted = PatchPool.submit, []

    def submit(self: PatchPool, *args: Any) -> Any:
        submitted.append(1)
        if len(submitted) in (3, 6):
            for process in readers_of(os.getpid()):
                process.kill()
        return true_submit(self, *args)

    expected = joined(stream(store, OPTIONS, 0, 9))
    monkeypatch.setattr(PatchPool, "submit", submit)
    assert joined(stream(store, replace(OPTIONS, processes=True), 0, 9)) == expected
    assert len(submitted) > 6


def test_slides_of_one_id_in_two_stores_are_two(tmp_path: Path) -> None:
    """A worker that has read one of them does not take the pixels of the other from it."""
    stores = [
        make_store(tmp_path / name, [MadeSlide("a", n, pixels=True)]) for name, n in (("x", 6), ("y", 7))
    ]
    sources = [StoreSource("a", store) for store in stores]
    with PatchPool(1) as pool:
        found = [
            pool.submit(source, lambda reader: reader.read(0, 0, 0)).result()
            for source in (*sources, *sources)
        ]
    expected = [pixels.open_pixels(store, "a").read_chunk(0)[0] for store in stores]
    assert not np.array_equal(*expected)
    for patch, wanted in zip(found, expected * 2, strict=True):
        np.testing.assert_array_equal(patch, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [False, True])
def test_a_run_is_done_by_one_worker_in_turn(store: Path, processes: bool) -> None:
    source = StoreSource("a", store)
    with PatchPool(3, processes) as pool:
        jobs = [pool.submit_all(source, whose, [(n,) for n in range(3 * i, 3 * i + 3)]) for i in range(9)]
        results = [job.result() for job in jobs]
    assert [[n for n, _ in result] for result in results] == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(9)]
    assert all(len({worker for _, worker in result}) == 1 for result in results)


@pytest.mark.parametrize(("seeds", "rows"), [(1, 32), (2, 32), (3, 16), (4, 16), (5, 8), (64, 1), (1000, 1)])
def test_runs_are_short_when_rows_have_many_views(seeds: int, rows: int) -> None:
    assert rows_at_once(seeds) == rows


@pytest.mark.kill
def test_a_dead_process_that_another_thread_collects_is_replaced(store: Path) -> None:
    """`multiprocessing` waits for all dead children whenever it starts one, in whatever thread."""
    source = StoreSource("a", store)
    with PatchPool(1, processes=True) as pool:
        assert pool.submit(source, whose, 1).result()[0] == 1
        (process,) = readers_of(os.getpid())
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        assert pool.submit(source, whose, 2).result()[0] == 2


@pytest.mark.kill
def test_a_source_is_sent_to_a_process_once() -> None:
    many = [Counted(str(i)) for i in range(40)]
    with PatchPool(1, processes=True) as pool:
        for source in (*many[:3], *many[:3]):
            assert pool.submit(source, names).result() == source.slide_id
        assert [source.sent for source in many[:4]] == [1, 1, 1, 0]
        readers_of(os.getpid())[0].kill()  # the one after it knows nothing
        assert pool.submit(many[0], names).result() == "0"
        assert many[0].sent == 2
        for source in (*many, *many):  # more than are kept
            assert pool.submit(source, names).result() == source.slide_id
        assert many[0].sent > 2


@pytest.mark.kill
def test_work_that_kills_every_process_is_an_error(store: Path) -> None:
    source = StoreSource("a", store)
    with PatchPool(2, processes=True) as pool:
        with pytest.raises(SlideError, match="a: the process that reads it died 2 times"):
            pool.submit(source, dies).result()
        with pytest.raises(ViewMismatch, match="other pixels"):  # an error comes back as what it is
            pool.submit(source, fails, ViewMismatch("other pixels")).result()
    assert readers_of(os.getpid()) == []


def test_a_worker_that_may_not_start_processes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("multiprocessing").current_process()._config, "daemon", True)
    with pytest.raises(ClusterError, match="or give --readers threads"):
        PatchPool(1, processes=True)
