"""Atomic writing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stores.errors import DiskFull, OptionError, StoreError
from stores.io import files
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
def test_bytes_are_written_whole_or_not_at_all(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    path = tmp_path / "new" / "a"
    files.write_bytes(path, *parts)
    assert path.read_bytes() == b"".join(parts)
    assert os.listdir(path.parent) == ["a"]
    path.with_name(f".a.{os.getpid()}.partial").symlink_to("/dev/full")  # a disk on which nothing fits
    with pytest.raises(DiskFull, match="the disk is full"):
        files.write_bytes(path, b"other")
    assert path.read_bytes() == b"".join(parts)
    assert os.listdir(path.parent) == ["a"]


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


def test_sweep_removes_partials_only(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("x/.c.123.partial", "x/keep", ".a.partial"):
        (tmp_path / name).touch()
    assert files.sweep_partials(tmp_path) == 2
    assert (tmp_path / "x/keep").exists()


@pytest.mark.kill
def test_one_command_writes_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with (
        files.only_writer(folder),
        pytest.raises(OptionError, match="another command is writing into it"),
        files.only_writer(folder),
    ):
        pass
    assert not folder.exists()  # nothing was written
    holder = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; from stores.io.files import only_writer\n"
         f"with only_writer(Path({str(folder)!r})): print('held', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OptionError), files.only_writer(folder):
        pass
    holder.kill()
    holder.communicate()
    assert (
        list(walk(folder, lambda name, what: pytest.fail(name))) == []
    )  # what is left is no part of a store
    with files.only_writer(folder):  # a lock ends with its process
        (folder / "a").touch()
    assert os.listdir(folder) == ["a"]


def test_a_folder_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(lock: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    with files.only_writer(tmp_path / "s"):
        (tmp_path / "s" / "a").touch()
    assert os.listdir(tmp_path / "s") == ["a"]


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
