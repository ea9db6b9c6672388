"""Where work runs: the same bytes everywhere, dead and poisoned workers, long silences, bounded memory."""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pipeline.extract import extract as stage
from pipeline.extract.block import StoreStage
from pipeline.extract.options import ExtractOptions
from pipeline.extract.tasks import create_arrays, plan_tasks
from pipeline.inference.loaded import EncoderSpec
from pipeline.inference.task import Tally, Together
from pipeline.inference.worker import TogetherWorker, WorkerEncoder
from pipeline.runtime import dask_cluster
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.options import ClusterOptions
from pipeline.runtime.progress import Silent
from pipeline.runtime.work import Advance, Cluster, close_stations, station
from pipeline.tile import tile
from pipeline.tile.options import TileOptions
from pipeline.tiles.places import SlidePlace
from pipeline.verify.options import VerifyOptions
from pipeline.verify.verify import verify
from stores.errors import ClusterError, DiskFull, EncoderError, FeatureError, G2LError
from stores.format import manifest, recipe
from stores.info import store_info
from tests.tools.extract import contents
from tests.tools.notes import Notes
from tests.tools.settings import ROOT, TEACHER
from tests.tools.verify import structure

DASK = [sys.executable, "-m", "dask"]


@contextlib.contextmanager
def started(command: list[str], says: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, once it has printed what matches `says`; the match."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if match := re.search(says, line):
                threading.Thread(target=drain, args=(process,)).start()
                yield process, match[0]
                break
        else:
            raise AssertionError(f"{command} ended")
    finally:
        process.kill()
        process.communicate()


def drain(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ValueError):  # closed meanwhile
        for _ in process.stderr or ():
            pass


@contextlib.contextmanager
def scheduler(workers: int, **environment: str) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """A dask scheduler and worker processes, as a cluster would start them; its address and the workers."""
    with contextlib.ExitStack() as stack:
        command = [*DASK, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        _, address = stack.enter_context(started(command, r"tcp://127\.0\.0\.1:\d+", **environment))
        worker = [*DASK, "worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        processes = [
            stack.enter_context(started(worker, "Registered to", **environment))[0] for _ in range(workers)
        ]
        yield address, processes


@pytest.mark.cluster
def test_the_same_bytes_wherever_it_runs(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """One process, and two workers of a scheduler. Two that the command starts: `test_together`."""
    with scheduler(2) as (address, _):
        where = ClusterOptions(scheduler=address)
        three = tmp_path / "three"
        tile.tile([slides], three, tile_options, Silent(), where)
        result = stage.extract([slides], three, TEACHER, tile_options, Silent(), where)
        assert result.views == store_info(store)["views"]
        assert contents(three) == contents(store)
        shutil.rmtree(three / "logs", ignore_errors=True)
        (three / "features.zarr/b/features/c/1/0/0").write_bytes(b"")
        options = VerifyOptions(
            slides=(slides,),
            teacher=TEACHER.teacher,
            random_weights=0,
            batch_size=TEACHER.batch_size,
            sample=5,
        )
        here, there = verify(three, options, Silent()), verify(three, options, Silent(), where)
        assert [str(f) for f in there.findings] == [str(f) for f in here.findings]
        assert "features.zarr/b/features/c/1/0/0" in str(there.findings)
        for name in ("views_checked", "features_checked", "cosine_min", "relative_error_max"):
            assert getattr(there, name) == getattr(here, name) != 0
        # errors come back as what they are, in one line
        with pytest.raises(EncoderError, match=r"no module 'tests\.nothing'"):
            stage.extract(
                [slides],
                tmp_path / "x",
                replace(TEACHER, teacher="tests.nothing:t"),
                tile_options,
                Silent(),
                where,
            )
        wrong = recipe.load(three)
        assert wrong.reader is not None
        recipe.save(three, replace(wrong, reader=replace(wrong.reader, opencv="1.0")))
        with pytest.raises(G2LError, match=r"recipe\.reader\.opencv"):
            stage.extract([slides], three, replace(TEACHER, seeds=4), tile_options, Silent(), where)


@pytest.mark.cluster
@pytest.mark.kill
def test_a_killed_worker_costs_its_block_alone(
    store: Path, slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """Twice in one run; what was done is not done again, and the run completes by itself."""
    path, options = tmp_path / "s", replace(TEACHER, teacher="tests.tools.faulty:slow", batch_size=4)
    found: list[Tally] = []
    with scheduler(3) as (address, workers):
        where = ClusterOptions(scheduler=address)
        args = ([slides], path, options, tile_options, Silent(), where)
        run = threading.Thread(target=lambda: found.append(stage.extract(*args)))
        run.start()
        while not list(path.glob("features.zarr/*/zarr.json")):  # blocks are handed out now
            time.sleep(0.01)
        for victim in workers[:2]:
            time.sleep(0.7)
            assert run.is_alive()
            victim.send_signal(signal.SIGKILL)
        run.join()
    (result,) = found
    assert not result.failed_blocks
    assert result.views == store_info(path)["views"] == store_info(store)["views"]
    assert structure(path) == []
    tables = [commit.read(["slide_id", "row", "seed"]).to_pylist() for commit in manifest.commits(path)]
    rows = [tuple(row.values()) for table in tables for row in table]
    assert len(set(rows)) == len(rows)


@pytest.fixture(scope="module")
def with_poison(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three slides, and one that is blue."""
    folder = tmp_path_factory.mktemp("poison")
    for name in "abc":
        (folder / f"{name}.tiff").symlink_to(slides / f"{name}.tiff")
    rng = np.random.default_rng(0)
    blue = rng.integers(0, 40, (768, 768, 3), dtype=np.uint8)
    blue[..., 2] += 120
    with tifffile.TiffWriter(folder / "blue.tiff") as tiff:
        tiff.write(blue, photometric="rgb", tile=(256, 256), resolution=((20_000, 1), (20_000, 1)),
                   resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    return folder


@pytest.mark.cluster
@pytest.mark.kill
@pytest.mark.parametrize(
    ("fault", "workers", "says"),
    [
        ("raises", None, "RuntimeError: this view is poison"),
        pytest.param("raises", 2, "RuntimeError: this view is poison", marks=pytest.mark.long),
        pytest.param("kills", 2, "every worker that took it died", marks=pytest.mark.long),
    ],
)
def test_a_poisoned_block_is_tried_twice_and_reported(
    with_poison: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    workers: int | None,
    says: str,
) -> None:
    """And by another process where there is one."""
    monkeypatch.setenv("FAULTY_LOG", str(tmp_path / "attempts"))
    path, notes = tmp_path / "s", Notes()
    monkeypatch.setenv("FAULTY_LEAVES", str(path / "features.zarr"))
    options = ExtractOptions(
        teacher=f"tests.tools.faulty:{fault}", random_weights=0, seeds=2, threads=1, batch_size=4
    )
    where = ClusterOptions(workers=workers)
    masks = TileOptions(min_tissue=0.01)
    result = stage.extract([with_poison], path, options, masks, notes, where)
    assert list(result.failed_blocks) == ["blue block 0 seeds 0-1"]
    assert result.failed_blocks["blue block 0 seeds 0-1"].startswith(says)
    assert {commit.slide_id for commit in manifest.commits(path)} == {"a", "b", "c"}
    assert any(says in note for note in notes.said)
    attempts = (tmp_path / "attempts").read_text().split()
    # one process twice; another worker; another worker, alone
    assert len(set(attempts)) == {("raises", None): 1, ("raises", 2): 2, ("kills", 2): 2}[fault, workers]
    assert list(path.rglob("*.partial")) == []  # also not of a process that died in the middle of a file


@pytest.mark.cluster
def test_a_worker_that_is_silent_for_long_is_not_dropped(
    slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """A library that holds the interpreter lock stops heartbeats; here for longer than the scheduler's worker-ttl."""
    options = ExtractOptions(teacher="tests.tools.faulty:deaf", random_weights=0, seeds=1, threads=1, limit=2)
    notes = Notes()
    with scheduler(1, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="1s") as (address, _):
        where = ClusterOptions(scheduler=address)
        result = stage.extract([slides / "a.tiff"], tmp_path / "s", options, tile_options, notes, where)
    assert result.views == 2
    assert not result.failed_blocks
    assert any("worker-ttl was 1 s" in note for note in notes.said)


@pytest.mark.cluster
def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 1)
    with (
        pytest.raises(ClusterError, match=r"--scheduler tcp://127\.0\.0\.1:9: cannot be reached"),
        open_cluster(ClusterOptions(scheduler="tcp://127.0.0.1:9"), "job", Silent()),
    ):
        pass


def dies_once(marker: Path) -> int:
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return 3


@pytest.mark.cluster
def test_a_worker_that_dies_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gave the traceback of dask: the connection closes while stations are closed, or an encoder is loaded."""
    close = dask_cluster.close_stations
    monkeypatch.setattr(dask_cluster, "close_stations", os._exit)
    with open_cluster(ClusterOptions(workers=1), 1, Silent()) as found:  # type: ignore[arg-type]  # the exit code
        monkeypatch.setattr(dask_cluster, "close_stations", close)
        # whether the scheduler has noticed that death or not; a call ends after a second one
        assert found.call(abs, -3) == 3
        assert found.call(dies_once, tmp_path / "marker") == 3
        with pytest.raises(ClusterError, match="every worker that took it died"):
            found.call(os._exit, 1)


@contextlib.contextmanager
def in_process() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(), "test", Silent()) as found:
        yield found


def fails(errors: dict[int, list[Exception]], item: int, advance: Advance) -> int:
    if errors.get(item):
        raise errors[item].pop(0)
    advance(1)
    return item * item


def test_what_fails_once_is_tried_again() -> None:
    errors: dict[int, list[Exception]] = {3: [ValueError("no")], 5: [ValueError("no"), FeatureError("nan")]}
    with in_process() as found:
        results = {d.item: d for d in found.run(functools.partial(fails, errors), range(10), Silent())}
    assert {item: d.result for item, d in results.items() if d.error == ""} == {
        i: i * i for i in range(10) if i != 5
    }
    assert results[5].error == "nan"


def test_an_error_of_the_whole_run_ends_it() -> None:
    for error, kind in ((DiskFull("full"), DiskFull), (OSError(28, "No space left on device"), OSError)):
        with in_process() as found, pytest.raises(kind):
            list(found.run(functools.partial(fails, {2: [error]}), range(10_000), Silent()))


def test_a_run_in_which_nothing_succeeds_ends_early() -> None:
    errors: dict[int, list[Exception]] = {i: [ValueError("no")] * 2 for i in range(1000)}
    with (
        in_process() as found,
        pytest.raises(ClusterError, match="the first 3 pieces of work all failed, the last: "),
    ):
        list(found.run(functools.partial(fails, errors), range(1000), Silent()))
    assert sum(len(left) for left in errors.values()) > 1980


def test_items_are_made_when_there_is_room_for_them() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    with in_process() as found:
        for number, _ in enumerate(found.run(functools.partial(fails, {}), items(), Silent())):
            assert len(taken) <= number + 8


@pytest.mark.slow
def test_a_closed_station_writes_nothing_more(
    slides: Path, tile_options: TileOptions, tmp_path: Path
) -> None:
    """The client of a cluster is killed and started again: the blocks of the first run must not be written any more."""
    path, options = tmp_path / "s", replace(TEACHER, teacher="tests.tools.faulty:slow", batch_size=2)
    stage.extract([slides / "a.tiff"], path, replace(options, limit=1), tile_options, Silent())
    before = contents(path)
    stored = recipe.load_complete(path)
    (task,) = plan_tasks(path, stored, {"a": SlidePlace(slides / "a.tiff")}, options, Tally())
    create_arrays(path, "a", 3, stored, False)
    encoder = WorkerEncoder("job", EncoderSpec.of(options.teacher, options))
    stages = ((encoder, StoreStage(path, stored, False, None)),)
    worker = TogetherWorker(stages, options.threads, options.readers, 1)
    failed: list[Exception] = []

    def work() -> None:
        try:
            worker.do(Together(((0, task),)), lambda count: counted.append(count))
        except ClusterError as error:
            failed.append(error)

    counted: list[Any] = []
    thread = threading.Thread(target=work)
    thread.start()
    while not counted:
        time.sleep(0.01)
    close_stations("job")
    thread.join()
    assert "the run has ended" in str(failed[0])
    assert contents(path) == before


def test_runs_that_share_a_store_share_their_end() -> None:
    """Several teachers are one job, with a line for each store; a later run may have one of the stores alone."""
    closed: list[str] = []

    @dataclass
    class Kept:
        job: str

        def close(self) -> None:
            closed.append(self.job)

    for job in ("into a\ninto b", "into b", "into bc"):
        station(job, "encoder", functools.partial(Kept, job))
    close_stations("into a\ninto d")
    assert closed == ["into a\ninto b"]
    close_stations("into b")
    assert closed == ["into a\ninto b", "into b"]
    close_stations("into bc")


@pytest.mark.parametrize(
    ("status", "workers", "match"),
    [
        ("running", {}, "no worker has been connected to the scheduler for 0 s; start workers"),
        ("closed", {"w": {}}, "lost the connection to the scheduler"),
    ],
)
def test_a_call_does_not_wait_for_a_dead_cluster(
    monkeypatch: pytest.MonkeyPatch, status: str, workers: dict[str, Any], match: str
) -> None:
    class Client:
        def __init__(self) -> None:
            self.status = status

        def submit(self, *args: Any, **settings: Any) -> Any:
            return self

        def exception(self, timeout: float) -> None:
            raise TimeoutError

        def cancel(self) -> None: ...

        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            return {"workers": workers}

    monkeypatch.setattr(dask_cluster, "_QUIET_S", 0.01)
    monkeypatch.setattr(dask_cluster, "WAIT_FOR_WORKERS_S", 0.03)
    with pytest.raises(ClusterError, match=match):
        dask_cluster.OnDask(Client(), "job", None).call(time.sleep, 1)
