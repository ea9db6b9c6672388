"""Several processes of one training: they are one, they may become more or fewer, and they end together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.distill import checkpoint, ranks, train
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.options import DistillOptions
from pipeline.runtime.progress import Silent
from stores.errors import DistillError, OptionError
from tests.tools.kill import launcher_job, start
from tests.tools.ranks import children_of, ended, environments, free_port, run_several, several
from tests.tools.settings import ROOT

OPTIONS = DistillOptions(
    student="tests.tools.tiny:student",
    random_weights=1,
    steps=20,
    batch_size=8,
    lr=3e-3,
    val_every=10,
    checkpoint_every=5,
    threads=1,
    window=64,
)


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"]


@pytest.fixture(scope="module")
def alone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with twice the batch."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train.distill(store, run, replace(OPTIONS, batch_size=16), False, Silent())
    return run


@pytest.mark.torchrun
def test_two_processes_of_torchrun_are_one_with_twice_the_batch(
    alone: Path, store: Path, tmp_path: Path
) -> None:
    """To float32 rounding over 20 steps; what differs more is a bias that batch normalisation takes out again."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += ["cli.py", "distill", "--store", str(store), "--out", str(run)]
    for name in ("student", "random_weights", "steps", "batch_size", "lr", "val_every", "threads", "window"):
        command += [f"--{name.replace('_', '-')}", str(getattr(OPTIONS, name))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes, batch statistics sync" in done.stderr
    assert done.stdout.count("20 of 20 steps") == 1  # one speaks
    assert losses(run) == pytest.approx(losses(alone), rel=1e-6)
    one, two = (load_file(path / "student/model.safetensors") for path in (alone, run))
    for name in one.keys() - {"head.bias"}:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=2e-6)
    figures = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "val"]
    expected = [record for record in read_metrics(alone / "metrics.jsonl") if record["kind"] == "val"]
    for got, wanted in zip(figures, expected, strict=True):
        assert got["cosine"] == pytest.approx(wanted["cosine"], abs=1e-5)
        assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-5)  # of batches of 16 in both


@pytest.mark.torchrun
def test_a_student_with_an_unused_parameter(store: Path, tmp_path: Path) -> None:
    run_several(store, tmp_path / "run", replace(OPTIONS, student="tests.tools.faulty:idle", steps=4), 2)
    assert len(losses(tmp_path / "run")) == 4


@pytest.mark.torchrun
def test_local_statistics_are_those_of_each_process(alone: Path, store: Path, tmp_path: Path) -> None:
    run_several(store, tmp_path / "run", replace(OPTIONS, batch_stats="local", steps=3), 2)
    # half as many terms in each sum: the log is lower by log 2
    assert losses(tmp_path / "run")[0] == pytest.approx(losses(alone)[0] - 0.69, abs=0.2)


@pytest.mark.torchrun
def test_a_run_goes_on_with_another_number_of_processes(store: Path, tmp_path: Path) -> None:
    """Three processes, then two, then one, then all over again: every view has come once an epoch."""
    run, options = tmp_path / "run", replace(OPTIONS, steps=40, batch_size=4, checkpoint_every=1000)
    for world in (3, 2):
        seen = len(losses(run)) if run.exists() else 0
        processes = several(store, run, options, world)
        while all(p.is_alive() for p in processes) and len(losses(run)) < seen + 5:
            time.sleep(0.002)
        for process in processes:
            os.kill(process.pid, signal.SIGTERM)
        for process in processes:
            process.join()
            assert process.exitcode == 1  # interrupted
        assert len(checkpoint.saved(run)) >= 1
    facts = torch.load(checkpoint.saved(run)[-1], weights_only=True)["facts"]
    counts = {3: 0, 2: 0}
    for record in read_metrics(run / "metrics.jsonl"):
        if record["kind"] == "train":
            counts[record["processes"]] += 1
    assert facts["views_seen"] == 4 * (3 * counts[3] + 2 * counts[2])
    assert min(counts.values()) >= 5
    summary = train.distill(store, run, options, True, Silent())
    left = 40 * 12 - facts["views_seen"]
    assert summary["steps"] == counts[3] + counts[2] + -(-left // 4)
    assert summary["views_seen"] == facts["views_seen"] + -(-left // 4) * 4


@pytest.mark.torchrun
def test_when_one_process_fails_all_end(store: Path, tmp_path: Path) -> None:
    """A chunk is missing, which one of them notices first."""
    path = Path(shutil.copytree(store, tmp_path / "s"))
    (path / "features.zarr/b/features/c/1/0/0").unlink()
    options = replace(OPTIONS, check_views="none", steps=400)
    processes = several(path, tmp_path / "run", options, 2)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 1
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.kill
@pytest.mark.torchrun
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_processes_do_not_outlive_a_killed_launcher(store: Path, tmp_path: Path) -> None:
    """Nor does a second start write beside them; then the run goes on to the bytes of an undisturbed one."""
    options, run = replace(OPTIONS, steps=60), tmp_path / "run"
    undisturbed = start(launcher_job, (environments(2), store, tmp_path / "undisturbed", options))
    undisturbed.join()
    assert undisturbed.exitcode == 0
    launcher = start(launcher_job, (environments(2), store, run, options))
    while not (run / "metrics.jsonl").exists() or len(losses(run)) < 3:
        time.sleep(0.002)
    ranks_of_it = children_of(launcher.pid)
    assert len(ranks_of_it) == 2
    for process in ranks_of_it:
        os.kill(process, signal.SIGSTOP)  # so that they certainly live while the second is started
    launcher.kill()
    launcher.join()
    with pytest.raises(OptionError, match="another command is writing into it"):
        train.distill(store, run, options, False, Silent())
    for process in ranks_of_it:
        os.kill(process, signal.SIGCONT)
    assert ended(ranks_of_it, 10)
    assert not (run / "summary.json").exists()
    assert len(checkpoint.saved(run)) >= 1  # they stopped as after SIGTERM, with a checkpoint
    second = start(launcher_job, (environments(2), store, run, options))
    second.join()
    assert second.exitcode == 0
    for name in ("student/model.safetensors", "projector.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_what_gloo_says_of_a_lost_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **settings: None)
    monkeypatch.setattr(torch.distributed, "new_group", lambda *args, **settings: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    for text, expected in (
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:20176", DistillError),
        ("shapes do not fit", RuntimeError),
    ):
        with pytest.raises(expected) as caught, ranks.join("cpu", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}):
            raise RuntimeError(text)
        assert ("process 2 of 2: another process" in str(caught.value)) == (expected is DistillError)


def test_a_device_that_processes_cannot_share() -> None:
    environment = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0"}
    if torch.cuda.is_available():
        with (
            pytest.raises(OptionError, match="each of 2 processes needs its own GPU"),
            ranks.join("cuda:0", environment),
        ):
            pass
    with ranks.join("cpu", {}) as joined:
        assert (joined.rank, joined.world, joined.leads, joined.sum(2.0, 3.0)) == (0, 1, True, [2.0, 3.0])
