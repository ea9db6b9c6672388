"""Atomic writing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stores.errors import DiskFull, OptionError, StoreError
from stores.io import files
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...]
) -> None:
    path = tmp_path / "new" / "a"
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:4096]))  # as a disk may
    files.write_bytes(path, *parts)
    assert path.read_bytes() == b"".join(parts)
    assert os.listdir(path.parent) == ["a"]

    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
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
    with files.only_writer(folder):  # a lock ends with its process
        pass
