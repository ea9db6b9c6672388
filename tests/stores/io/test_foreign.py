"""Files that somebody else may have made."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from stores.errors import CorruptStore
from stores.io import foreign
from stores.io.location import MAX_FOLDERS, walk


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert foreign.read_regular(path, 6) == b"\xef\xbb\xbfabc"
    assert foreign.read_regular(path, 6, inside=tmp_path) == b"\xef\xbb\xbfabc"
    assert foreign.read_text(path) == "abc"
    with pytest.raises(CorruptStore, match="larger than 5 bytes"):
        foreign.read_regular(path, 5)
    with pytest.raises(FileNotFoundError):
        foreign.read_regular(tmp_path / "none", 5)


def test_nothing_but_a_regular_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would wait for a writer, a device never ends."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        listening.bind("socket")
    for name, what in {
        "pipe": "a pipe",
        "folder": "a folder",
        "device": "a device",
        "socket": "a socket",
    }.items():
        with pytest.raises(CorruptStore, match=f"{name}: is {what}, not a file"):
            foreign.open_regular(tmp_path / name, 1 << 20)
        assert not foreign.is_regular(tmp_path / name)


def test_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(CorruptStore, match="larger than"):
        foreign.read_regular(tmp_path / "sparse", 1 << 30)


@pytest.mark.parametrize("place", ["link", "linked/file"])
def test_links_inside_a_folder_are_not_followed(tmp_path: Path, place: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("secret")
    store = tmp_path / "store"
    store.mkdir()
    (store / "link").symlink_to(tmp_path / "elsewhere/file")
    (store / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStore, match="is a symbolic link"):
        foreign.read_regular(store / place, 100, inside=store)
    assert not foreign.is_regular(store / place, inside=store)
    assert foreign.read_regular(store / place, 100) == b"secret"  # the user named it
    (tmp_path / "by another name").symlink_to(tmp_path / "elsewhere")
    inside = tmp_path / "by another name"
    assert foreign.read_regular(inside / "file", 100, inside=inside) == b"secret"


def test_folders_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("x", dir_fd=at)
        inner = os.open("x", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    odd: list[tuple[str, str]] = []
    try:
        assert list(walk(tmp_path, lambda name, what: odd.append((name, what)))) == []
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "x")], check=True)  # pytest recurses too
    assert odd == [("/".join(["x"] * (MAX_FOLDERS + 1)), f"a folder below {MAX_FOLDERS} others")]
