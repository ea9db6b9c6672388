"""Atomic writing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stores.errors import DiskFull, OptionError, StoreError
from stores.io import files, lock
from stores.io.location import walk
from tests.tools.settings import ROOT


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def fail_half_way() -> None:
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("parts", [(b"",), (b"abc", memoryview(b"defg")), (bytes(1 << 20), b"x")])
def test_bytes_are_written_whole_or_not_at_all(
    tmp_path: Path, parts: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "a"
    files.write_bytes(path, *parts)
    assert path.read_bytes() == b"".join(parts)
    assert os.listdir(path.parent) == ["a"]
    full = os.open("/dev/full", os.O_WRONLY)  # a disk on which nothing fits
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.open", lambda self, mode: os.fdopen(full, mode))
        with pytest.raises(DiskFull, match="the disk is full"):
            files.write_bytes(path, b"other")
    assert path.read_bytes() == b"".join(parts)
    assert os.listdir(path.parent) == ["a"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A foreign folder may come with links under names that a command is going to write."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = tmp_path / "s" / "README.md"
    path.parent.mkdir()
    for name in (path.name, f".{path.name}.{os.getpid()}.partial"):
        path.with_name(name).symlink_to(mine)
    files.write_text(path, "theirs")
    assert (mine.read_text(), path.read_text(), path.is_symlink()) == ("mine", "theirs", False)
    assert os.listdir(path.parent) == ["README.md"]


@pytest.mark.parametrize("place", ["logs", "logs/tile.jsonl"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_is_a_plain_file(tmp_path: Path, place: str, kind: str) -> None:
    mine, path = tmp_path / "mine", tmp_path / "s" / place
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif place == "logs":
        mine.mkdir()
        path.symlink_to(mine)
    else:
        mine.write_text("mine\n")
        path.symlink_to(mine)
    with pytest.raises((OptionError, FileExistsError), match=r"not a plain file|File exists"):
        files.open_log(tmp_path / "s/logs/tile.jsonl")
    assert not mine.is_file() or mine.read_text() == "mine\n"
    assert not mine.is_dir() or list(mine.iterdir()) == []


def test_a_reader_never_sees_a_file_change_under_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with path.open() as reader:
        files.write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_colleagues_can_read_it_when_the_umask_says_so(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with files.replacing(tmp_path / "a") as partial:
        partial.unlink()
        partial.touch(mode=0o600)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})


@pytest.mark.parametrize("text", ["{", "\x00", "[" * 100_000])
def test_damaged_json_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(StoreError, match="not a readable JSON file") as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value)


def test_large_json_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + " " * 100 + "]")
    with pytest.raises(StoreError, match="larger than 50 bytes"):
        files.read_json(path, limit_bytes=50)


def test_folders_that_were_flushed_are_not_remembered_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge of 1,000 slides kept 600 MB of them; one that was forgotten is flushed again."""
    flushed: list[Path] = []
    monkeypatch.setattr(files, "_FLUSHED", set())
    monkeypatch.setattr(files, "_MOST_FLUSHED", 50)
    monkeypatch.setattr(files, "fsync_path", flushed.append)
    for number in range(200):
        files.make_folder(tmp_path / str(number))
        assert len(files._FLUSHED) <= 50
    assert all((tmp_path / str(number)).is_dir() for number in range(200))
    assert len(flushed) >= 200
    flushed.clear()
    files.make_folder(tmp_path / "199")
    assert not flushed
    files.make_folder(tmp_path / "0")
    assert tmp_path in flushed


def test_sweep_removes_partials_only(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("x/.c.123.partial", "x/keep", ".a.partial", "x/.tmpRgZc5m"):
        (tmp_path / name).touch()
    assert files.sweep_partials(tmp_path) == 3
    assert (tmp_path / "x/keep").exists()


@pytest.mark.kill
def test_one_command_writes_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with (
        lock.only_writer(folder),
        pytest.raises(OptionError, match="another command is writing into it"),
        lock.only_writer(folder),
    ):
        pass
    assert not folder.exists()  # nothing was written
    holder = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; from stores.io.lock import only_writer\n"
         f"with only_writer(Path({str(folder)!r})): print('held', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OptionError), lock.only_writer(folder):
        pass
    holder.kill()
    holder.communicate()
    # what is left is no part of a store
    assert list(walk(folder, lambda name, what: pytest.fail(name))) == []
    with lock.only_writer(folder):  # a lock ends with its process
        (folder / "a").touch()
    assert os.listdir(folder) == ["a"]


def test_a_folder_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(lock: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    with lock.only_writer(tmp_path / "s"):
        (tmp_path / "s" / "a").touch()
    assert os.listdir(tmp_path / "s") == ["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I/O error: No space left on device (os error 28)", DiskFull),
        ("I/O error: Input/output error (os error 5)", OSError),
        ("Can't decrement id ref count (file write failed: filename = 'a', errno = 5, buf = 0x5)", OSError),
        ("a mistake in the program", RuntimeError),
    ],
)
def test_a_disk_that_libraries_in_other_languages_complain_of(
    tmp_path: Path, text: str, expected: type[Exception]
) -> None:
    """safetensors and HDF5 raise errors of their own, which quote the number of the system's."""
    with pytest.raises(expected) as caught, files.replacing(tmp_path / "a"):
        raise RuntimeError(text)
    assert not isinstance(caught.value, OSError) or caught.value.errno == errno.EIO
    assert os.listdir(tmp_path) == []


def test_stores_need_no_module_that_only_unix_has() -> None:
    code = """
import sys
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios"))
import importlib, pkgutil, stores
for module in pkgutil.walk_packages(stores.__path__, "stores."):
    importlib.import_module(module.name)
assert stores.open and stores.Store and stores.Recipe
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
