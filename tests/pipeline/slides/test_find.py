"""Which slide files the inputs hold, and under which ids."""

import os
from pathlib import Path

import pytest

from pipeline.slides.find import find_slides, search_slides, slide_id_of
from stores.errors import OptionError
from stores.format.layout import is_slide_id
from tests.tools.notes import Notes


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_finds_slides_recursively_but_not_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "x/b.SVS", "a.tif", ".cache/c.svs", "._a.tif", "notes.txt", "y/My slide (1).ndpi")
    assert list(find_slides([tmp_path])) == ["My_slide__1_", "a", "b"]


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no slide found; looked for .*\.svs"):
        find_slides([tmp_path])
    with pytest.raises(OptionError, match="no such file or folder"):
        find_slides([tmp_path / "absent"])
    touch(tmp_path, "a.vsi")
    with pytest.raises(
        OptionError, match=r"no slide found; .*found 1 file \(1 \.vsi\), which no reader knows"
    ):
        find_slides([tmp_path])


def test_formats_without_a_reader_are_named_in_one_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.vsi", "c.vsi", "d.isyntax", "e.txt")
    notes = Notes()
    assert list(find_slides([tmp_path], report=notes)) == ["a"]
    (line,) = notes.said
    assert line.startswith("3 files (1 .isyntax, 2 .vsi): not read, no reader knows them, such as ")


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "archive/b.svs", "in/a.svs", "in/deep/c.svs")
    (tmp_path / "in/linked").symlink_to(tmp_path / "archive")
    (tmp_path / "in/again").symlink_to("linked")
    (tmp_path / "in/deep/round").symlink_to(tmp_path / "in")
    (tmp_path / "archive/round").symlink_to(tmp_path)
    assert list(find_slides([tmp_path / "in"])) == ["a", "b", "c"]


def test_one_file_given_in_several_ways_is_one_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.svs")
    (tmp_path / "in/sub").mkdir()
    (tmp_path / "in/sub/a.svs").symlink_to(tmp_path / "in/a.svs")
    monkeypatch.chdir(tmp_path)
    assert list(find_slides([tmp_path / "in", Path("in/a.svs"), Path("in/../in/a.svs")])) == ["a"]


def test_a_link_that_leads_nowhere_is_not_forgotten(tmp_path: Path) -> None:
    (tmp_path / "a.svs").symlink_to(tmp_path / "gone.svs")
    os.mkfifo(tmp_path / "b.svs")
    assert list(find_slides([tmp_path])) == ["a"]


@pytest.mark.parametrize(
    "stem", ["切片一号", "x" * 240, "zarr.json", "\udcff\udcfe", "한글", "...", "é" * 130]
)
def test_every_name_gives_an_id(stem: str) -> None:
    slide_id = slide_id_of(Path(f"{stem}.svs"))
    assert is_slide_id(slide_id)
    assert slide_id_of(Path(f"{stem}+.svs")) != slide_id
    assert slide_id_of(Path(f"elsewhere/{stem}.tiff")) == slide_id


def test_ids_of_names_that_macos_spells_in_another_way() -> None:
    assert slide_id_of(Path("\u1112\u1161\u11ab.svs")) == slide_id_of(Path("\ud55c.svs")) == "slide-89233692"


def test_names_that_give_one_id_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "a b.svs", "a_b.svs", "x/a(b.svs")
    found = find_slides([tmp_path])
    assert {path.name: slide_id for slide_id, path in found.items()} == {
        "a_b.svs": "a_b",
        "a b.svs": "a_b-9afe3647",
        "a(b.svs": "a_b-a85e903d",
    }
    assert find_slides([tmp_path / "x", tmp_path / "a_b.svs", tmp_path / "a b.svs"]) == found


def test_a_slide_keeps_the_id_that_it_has_in_a_store(tmp_path: Path) -> None:
    touch(tmp_path, "切片1.svs", "标本1.svs")
    alone = find_slides([tmp_path / "切片1.svs"])
    assert list(alone) == ["1"]
    rows = [{"slide_id": "1", "file_name": "切片1.svs"}]
    both = find_slides([tmp_path], rows)
    assert both["1"].name == "切片1.svs"
    (other,) = set(both) - {"1"}
    rows.append({"slide_id": other, "file_name": "标本1.svs"})
    assert list(find_slides([tmp_path / "标本1.svs"], rows)) == [other]


def test_files_of_one_name_in_two_folders_are_neither_guessed_nor_forgotten(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.svs", "y/a.svs", "b.svs")
    found = search_slides([tmp_path])
    assert list(found.slides) == ["b"]
    assert found.doubled == {"a": (tmp_path / "x/a.svs", tmp_path / "y/a.svs")}
    notes = Notes()
    find_slides([tmp_path], report=notes)
    assert notes.said == [
        f"slide a: 2 files have this name, none is used: {tmp_path}/x/a.svs, {tmp_path}/y/a.svs"
    ]
