"""Several stores, one of them behind a URL: through failures and a kill to the same bytes; a view that differs."""

import os
import shutil
import signal
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.distill import checkpoint
from stores.format import manifest
from stores.remote import transfer
from stores.remote.objects import Objects
from tests.tools.commands import g2l, one_error
from tests.tools.distill import SHORT
from tests.tools.kill import launcher_job, start
from tests.tools.ranks import children_of, ended, environments
from tests.tools.s3_server import BUCKET, Proxy, environment, s3_server
from tests.torture import compare

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:(botocore|aiobotocore|moto|werkzeug|s3fs|fsspec).*"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # as in tests/stores/remote
]
OPTIONS = replace(
    SHORT,
    loss="store=log-sum,koleo:0.1,tokens=log-sum,token-cosine",
    steps=30,
    batch_size=4,
    val_every=10,
    checkpoint_every=3,
    teacher_drop=0.3,
    ema=0.9,
)
FAULTS = ("reset", "503", "truncate", "slow")


@pytest.mark.s3
@pytest.mark.kill
@pytest.mark.torchrun
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_killed_run_on_a_folder_and_a_url_goes_on_to_the_same_bytes(
    store: Path, token_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes. Every second request for an object fails; the undisturbed run is on two folders."""

    def fault(method: str, path: str, before: int) -> str:
        return FAULTS[zlib.crc32(path.encode()) % 4] if method == "GET" and before % 2 == 0 else ""

    whole, run = tmp_path / "whole", tmp_path / "run"
    tokens = tmp_path / "tokens"
    tokens.symlink_to(token_store)
    undisturbed = start(
        launcher_job, (environments(2), [(str(store), 1.0), (str(tokens), 0.5)], whole, OPTIONS)
    )
    undisturbed.join()
    assert undisturbed.exitcode == 0
    with s3_server() as endpoint, Proxy(endpoint, fault, slow_s=0.01) as proxy:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/tokens"
        transfer.push(token_store, Objects(url))
        ranks = [one | environment(proxy.endpoint) for one in environments(2)]
        work = ranks, [(str(store), 1.0), (url, 0.5)], run, OPTIONS
        killed = start(launcher_job, work)
        while len(checkpoint.saved(run)) < 2:
            time.sleep(0.002)
        processes = children_of(killed.pid)
        for process in processes:
            os.kill(process, signal.SIGKILL)
        killed.kill()
        killed.join()
        assert ended(processes, 10)
        assert not (run / "summary.json").exists()
        again = start(launcher_job, work)
        again.join()
        assert again.exitcode == 0
        assert min(proxy.done[kind] for kind in FAULTS) > 5
    assert compare.differences(compare.content(run), compare.content(whole)) == []


def test_a_view_that_differs_behind_a_url_is_named_in_one_line(
    store: Path, token_store: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(token_store, tmp_path / "other"))
    commit = next(iter(manifest.commits(other, "b")))
    table = commit.read()
    at = table.column_names.index("view_crc32")
    crc = table[at].to_pylist()
    crc[-1] ^= 1
    changed = table.set_column(at, "view_crc32", pa.array(crc, table.schema.field(at).type))
    manifest.write_commit(other, "b", commit.block, commit.seeds, changed)
    url = f"file://{tmp_path}/there"
    transfer.push(other, Objects(url))
    said = g2l("distill", "--store", store, "--store", url, "--student", "x", "--out", tmp_path / "run")
    one_error(said, f"slide b row {table['row'][-1]} ")
    assert f"{url} has {crc[-1]:08x}: their teachers did not see the same pixels" in said.stderr
