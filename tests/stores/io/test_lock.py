"""One writer: races of processes, owners on other hosts, owners that are gone, links that lead elsewhere."""

import errno
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from stores.errors import OptionError
from stores.io import location, lock
from stores.io.files import LOGS
from tests.tools.made_stores import make_store
from tests.tools.race import hold, race, subset_all
from tests.tools.share import SLIDES, wrong

ELSEWHERE = replace(
    lock.Owner.here(), host="node7", boot="another", process=4711, since="2026-11-28T10:00:00+00:00"
)


def owned(folder: Path, owner: lock.Owner, age_s: float = 0) -> Path:
    """A folder with the owner file of another process."""
    path = folder / LOGS / lock.OWNER
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(owner)))
    (folder / LOGS / lock.LOCK).touch()
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_a_fresh_owner_on_another_host_is_refused(tmp_path: Path) -> None:
    path = owned(tmp_path / "s", ELSEWHERE, 20)
    with pytest.raises(OptionError) as caught, lock.only_writer(tmp_path / "s"):
        pass
    text = str(caught.value)
    for part in ("process 4711 on host node7", "since 2026-11-28T10:00:00+00:00", f"delete {path}"):
        assert part in text
    assert "\n" not in text
    assert json.loads(path.read_text()) == asdict(ELSEWHERE)
    assert (tmp_path / "s" / LOGS / lock.LOCK).exists()  # the other one may hold it


