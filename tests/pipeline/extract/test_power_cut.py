"""What a record promises is on the disk before the record: read off the system calls of a real run."""

import re
from pathlib import Path

import pytest

from tests.tools.system_calls import Disk, trace

_PROMISES = re.compile(
    r"store/manifest/(?:views/.*|slides)\.parquet|store/recipe\.json|store/checksums\.sha256\.digest"
    r"|part|deep/er/merged|small|pulled"
)
"""A commit record promises chunks, the slides table patches, the recipe options, the digest the seal, a copy itself."""
_FREE = re.compile(r"/logs\b|^name of .*\.partial$")
"""Logs promise nothing, and the name of a draft is renamed away."""


@pytest.mark.slow
def test_what_a_record_promises_is_flushed_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    disk = Disk(folder)
    broken: list[str] = []
    kept: set[str] = set()

    def promise(path: str) -> None:
        name = path.removeprefix(f"{folder}/")
        if _PROMISES.fullmatch(name):
            kept.add(name)
            unsure = [text for text in disk.unsure if not _FREE.search(text)]
            broken.extend(f"{name} before the {text}" for text in unsure)

    for call in trace("tests.tools.traced_work", str(folder), folder=tmp_path):
        disk.feed(*call, promise)
    assert broken == []
    assert [text for text in disk.unsure if not _FREE.search(text)] == []
    assert {"part", "deep/er/merged", "small", "pulled", "store/checksums.sha256.digest"} <= kept
    assert sum(name.startswith("store/manifest/views/a/") for name in kept) >= 2
    assert disk.seen["rename"] > 100
