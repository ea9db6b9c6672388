"""Stores behind s3:// and other URLs: the same results as from a folder, through failures, within a bounded cache."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

import cli
import pipeline
from pipeline.data.committed import BlockCache
from pipeline.data.sources import find_sources
from pipeline.data.split import open_split
from pipeline.distill import train
from pipeline.distill.metrics_log import read_metrics
from pipeline.distill.options import DistillOptions
from pipeline.runtime.progress import Silent
from pipeline.verify.options import VerifyOptions
from pipeline.verify.verify import seal_store, verify
from stores import sampler
from stores.errors import CorruptStore, OptionError, StoreError
from stores.format import layout, manifest, recipe
from stores.format.index import drop_index
from stores.info import store_info
from stores.remote import objects, transfer
from stores.remote import store as remote
from stores.remote.objects import ATTEMPTS, Objects
from tests.tools.s3_server import BUCKET, Proxy, environment, s3_server

# botocore and aiohttp close sockets when collected
pytestmark = [
    pytest.mark.s3,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:(botocore|aiobotocore|moto|werkzeug|s3fs|fsspec).*"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
OPTIONS = DistillOptions(
    student="tests.tools.tiny:student",
    random_weights=0,
    steps=6,
    batch_size=16,
    window=64,
    val_every=3,
    val_views=16,
    threads=2,
    device="cpu",
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a client; returns the endpoint."""
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    return endpoint


def put(store: Path, url: str) -> transfer.Transferred:
    return transfer.push(store, Objects(url))


def quick(url: str, attempts: int = ATTEMPTS) -> Objects:
    """Does not wait between attempts."""
    return Objects(url, sleep=lambda seconds: None, jitter=random.Random(0), attempts=attempts)


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def uploaded(endpoint: str, store: Path) -> str:
    """The store in the bucket; read only."""
    url = f"s3://{BUCKET}/uploaded"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(endpoint).items():
            patch.setenv(name, value)
        put(store, url)
    return url


@pytest.fixture(scope="module")
def local_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("local") / "run"
    train.distill(store, run, OPTIONS, False, Silent())
    return run


def test_info_and_verify_say_the_same_as_locally(s3: str, uploaded: str, store: Path, tmp_path: Path) -> None:
    with remote.open_store(uploaded) as found:
        here, there = store_info(store), store_info(found)
        assert there.pop("path") == uploaded
        here.pop("path")
        assert here == there
        result = verify(found, VerifyOptions(views=True, sample=3, threads=2), Silent())
        assert result.findings == []
        assert result.views_checked > 0
    out = CliRunner().invoke(cli.g2l, ["store", "info", uploaded, "--json"])
    assert json.loads(out.stdout)["views"] == here["views"]


