"""The log of a run: JSON lines, nothing before the work begins, no part of a store."""

import json
from pathlib import Path

import pytest

from pipeline.runtime.log import RunLog
from pipeline.runtime.progress import Silent
from stores.errors import OptionError
from stores.format import layout
from stores.verify.seal import seal
from stores.verify.structure import verify_structure
from tests.tools.notes import Notes


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_told_and_how_far_it_came(tmp_path: Path) -> None:
    path, now, shown = tmp_path / "logs/x.jsonl", [1000.0], Notes()
    with RunLog(shown, path, lambda: now[0]) as log:
        log.note("early")
        assert not path.exists()
        log.start("work", 10, 2)
        log.advance(3, "a")
        now[0] += 20
        log.advance(1, "b")
        log.record("failed", item="block 3", trace="Traceback ...")
    told = lines(path)
    assert [line["event"] for line in told] == [
        "begin",
        "note",
        "start",
        "progress",
        "failed",
        "progress",
        "end",
    ]
    assert told[0]["time"] == "1970-01-01T00:16:40.000+00:00"
    assert told[3] | {"done": 6, "total": 10, "what": "work", "detail": "b"} == told[3]
    assert told[-1] | {"seconds": 20.0, "error": None} == told[-1]
    assert shown.said == ["early"]


def test_errors_are_in_the_log_and_runs_append(tmp_path: Path) -> None:
    for _ in range(2):
        log = RunLog(Silent(), tmp_path / "x.jsonl")
        log.start("work", 1)
        with pytest.raises(ZeroDivisionError), log:
            raise ZeroDivisionError("oh")
    assert [line["error"] for line in lines(tmp_path / "x.jsonl") if line["event"] == "end"] == [
        "ZeroDivisionError: oh"
    ] * 2


def test_a_mistake_in_the_options_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), RunLog(Silent(), tmp_path / "s/logs/x.jsonl"):
        raise ValueError("no")
    assert not (tmp_path / "s").exists()


def test_foreign_text_is_one_line_in_a_log(tmp_path: Path) -> None:
    with RunLog(Silent(), tmp_path / "x.jsonl") as log:
        log.start("work", 1)
        log.note("teacher a\n* * * * * root id\x1b[2J")
    assert [line["text"] for line in lines(tmp_path / "x.jsonl") if line["event"] == "note"] == [
        "teacher a * * * * * root id?[2J"
    ]


@pytest.mark.parametrize("name", ["logs", "logs/tile.jsonl"])
def test_links_among_the_logs_are_findings(copy: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).symlink_to(tmp_path / "elsewhere")
    (found,) = verify_structure(copy).findings
    assert (found.file, found.kind) == (name, "stray")
    assert "is a symbolic link" in str(found)
    with pytest.raises(OptionError, match=f"{name}: a symbolic link"):
        seal(copy)


def test_logs_are_no_part_of_a_store(copy: Path) -> None:
    before = layout.list_files(copy)
    (copy / "logs").mkdir()
    (copy / "logs/tile.jsonl").write_text("{}\n")
    assert layout.list_files(copy) == before