@pytest.mark.parametrize(
    ("owner", "age_s"),
    [(ELSEWHERE, lock.STALE_S + 5), (replace(lock.Owner.here(), process=2**22 + 1), 0)],
    ids=["another host, silent for minutes", "this host, the process is gone"],
)
@pytest.mark.parametrize("with_locks", [True, False])
def test_an_owner_that_is_gone_is_replaced(
    tmp_path: Path, owner: lock.Owner, age_s: float, with_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = owned(tmp_path / "s", owner, age_s)
    if not with_locks:
        without_locks(monkeypatch)
    with lock.only_writer(tmp_path / "s"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert not path.exists()


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(lock: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)


def test_a_living_owner_counts_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    with (
        lock.only_writer(tmp_path / "s"),
        pytest.raises(OptionError, match=f"process {os.getpid()} on host"),
        lock.only_writer(tmp_path / "s"),
    ):
        pass


def test_a_failed_command_leaves_the_users_own_empty_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for folder in (mine, mine / "new" / "deep"):
        with pytest.raises(OptionError, match="no"), lock.only_writer(folder):
            raise OptionError("no")
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", '{"host": 1}', "\x1b[2J", '{"process": 1e999}'])
def test_an_unreadable_owner_file_counts_by_its_age(tmp_path: Path, text: str) -> None:
    path = owned(tmp_path / "s", ELSEWHERE)
    path.write_text(text)
    with (
        pytest.raises(OptionError, match="another command is writing into it"),
        lock.only_writer(tmp_path / "s"),
    ):
        pass
    os.utime(path, (0, 0))
    with lock.only_writer(tmp_path / "s"):
        pass


def test_the_owner_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with lock.only_writer(tmp_path / "s"):
        path = tmp_path / "s" / LOGS / lock.OWNER
        os.utime(path, (0, 0))
        until = time.monotonic() + 20
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 60


def test_a_dead_owner_has_one_heir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts have found the same dead owner; the second acts while the first is about to replace it."""
    path = owned(tmp_path / "s", ELSEWHERE, lock.STALE_S + 5)
    found, draft = lock._read(path), lock._draft
    assert found is not None
    second: list[bool] = []

    def slow(path: Path, text: str) -> Path:
        monkeypatch.setattr(lock, "_draft", draft)
        second.append(lock._replace(path, "second", found, alone=False))
        return draft(path, text)

    monkeypatch.setattr(lock, "_draft", slow)
    assert lock._replace(path, "first", found, alone=False)
    assert (second, path.read_text()) == ([False], "first")
    assert not lock._replace(path, "late", found, alone=False)
    assert path.read_text() == "first"


def test_a_draft_that_another_writer_swept_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned(tmp_path / "s", ELSEWHERE, lock.STALE_S + 5)
    draft = lock._draft
    swept: list[Path] = []

    def gone(path: Path, text: str) -> Path:
        made = draft(path, text)
        if len(swept) < 2:  # that of a new owner file, and that in the place of the dead owner's
            swept.append(made)
            made.unlink()
        return made

    monkeypatch.setattr(lock, "_draft", gone)
    with lock.only_writer(tmp_path / "s"):
        assert len(swept) == 2


def test_a_draft_that_cannot_be_removed_does_not_cost_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails once, when the draft of the owner file is removed; it was left, and the folder had no owner."""
    unlink = Path.unlink
    failed: list[Path] = []

    def fail_once(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith(f"{lock.OWNER}.") and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", fail_once)
    with lock.only_writer(tmp_path / "s") as writer:
        (tmp_path / "s" / "kept").touch()
        assert (tmp_path / "s" / LOGS / lock.OWNER).exists()
    assert failed
    assert writer.swept == 0
    assert [path.name for path in (tmp_path / "s").rglob("*")] == ["kept"]


def test_what_another_writer_removes_meanwhile_is_not_odd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    entries = location._entries

    def listed(folder: str) -> list[os.DirEntry[str]]:
        found = entries(folder)
        (tmp_path / "a").unlink()
        return found

    monkeypatch.setattr(location, "_entries", listed)
    assert list(location.walk(tmp_path, lambda name, what: pytest.fail(name))) == [("b", 0)]


@pytest.mark.kill
@pytest.mark.parametrize("host", ["one host", "hosts without a common lock"])
def test_one_of_many_holds_the_lock(tmp_path: Path, host: str) -> None:
    """Eight processes at once, again and again, beside the owner file of a dead one."""
    for number in range(3):
        folder = tmp_path / f"{number}"
        owned(folder, ELSEWHERE, lock.STALE_S + 5)
        outcomes = race(8, hold, folder, host == "one host")
        assert sorted(outcomes) == [*["refused"] * 7, "wrote"]


@pytest.mark.kill
@pytest.mark.parametrize("same", [True, False])
def test_copies_into_one_folder_do_not_mix(tmp_path: Path, same: bool) -> None:
    """At most one is made, and it is whole; the others say so."""
    store = make_store(tmp_path / "store", SLIDES)
    made = 0
    for number in range(5):
        out = tmp_path / f"out-{number}"
        outcomes = race(5, subset_all, store, out, same)
        assert set(outcomes) <= {"wrote", "refused"}
        assert outcomes.count("wrote") == 1
        made += out.is_dir()
        assert wrong(out) == []
        assert not (out / LOGS).exists()
        assert [path.name for path in tmp_path.glob(f".out-{number}*")] == []
    assert made == 5


@pytest.mark.parametrize(
    "place", ["logs", "logs/x.jsonl", "logs/.lock", "logs/.owner", "options", "options/tile.json"]
)
def test_links_are_not_written_through(tmp_path: Path, place: str) -> None:
    folder, target = tmp_path / "s", tmp_path / "mine"
    (folder / place).parent.mkdir(parents=True)
    if "." in place:
        target.write_text("mine")
    else:
        target.mkdir()
    (folder / place).symlink_to(target)
    with pytest.raises(OptionError, match="a symbolic link, and this command"), lock.only_writer(folder):
        pass
    assert target.read_text() == "mine" if target.is_file() else list(target.iterdir()) == []


@pytest.mark.parametrize("command", ["seal", "reindex", "card"])
def test_commands_that_change_a_store_wait_for_nobody(tmp_path: Path, command: str) -> None:
    store = make_store(tmp_path / "store", SLIDES[:1])
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with lock.only_writer(store):
        done = CliRunner().invoke(cli.g2l, ["store", command, str(store)])
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "another command is writing into it" in done.stderr
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