def test_info_lists_no_arrays_that_the_index_counts(
    s3: str, uploaded: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of 1,000 slides has 400,000 files in them, and a service lists 1,000 for a request."""
    asked: list[str] = []
    list_files = Objects.list

    def counted(self: Objects, prefix: str = "") -> dict[str, objects.Object]:
        asked.append(prefix)
        return list_files(self, prefix)

    monkeypatch.setattr(Objects, "list", counted)
    with remote.open_store(uploaded) as found:
        assert store_info(found)["files"] == store_info(store)["files"]
    assert layout.MANIFEST in asked
    assert not {"", layout.FEATURES, layout.PIXELS} & set(asked)


def test_a_store_with_an_index_is_opened_without_its_records(
    s3: str, uploaded: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get = Objects.get

    def counted(self: Objects, name: str, limit: int) -> bytes | None:
        fetched.append(name)
        return get(self, name, limit)

    monkeypatch.setattr(Objects, "get", counted)
    with remote.open_store(uploaded) as found:
        units = sampler.find_units(found, "train", None)
        assert [name for name in fetched if name.startswith((layout.VIEWS, layout.PATCHES))] == []
        cache = BlockCache(found)
        cache.stored(units[0].commit, units[0].rows, 0)
        of = units[0].commit
        needed = [of.file, layout.patches_file(of.slide_id)]
        assert sorted(n for n in fetched if n.startswith((layout.VIEWS, layout.PATCHES))) == sorted(needed)
    here = sampler.find_units(store, "train", None)
    assert [(u.commit.file, u.rows.tolist()) for u in units] == [
        (u.commit.file, u.rows.tolist()) for u in here
    ]


def test_an_old_index_does_not_stay_behind_a_url(copy: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'pushed'}"
    put(copy, url)
    drop_index(copy)
    next(manifest.commits(copy)).path.unlink()
    (tmp_path / "pushed" / layout.commit_file("a", 0, range(7, 8))).write_bytes(b"")
    with remote.open_store(url) as found, pytest.raises(CorruptStore, match=r"index\.parquet: lacks"):
        sampler.find_units(found, "train", None)
    put(copy, url)
    assert not (tmp_path / "pushed" / layout.INDEX).exists()


def test_which_slides_have_pixels_is_listed_once(
    s3: str, uploaded: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for the metadata of each took a request a slide, one after the other."""
    with remote.open_store(uploaded) as found:
        monkeypatch.setattr(Objects, "get", lambda *given: pytest.fail(f"asks for {given}"))
        sources = find_sources(found, recipe.load(store), {"a", "c"}, ())
        assert list(sources) == ["a", "c"]
        with pytest.raises(OptionError, match="slide x: the store keeps no pixels of it"):
            find_sources(found, recipe.load(store), {"x"}, ())


def test_a_sample_waits_for_many_patches_at_once(store: Path) -> None:
    put(store, "memory://wait/store")
    with remote.open_store("memory://wait/store") as found:
        assert isinstance(found, remote.RemoteStore)
        get, both = found.objects.get, threading.Barrier(2, timeout=10)
        first = iter((True, True))

        def slow(name: str, limit: int) -> bytes | None:
            if name.startswith(layout.PIXELS) and "/c/" in name and next(first, False):
                both.wait()  # BrokenBarrierError when they are asked for one after the other
            return get(name, limit)

        found.objects.get = slow  # type: ignore[method-assign, assignment]
        split = open_split(found, recipe.load_complete(found), "train", None)
        here = open_split(store, recipe.load_complete(store), "train", None)
        # of two slides; more views of one chunk would wait for each other
        there = split.sample(0, 8, threads=1)
        np.testing.assert_array_equal(there.views, here.sample(0, 8, threads=1).views)


def test_distill_streams_the_same_run(s3: str, uploaded: str, local_run: Path, tmp_path: Path) -> None:
    with remote.open_store(uploaded, tmp_path / "cache") as found:
        train.distill(found, tmp_path / "run", OPTIONS, False, Silent())
    assert losses(tmp_path / "run") == losses(local_run)
    student = "student/model.safetensors"
    assert (tmp_path / "run" / student).read_bytes() == (local_run / student).read_bytes()
    assert list((tmp_path / "cache").iterdir()) == []  # removed at the end


def test_the_views_of_a_store_behind_a_url_are_made_again(
    s3: str, uploaded: str, store: Path, slides: Path, tmp_path: Path
) -> None:
    other: dict[str, Any] = {"teacher": "tests.tools.tiny:student", "random_weights": 1, "threads": 2}
    made = tmp_path / "made"
    result = pipeline.extract([slides], made, like=uploaded, **other)
    assert result.compared == result.to_json()["views"] == store_info(store)["views"]
    begun = layout.read_options(made, "extract-teacher")["like"]
    assert begun == {"name": "uploaded", "recipe": recipe.load(store).digest()}
    found = pipeline.family([uploaded, made])
    assert found.is_family
    assert found.compared == result.compared
    with pytest.raises(OptionError, match="given twice"):
        pipeline.family([uploaded, f"{uploaded}/"])


@pytest.mark.kill
def test_the_cache_of_a_killed_process_goes_and_that_of_a_living_one_stays(
    s3: str, uploaded: str, tmp_path: Path
) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from stores.remote.store import _own_folder\n"
        "with _own_folder(Path(sys.argv[1])) as folder: print(folder, flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", hold, str(tmp_path)]
    held = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        dead, living = (Path(process.stdout.readline().strip()) for process in held if process.stdout)
        held[0].kill()
        held[0].wait()
        (tmp_path / "g2l-cache-link").symlink_to(living)
        (tmp_path / "g2l-cache-of-an-older-version").mkdir()
        assert dead.exists()
        with remote.open_store(uploaded, tmp_path):
            assert not dead.exists()
            assert living.exists()
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {living.name, "g2l-cache-link", "g2l-cache-of-an-older-version"}
    finally:
        for process in held:
            process.kill()
            process.communicate()


