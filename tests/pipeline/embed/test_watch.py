"""Slides that arrive in a folder are embedded when they are whole."""

import importlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.embed.watch import watch
from stores.errors import OptionError
from tests.tools.commands import g2l
from tests.tools.notes import Notes


class Said:
    def __init__(self, text: str) -> None:
        self.text = text

    def lines(self) -> list[str]:
        return [self.text]


class Pauses:
    """Runs a step in each pause; Ctrl-C after the last."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)

    def __call__(self, seconds: float) -> None:
        if not self.steps:
            raise KeyboardInterrupt
        self.steps.pop(0)()


def nothing() -> None: ...


def watched(folder: Path, *steps: Callable[[], object]) -> tuple[list[list[str]], Notes]:
    """The names that each call of `embed` got, and what was said."""
    calls: list[list[str]] = []
    notes = Notes()

    def embed(paths: Sequence[Path]) -> Said:
        calls.append([path.name for path in paths])
        return Said(f"call {len(calls)}")

    found = watch([folder], embed, notes, Pauses(*steps))
    assert found.text == f"call {len(calls)}"
    return calls, notes


def test_a_slide_is_taken_when_two_looks_find_it_alike(tmp_path: Path) -> None:
    a, b = tmp_path / "a.tiff", tmp_path / "b.tiff"
    a.write_bytes(b"one")

    def grow() -> None:
        with b.open("ab") as file:
            file.write(b"more")

    def touch() -> None:
        os.utime(b, ns=(1, 1))  # a copy that had its size from the beginning

    calls, notes = watched(tmp_path, nothing, grow, grow, touch, nothing, nothing, nothing)
    assert calls == [["a.tiff"], ["a.tiff", "b.tiff"]]
    assert any("waiting for 1 slide to arrive" in text and "b.tiff" in text for text in notes.said)


def test_a_slide_that_is_replaced_is_done_again(tmp_path: Path) -> None:
    a = tmp_path / "a.tiff"
    a.write_bytes(b"one")
    calls, _ = watched(tmp_path, nothing, nothing, lambda: a.write_bytes(b"two!"), nothing, nothing)
    assert calls == [["a.tiff"], ["a.tiff"]]


def test_a_folder_may_be_empty_at_first_and_slides_may_leave(tmp_path: Path) -> None:
    a = tmp_path / "a.tiff"
    calls, notes = watched(tmp_path, nothing, lambda: a.write_bytes(b"one"), nothing, a.unlink, nothing)
    assert calls == [["a.tiff"]]
    assert sum("no slide found" in text for text in notes.said) == 2  # not at every look


def test_files_beside_a_slide_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "m.mrxs").write_bytes(b"index")
    data = tmp_path / "m/Data0.dat"
    data.parent.mkdir()
    data.write_bytes(b"one")
    calls, _ = watched(tmp_path, lambda: data.write_bytes(b"three"), nothing, nothing)
    assert calls == [["m.mrxs"]]
    steps = iter([1])

    def embed(paths: Sequence[Path]) -> Said:
        next(steps)
        return Said("")

    watch([tmp_path], embed, Notes(), Pauses(nothing))


def test_an_interruption_at_work_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_bytes(b"one")

    def interrupted(paths: Sequence[Path]) -> Said:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch([tmp_path], interrupted, Notes(), Pauses(nothing, nothing))
    with pytest.raises(KeyboardInterrupt):  # nothing was done yet
        watch([tmp_path], interrupted, Notes(), Pauses())
    with pytest.raises(OptionError, match="gone: no such file or folder"):
        watch([tmp_path / "gone"], interrupted, Notes(), Pauses())


@pytest.mark.slow
def test_the_command_embeds_what_arrives_until_ctrl_c(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    shutil.copy(slides / "a.tiff", inbox)
    pauses = Pauses(nothing, lambda: shutil.copy(slides / "b.tiff", inbox), nothing, nothing)
    monkeypatch.setattr(importlib.import_module("pipeline.embed.watch"), "pause", pauses)
    options = ("--encoder", "tests.tools.tiny:teacher", "--random-weights", "0", "--max-patches", "3")
    result = g2l("embed", inbox, *options, "--out", out, "--watch")
    assert result.exit_code == 0, result.output
    assert "2 published" in result.stdout
    assert sorted(path.name for path in (out / "embeddings").iterdir()) == ["a.parquet", "b.parquet"]
    result = g2l("embed", tmp_path / "t.csv", *options, "--out", out, "--watch")
    assert (result.exit_code, "--watch: is for" in result.output) == (2, True)
