"""One picture is one slide, whatever its files are called, in whatever order and run they come."""

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime.progress import Silent
from pipeline.runtime.work import Done
from pipeline.tile.options import TileOptions
from pipeline.tile.slide_rows import SlideWork
from pipeline.tile.tile import tile, tile_on
from stores.format import layout, manifest
from tests.tools.notes import Notes


@pytest.fixture
def folder(slides: Path, tmp_path: Path) -> Path:
    """Slide ``a`` under three names, one of them a link, and ``b``."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("m", "z"):
        shutil.copy(slides / "a.tiff", folder / f"{name}.tiff")
    (folder / "k.tiff").symlink_to(slides / "a.tiff")
    shutil.copy(slides / "b.tiff", folder / "b.tiff")
    return folder


def usable(store: Path) -> list[str]:
    rows = manifest.read_slides(store)
    kept = [row["slide_id"] for row in rows if row["status"] == manifest.OK]
    listed = sorted(path.stem for path in (store / layout.PATCHES).iterdir())
    assert listed == kept
    for row in rows:
        if row["slide_id"] not in kept:
            assert row["status"] == "failed"
            assert row["n_patches"] == 0
            assert row["reason"].startswith("the same picture as slide ")
    return kept


class InOrder:
    """A cluster whose pieces of work end in a given order."""

    def __init__(self, order: Sequence[str]) -> None:
        self.order = order

    def run(
        self, work: Callable[..., Any], items: Sequence[SlideWork], report: Silent
    ) -> Iterator[Done[Any, Any]]:
        for item in sorted(items, key=lambda item: self.order.index(item.slide_id)):
            yield Done(item, work(item, lambda n: None))


@pytest.mark.parametrize("order", ["bkmz", "zmkb", "mbzk"])
def test_copies_and_links_are_one_slide(folder: Path, tmp_path: Path, order: str) -> None:
    workers: Any = InOrder(order)
    result = tile_on(workers, [folder], tmp_path / "store", TileOptions(), Silent())
    assert usable(tmp_path / "store") == ["b", "k"]
    assert [row["slide_id"] for row in result.unusable] == ["m", "z"]
    assert result.unusable[0]["reason"].startswith("the same picture as slide k (equal fingerprints)")


def test_a_slide_that_the_table_names_is_kept(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "s.csv"
    table.write_text("slide_id,patient_id\nz,p1\n")
    tile([folder], tmp_path / "store", TileOptions(slides_csv=table), Silent())
    assert usable(tmp_path / "store") == ["b", "z"]


def test_a_slide_that_is_there_stays(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tile([folder / "z.tiff"], store, TileOptions(), Silent())
    for names in itertools.permutations(["k", "m"]):
        for name in names:
            tile([folder / f"{name}.tiff"], store, TileOptions(), Silent())
            assert usable(store) == ["z"]
    tile([folder], store, TileOptions(), Silent())
    assert usable(store) == ["b", "z"]


def test_copies_that_an_older_version_took_are_named(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tile([folder / "m.tiff"], store, TileOptions(val=0), Silent())
    tile([folder / "z.tiff"], tmp_path / "other", TileOptions(val=0), Silent())
    manifest.write_slides(store, manifest.read_slides(store) + manifest.read_slides(tmp_path / "other"))
    shutil.copy(manifest.patches_path(tmp_path / "other", "z"), manifest.patches_path(store, "z"))
    notes = Notes()
    tile([folder], store, TileOptions(val=0), notes)
    assert usable(store) == ["b", "m", "z"]
    assert notes.said == [
        "slide z: is the same picture as slide m (equal fingerprints), both in split train; leave one out with "
        "`g2l store subset`"
    ]


def test_files_of_one_name_are_a_row_with_a_reason(folder: Path, tmp_path: Path) -> None:
    (folder / "deep").mkdir()
    shutil.copy(folder / "b.tiff", folder / "deep" / "m.tiff")
    table = tmp_path / "s.csv"
    table.write_text("slide_id,patient_id\nm,p1\n")
    notes = Notes()
    result = tile([folder], tmp_path / "store", TileOptions(slides_csv=table), notes)
    rows = {row["slide_id"]: row for row in result.slides}
    assert rows["m"]["reason"] == "2 files have this name, in different folders; rename them"
    assert rows["m"]["patient_id"] == "p1"
    assert rows["k"]["status"] == rows["b"]["status"] == manifest.OK
    assert any(note.startswith("slide m: 2 files have this name, none is used: ") for note in notes.said)


def test_names_of_any_kind_work(slides: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, slide in (("切片一号", "a"), ("x" * 240, "b"), ("c\udcff", "c")):
        shutil.copy(slides / f"{slide}.tiff", folder / f"{name}.tiff")
    table = tmp_path / "s.csv"
    table.write_text("slide_id,site\n切片一号.tiff,x\n", encoding="utf-8")
    result = tile([folder], tmp_path / "store", TileOptions(slides_csv=table), Silent())
    assert [(row["file_name"], row["status"], row.get("site")) for row in result.slides] == [
        ("c\\udcff.tiff", "failed", None),
        ("切片一号.tiff", "ok", "x"),
        ("x" * 240 + ".tiff", "ok", None),
    ]
    assert "its name is not UTF-8 text" in result.slides[0]["reason"]