def test_a_cache_smaller_than_the_data_stays_within_its_bound(
    s3: str, uploaded: str, local_run: Path, tmp_path: Path
) -> None:
    bound = 7_000_000  # one chunk of pixels and a little more
    held = []
    with remote.open_store(uploaded, tmp_path / "cache", bound / 1e9) as found:
        assert isinstance(found, remote.RemoteStore)
        keep = found._keep

        def watched(name: str, data: bytes) -> None:
            keep(name, data)
            with found._lock:  # no other thread removes files meanwhile
                held.append(sum(p.stat().st_size for p in (tmp_path / "cache").glob("*/chunks/*")))

        found._keep = watched  # type: ignore[method-assign]
        train.distill(found, tmp_path / "run", OPTIONS, False, Silent())
    assert losses(tmp_path / "run") == losses(local_run)
    assert held
    assert max(held) <= bound


def test_a_cached_file_that_is_just_being_written_is_not_taken_for_whole(
    s3: str, uploaded: str, tmp_path: Path
) -> None:
    """As when one thread reads what another evicted and fetches again."""
    name = "features.zarr/a/features/c/0/0/0"
    with remote.open_store(uploaded, tmp_path / "cache", 1) as found:
        assert isinstance(found, remote.RemoteStore)
        whole = found.read(name, 1 << 30)
        assert whole is not None
        cached = found._path(name)
        cached.write_bytes(whole[: len(whole) // 2])
        assert found.read(name, 1 << 30) == whole
        assert cached.read_bytes() == whole


@pytest.mark.parametrize("fault", ["reset", "slow", "503", "truncate"])
def test_distill_survives_failures_with_identical_results(
    s3: str, uploaded: str, local_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The first request for every object fails."""

    def first(method: str, path: str, before: int) -> str:
        return fault if before == 0 and method == "GET" else ""

    with Proxy(s3, first) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr(objects, "FIRST_DELAY_S", 0.001)
        with remote.open_store(uploaded) as found:
            train.distill(found, tmp_path / "run", OPTIONS, False, Silent())
        assert proxy.done[fault] > 10
    assert losses(tmp_path / "run") == losses(local_run)


def test_a_service_that_stays_away_ends_in_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    with Proxy(s3, lambda method, path, before: "503") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        objects = Objects(f"s3://{BUCKET}/x", sleep=waits.append, jitter=random.Random(0), attempts=5)
        with pytest.raises(
            StoreError, match=r"s3://labs/x: a/b: 5 attempts failed, the last with .*; try again later"
        ):
            objects.get("a/b", 10)
    assert len(waits) == 4
    assert waits == sorted(waits)


def test_what_is_not_there(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert quick(f"s3://{BUCKET}/none").get("recipe.json", 100) is None
    for url in (f"s3://{BUCKET}/none", "s3://no-such-bucket/x"):
        done = CliRunner().invoke(cli.g2l, ["store", "info", url])
        assert done.exit_code == 2
        assert f"{url}: no recipe.json, so this is not a store" in done.stderr
    with pytest.raises(StoreError, match="no such bucket or folder"):
        quick("s3://no-such-bucket/x").put("recipe.json", b"{}")
    done = CliRunner().invoke(cli.g2l, ["store", "info", "nosuch://x/y"])
    assert "nosuch://x/y: not a URL that fsspec knows" in done.stderr
    done = CliRunner().invoke(cli.g2l, ["tile", "slides", "--store", "s3://labs/x"])
    assert "this works on local folders" in done.stderr
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    done = CliRunner().invoke(cli.g2l, ["store", "info", f"s3://{BUCKET}/x"])
    assert "no credentials; set AWS_ACCESS_KEY_ID" in done.stderr


def test_a_limit_holds_before_the_bytes_are_read(s3: str) -> None:
    objects = quick(f"s3://{BUCKET}/limits")
    objects.put("recipe.json", b"x" * 1000)
    objects.put("empty", b"")
    assert objects.get("recipe.json", 1000) == b"x" * 1000
    assert objects.get("empty", 5) == b""
    with pytest.raises(CorruptStore, match="larger than 999 bytes"):
        objects.get("recipe.json", 999)


def test_other_kinds_of_url(store: Path, tmp_path: Path) -> None:
    put(store, "memory://shelf/store")
    with remote.open_store("memory://shelf/store") as found:
        assert store_info(found)["views"] == store_info(store)["views"]
    url = f"file://{tmp_path}/there"
    assert "bytes of each file" in put(store, url).proof
    assert files_of(tmp_path / "there") == files_of(store)
    transfer.pull(quick(url), tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(store)


def test_one_file_is_fetched_once_however_many_ask(store: Path, tmp_path: Path) -> None:
    put(store, "memory://once/store")
    with remote.open_store("memory://once/store") as found:
        assert isinstance(found, remote.RemoteStore)
        get, asked = found.objects.get, []

        def slow(name: str, limit: int) -> bytes | None:
            asked.append(name)
            time.sleep(0.05)
            return get(name, limit)

        found.objects.get = slow  # type: ignore[method-assign, assignment]
        name = "features.zarr/a/features/c/0/0/0"
        threads = [threading.Thread(target=found.read, args=(name, 1 << 20)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asked == [name]


# push and pull


def test_push_and_pull_round_trip(s3: str, store: Path, tmp_path: Path) -> None:
    sealed = Path(shutil.copytree(store, tmp_path / "sealed"))
    seal_store(sealed, False, Silent())
    url = f"s3://{BUCKET}/round"
    runner = CliRunner()
    done = runner.invoke(cli.g2l, ["store", "push", str(sealed), url, "--json"])
    assert done.exit_code == 0, done.stderr
    first = json.loads(done.stdout)
    assert first["files"] == len(files_of(sealed))
    assert first["there_before"] == 0
    again = put(sealed, url)
    assert again.there_before == again.files == first["files"]
    done = runner.invoke(cli.g2l, ["store", "pull", url, str(tmp_path / "back"), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["proof"] == "SHA-256 of the seal"
    assert files_of(tmp_path / "back") == files_of(sealed)
    done = runner.invoke(cli.g2l, ["store", "pull", url, str(tmp_path / "back")])
    assert "exists already" in done.stderr


def test_push_survives_failures_and_does_not_mix_stores(
    s3: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["reset", "503", "slow"]

    def first(method: str, path: str, before: int) -> str:
        return kinds[len(path) % 3] if before == 0 else ""

    url = f"s3://{BUCKET}/mixed"
    with Proxy(s3, first) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        transfer.push(store, quick(url))
        assert {kind for kind in kinds if proxy.done.get(kind)} == set(kinds)
        transfer.pull(quick(url), tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(store)
    other = Path(shutil.copytree(store, tmp_path / "other"))
    about = recipe.load_complete(other)
    recipe.save(other, replace(about, reader=replace(about.reader, opencv="another")))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    with pytest.raises(OptionError, match=r"another store is there \(its recipe.json differs\)"):
        put(other, url)
    assert "push.json" not in quick(url).list()


@pytest.mark.kill
@pytest.mark.parametrize("command", ["push", "pull"])
def test_killed_transfers_go_on(s3: str, uploaded: str, store: Path, tmp_path: Path, command: str) -> None:
    """SIGKILL in the middle; what had arrived is not sent again, and no half of a store is taken for one."""
    url = f"s3://{BUCKET}/killed" if command == "push" else uploaded
    out = tmp_path / "back"
    arguments = ["push", str(store), url] if command == "push" else ["pull", url, str(out)]
    begun = threading.Event()

    def held(method: str, path: str, before: int) -> str:
        late = "features.zarr/c" in path and method == ("PUT" if command == "push" else "GET")
        if late:
            begun.set()
        return "slow" if late else ""

    with Proxy(s3, held, slow_s=60) as proxy:
        env = os.environ | {"AWS_ENDPOINT_URL": proxy.endpoint}
        process = subprocess.Popen(
            [sys.executable, "cli.py", "store", *arguments], env=env, stderr=subprocess.PIPE
        )
        assert begun.wait(60)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    if command == "push":
        with pytest.raises(StoreError, match="upload is unfinished"):
            transfer.pull(quick(url), out)
        result = put(store, url)
        transfer.pull(quick(url), out)
    else:
        assert not out.exists()
        result = transfer.pull(quick(url), out)
    assert result.there_before > 0
    assert files_of(out) == files_of(store)


def test_a_changed_object_is_noticed_on_the_way_back(s3: str, store: Path, tmp_path: Path) -> None:
    sealed = Path(shutil.copytree(store, tmp_path / "sealed"))
    seal_store(sealed, False, Silent())
    url = f"s3://{BUCKET}/changed"
    put(sealed, url)
    name = "features.zarr/a/features/c/0/0/0"
    whole = (sealed / name).read_bytes()
    quick(url).put(name, whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    with pytest.raises(CorruptStore, match=f"{name}: is not what was sealed"):
        transfer.pull(quick(url), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    quick(url).put(name, whole)
    assert transfer.pull(quick(url), tmp_path / "back").there_before > 0


def test_hostile_keys_stay_outside(s3: str, store: Path, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/hostile"
    put(store, url)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    hostile = [
        "../../evil",
        "manifest/../../../evil",
        "manifest/views/../evil.parquet",
        "manifest/views/a\\..\\x",
        "run.sh",
    ]
    hostile += ["features.zarr/../features/c/0/0/0", "manifest/views/../00000-s0000-0000.parquet"]
    for name in hostile:
        fs.call_s3("put_object", Bucket=BUCKET, Key=f"hostile/{name}", Body=b"evil")
    home = tmp_path / "a/b"
    home.mkdir(parents=True)
    with remote.open_store(url, home / "cache") as found:
        assert store_info(found)["views"] == store_info(store)["views"]
        assert not list(tmp_path.rglob("*evil*"))
    result = transfer.pull(quick(url), home / "x/back")
    assert sorted(result.left_out) == sorted(hostile)
    assert files_of(home / "x/back") == files_of(store)
    assert not list(tmp_path.rglob("*evil*"))
    assert [*tmp_path.iterdir(), *home.parent.iterdir()] == [home.parent, home]


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_two_stores_do_not_mix_at_one_url(s3: str, store: Path, tmp_path: Path, kind: str) -> None:
    """The second is refused while the first is pushed, and goes when the claim of a dead one is removed."""
    url = f"s3://{BUCKET}/two" if kind == "s3" else f"file://{tmp_path}/two"
    other = Path(shutil.copytree(store, tmp_path / "other"))
    manifest.write_slides(other, [row | {"patient_id": "p"} for row in manifest.read_slides(other)])
    there = quick(url)
    there.create("push.json", json.dumps(transfer._claim_of(other)).encode())
    there.create("push.json", b"{}")  # is not written over it
    with pytest.raises(OptionError, match=r"another store is being pushed there \(process \d+ on host"):
        transfer.push(store, there)
    assert set(there.list()) == {"push.json"}
    transfer.push(other, there)
    assert set(there.list()) == set(layout.list_files(other))


def test_a_push_claims_its_url_and_looks_again_at_the_end(store: Path, tmp_path: Path) -> None:
    """Another push came in between where a service cannot refuse to write over a file: neither becomes a store."""
    other = Path(shutil.copytree(store, tmp_path / "other"))
    manifest.write_slides(other, [row | {"patient_id": "p"} for row in manifest.read_slides(other)])
    there = quick(f"file://{tmp_path}/out")
    claims: list[dict[str, str]] = []
    one_at_a_time = threading.Lock()

    class Meanwhile(Silent):
        def advance(self, by: int = 1, detail: str = "") -> None:
            with one_at_a_time:  # several threads push
                if not claims:
                    claims.append(json.loads(there.get("push.json", 1 << 16) or b"{}"))
                    there.put("push.json", json.dumps(transfer._claim_of(other)).encode())

    with pytest.raises(OptionError, match="another store is being pushed there"):
        transfer.push(store, there, Meanwhile())
    # by: and when
    assert [{**claim, "by": ""} for claim in claims] == [{**transfer._claim_of(store), "by": ""}]
    assert layout.RECIPE not in there.list()


def test_a_store_that_changes_while_it_is_pushed_is_no_store_there(store: Path, tmp_path: Path) -> None:
    changing = Path(shutil.copytree(store, tmp_path / "s"))

    class Writes(Silent):
        def advance(self, by: int = 1, detail: str = "") -> None:
            (changing / "manifest" / "views" / "a" / "00009-s0000-0000.parquet").touch()

    there = quick(f"file://{tmp_path}/out")
    with pytest.raises(StoreError, match="was changed while it was copied"):
        transfer.push(changing, there, Writes())
    assert layout.RECIPE not in there.list()


def test_symbolic_links_are_not_pushed(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "s"))
    (path / "pictures/z.png").symlink_to("/etc/hostname")
    with pytest.raises(CorruptStore, match="a symbolic link"):
        put(path, "memory://links/store")


def test_a_run_may_move_between_a_folder_and_a_url(
    s3: str, uploaded: str, store: Path, local_run: Path, tmp_path: Path
) -> None:
    """What was begun locally goes on from the bucket, and ends as if nothing had happened."""
    run = tmp_path / "run"
    shutil.copytree(local_run, run)
    for name in ("summary.json", "student", "projector.safetensors"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    with remote.open_store(uploaded) as found:
        train.distill(found, run, replace(OPTIONS), False, Silent())
    student = "student/model.safetensors"
    assert (run / student).read_bytes() == (local_run / student).read_bytes()
