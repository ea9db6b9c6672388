"""A repository of the hub: when a local file is what is there."""

import hashlib
from pathlib import Path

import pytest

from stores.remote.hub import HubFile


@pytest.mark.parametrize("apart", [True, False], ids=["apart from git", "in git"])
def test_a_file_of_the_same_size_may_be_another(tmp_path: Path, apart: bool) -> None:
    sent, other = b"weights", b"WEIGHTS"
    blob = hashlib.sha1(b"blob 7\0" + sent, usedforsecurity=False).hexdigest()
    there = HubFile(len(sent), hashlib.sha256(sent).hexdigest() if apart else None, blob)
    path = tmp_path / "model.safetensors"
    for content, same in ((sent, True), (other, False), (sent[:-1], False)):
        path.write_bytes(content)
        assert there.is_same(path) is same
