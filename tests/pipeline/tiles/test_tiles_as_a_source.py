"""Tiles in the place of slides: tiled, extracted, verified, distilled, merged, exported; known by their content."""

import os
import pickle
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

import stores
from pipeline.data.split import open_split
from pipeline.distill.options import DistillOptions
from pipeline.distill.prototypes.fit import fit
from pipeline.distill.prototypes.options import PrototypeOptions
from pipeline.distill.train import distill
from pipeline.extract.extract import extract
from pipeline.extract.options import ExtractOptions, PlanOptions
from pipeline.extract.plan import plan
from pipeline.extract.tasks import plan_tasks
from pipeline.inference.task import Tally
from pipeline.report.gather import gather
from pipeline.report.options import ReportOptions
from pipeline.runtime.options import ClusterOptions
from pipeline.runtime.progress import Silent
from pipeline.slides.pool import PatchPool
from pipeline.tile import groups
from pipeline.tile.options import TileOptions
from pipeline.tile.tile import tile
from pipeline.tiles import hdf5
from pipeline.tiles.image import TileReader
from pipeline.tiles.places import find_places
from pipeline.tiles.source import GroupSource
from pipeline.verify.options import VerifyOptions
from pipeline.verify.verify import verify
from pipeline.views import draw
from pipeline.views.policy import POLICIES, Policy, sized
from stores.combine.merge import merge
from stores.combine.subset import Selection, subset
from stores.errors import EncoderError, OptionError, ReadError, RecipeMismatch, SlideError, StoreError
from stores.export.export import ExportOptions, export
from stores.export.pseudonyms import Pseudonyms
from stores.format import manifest, pixels, recipe
from stores.format.tiles import fingerprint_of_group, fingerprint_of_tile
from stores.io.text import utf8
from tests.tools.bombs import write_bomb
from tests.tools.child_work import reads
from tests.tools.extract import contents
from tests.tools.tiles import tile_pixels, write_hdf5, write_table, write_tiles

OPTIONS = TileOptions(patch=64, val=0.3, tiles=True)
TEACHER = ExtractOptions(teacher="tests.tools.tiny:teacher_of_64_px", random_weights=0, seeds=3, threads=2)
NUMBERS = range(40)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 tiles of 64 px in two folders."""
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, NUMBERS)
    return folder


@pytest.fixture(scope="session")
def made(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of the tiles. Read only."""
    store = tmp_path_factory.mktemp("made") / "store"
    extract([tree], store, TEACHER, OPTIONS, Silent())
    return store


def facts(store: Path) -> dict[str, Any]:
    """Rows and patches, but for the names of files."""
    found: dict[str, Any] = {}
    for row in manifest.read_slides(store):
        patches = manifest.read_patches(store, row["slide_id"])
        assert patches.tile is not None
        found[row["slide_id"]] = row, patches.tile.tolist(), patches.coords.tolist()
    return found


def test_a_tree_becomes_two_groups_whose_rows_are_in_order_of_content(made: Path) -> None:
    rows = {row["slide_id"]: row for row in manifest.read_slides(made)}
    assert sorted(rows) == ["tiles-train", "tiles-val"]
    assert sum(row["n_patches"] for row in rows.values()) == 40
    expected = {fingerprint_of_tile(tile_pixels(number)): number for number in NUMBERS}
    for slide_id, row in rows.items():
        patches = manifest.read_patches(made, slide_id)
        assert patches.tile is not None
        of_group = patches.tile.tolist()
        assert of_group == sorted(of_group)
        assert row["fingerprint"] == fingerprint_of_group(of_group)
        assert (row["vendor"], row["mpp"], row["patch_px0"]) == ("tiles", 0.5, 64)
        table = manifest.read_further(made, slide_id, ("tile", "file", "label"))
        for text, name, label in zip(*(table[n].to_pylist() for n in table.column_names), strict=True):
            assert name == f"class{expected[text] % 2}/t{expected[text]}.png"
            assert label == f"class{expected[text] % 2}"
    about = recipe.load(made).patch
    assert (about.grid, about.min_tissue, dict(about.tissue)) == (
        "tiles",
        0.0,
        {"kind": "none", "version": 1},
    )


def test_draws_are_keyed_by_the_tile(made: Path) -> None:
    policy = replace(POLICIES["g2l"], patch_px=64, crop_px=64)
    patches = manifest.read_patches(made, "tiles-train")
    assert patches.tile is not None
    (commit,) = manifest.commits(made, "tiles-train")
    for record in commit.read().to_pylist()[::7]:
        params = draw.draw(policy, patches.tile[record["row"]], 0, 0, record["seed"])
        assert {name: getattr(params, name) for name in manifest.DRAWN_SCHEMA.names}.items() <= record.items()


def test_neither_order_nor_names_nor_the_container_matter(made: Path, tmp_path: Path) -> None:
    """TIFF files under other names in another order, and HDF5: the same features, to the byte."""
    names = write_tiles(tmp_path / "other", [*NUMBERS][::-1], ".tiff")
    rows = [{"image": name, "label": name.split("/")[0]} for name in names]
    table = write_table(tmp_path / "other" / "tiles.csv", rows)
    stacked = write_hdf5(tmp_path / "all_x.h5", [*NUMBERS][::-1])
    for place, inputs, options in (
        ("csv", table, replace(OPTIONS, tiles=False, column=("path=image",))),
        ("h5", stacked, replace(OPTIONS, tiles=False)),
    ):
        extract([inputs], tmp_path / place, TEACHER, options, Silent())
        mine, theirs = contents(tmp_path / place), contents(made)
        differ = {name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)}
        assert differ <= {f"manifest/patches/tiles-{split}.parquet" for split in ("train", "val")}
        assert facts(tmp_path / place) == facts(made)
        assert (
            verify(tmp_path / place, VerifyOptions(slides=(inputs,), sample="all"), Silent()).findings == []
        )
    label = manifest.read_further(tmp_path / "h5", "tiles-val", ("label",))[0].to_pylist()
    assert set(label) == {"0", "1"}


def test_verify_distil_and_report(made: Path, tree: Path, tmp_path: Path) -> None:
    found = verify(
        made, VerifyOptions(slides=(tree,), sample="all", teacher=TEACHER.teacher, random_weights=0), Silent()
    )
    assert found.findings == []
    assert found.views_checked == found.features_checked == 120
    options = DistillOptions(
        student="tests.tools.tiny:student_of_64_px",
        random_weights=0,
        slides=(tree,),
        steps=3,
        batch_size=4,
        threads=2,
        check_views="all",
    )
    assert distill(made, tmp_path / "run", options, False, Silent())["steps"] == 3
    shown = gather(made, None, ReportOptions(slides=(tree,)), Silent())
    assert [slide.n_patches for slide in shown.slides] == [
        row["n_patches"] for row in manifest.read_slides(made)
    ]
    assert len({*zip(shown.slides[0].x_px0, shown.slides[0].y_px0, strict=True)}) == shown.slides[0].n_patches
    names = manifest.read_further(made, shown.slides[0].slide_id, ("file",))[0].to_pylist()
    assert shown.slides[0].captions == [f"{name} at 0, 0" for name in names]


def test_pixels_of_the_store_are_enough(tree: Path, tmp_path: Path) -> None:
    extract([tree], tmp_path / "s", replace(TEACHER, pixels=True), OPTIONS, Silent())
    assert pixels.has_pixels(tmp_path / "s", "tiles-train")
    assert verify(tmp_path / "s", VerifyOptions(views=True, sample="all"), Silent()).findings == []
    about = recipe.load_complete(tmp_path / "s")
    open_split(tmp_path / "s", about, "train", None).check(2)


def test_another_image_of_the_same_name_is_noticed(made: Path, tree: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tree, tmp_path / "other"))
    names = manifest.read_further(made, "tiles-train", ("file",))[0].to_pylist()
    PIL.Image.fromarray(tile_pixels(999)).save(other / names[1])
    found = verify(made, VerifyOptions(slides=(other,), sample="all"), Silent()).findings
    assert any("has other pixels than the tile" in str(finding) for finding in found)
    for name in names:
        PIL.Image.fromarray(tile_pixels(999)).save(other / name)
    with pytest.raises(SlideError, match=r"tiles-train: .*other pixels than the tile of this name"):
        open_split(made, recipe.load_complete(made), "train", None, [other])
    with pytest.raises(SlideError, match="give the folder that the names of the tiles begin in"):
        open_split(made, recipe.load_complete(made), "train", None, [tmp_path])


class Noting(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.said.append(f"{what} {total}")


@pytest.mark.parametrize("where", ["folder", "table", "h5", "exchanged"])
def test_tiles_under_other_names_are_found_by_content(
    made: Path, tree: Path, where: str, tmp_path: Path
) -> None:
    numbers = [*NUMBERS][::-1]
    if where == "h5":
        given = write_hdf5(tmp_path / "all_x.h5", numbers)
    elif where == "exchanged":  # every name is there, and leads to the image of another
        given = tmp_path / "other"
        for number in NUMBERS:
            (given / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(tile_pixels((number + 2) % 40)).save(
                given / f"class{number % 2}/t{number}.png"
            )
    else:
        for number in numbers:
            PIL.Image.fromarray(tile_pixels(number)).save(tmp_path / f"n{number}.bmp")
        given = tmp_path
    if where == "table":
        given = write_table(tmp_path / "t.csv", [{"image": f"n{n}.bmp", "age": n} for n in numbers])
    heard = Noting()
    found = verify(made, VerifyOptions(slides=(given,), sample="all"), heard)
    assert found.findings == []
    assert found.views_checked == 120
    assert "40 tiles are not where their names say: looking at 40 files by content" in heard.said
    assert "find tiles 40" in heard.said
    open_split(made, recipe.load_complete(made), "train", None, [given]).check(2)


def test_files_are_closed_after_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps a reader, in a traceback for example, keeps no file open."""
    given, store = write_hdf5(tmp_path / "a.h5", range(3)), tmp_path / "s"
    tile([given], store, replace(OPTIONS, val=0.0), Silent())
    (row,) = manifest.read_slides(store)
    stored, kept = recipe.load(store), []

    class Kept(TileReader):
        def __init__(self) -> None:
            super().__init__()
            kept.append(self)

    monkeypatch.setattr(sys.modules["pipeline.tiles.source"], "TileReader", Kept)
    place = find_places(store, stored.patch, [row], [given])["tiles-train"]
    place.source(row, stored)
    write_hdf5(given, range(3, 6))
    with pytest.raises(SlideError, match="has other pixels"):
        place.source(row, stored)
    assert len(kept) == 2
    names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [name for name in names if name.startswith(str(tmp_path))]


def test_a_file_of_rows_that_is_not_there_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "none.h5").write_bytes(b"no")
    names = ["gone.h5#0", "none.h5#0"]
    table = write_table(tmp_path / "t.csv", [{"path": name} for name in names])
    summary = tile([table], tmp_path / "s", OPTIONS, Silent())
    assert summary.refused[0] == "gone.h5#0: no such file"
    assert summary.refused[1].startswith("none.h5#0: none.h5: not a readable HDF5 file (")
    assert not any(str(tmp_path) in text for text in summary.refused)


def test_distill_looks_for_the_tiles_of_both_splits_at_once(made: Path, tmp_path: Path) -> None:
    for number in NUMBERS:
        PIL.Image.fromarray(tile_pixels(number)).save(tmp_path / f"n{number}.bmp")
    options = DistillOptions(
        student="tests.tools.tiny:student_of_64_px",
        random_weights=0,
        slides=(tmp_path,),
        steps=1,
        batch_size=4,
        threads=2,
        check_views="all",
    )
    with pytest.raises(EncoderError, match="no function"):  # the pass is in the log, and no run has begun
        distill(made, tmp_path / "run", replace(options, student="tests.tools.tiny:none"), False, Silent())
    heard = Noting()
    assert distill(made, tmp_path / "run", options, False, heard)["steps"] == 1
    assert heard.said.count("find tiles 40") == 1
    assert sum("find tiles" in text for text in heard.said) == 1


def test_tiles_that_are_gone_are_not_looked_for_among_those_that_are_there(
    made: Path, tree: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tree, tmp_path / "other"))
    (other / manifest.read_further(made, "tiles-train", ("file",))[0][1].as_py()).unlink()
    heard = Noting()
    found = verify(made, VerifyOptions(slides=(other,), sample="all"), heard)
    assert any("no such file" in str(finding) for finding in found.findings)
    assert not any("find tiles" in text for text in heard.said)


def test_one_other_image_does_not_make_the_names_of_the_others_doubtful(
    made: Path, tree: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tree, tmp_path / "other"))
    first = manifest.read_further(made, "tiles-train", ("file",))[0][0].as_py()
    PIL.Image.fromarray(tile_pixels(999)).save(other / first)
    heard = Noting()
    found = verify(made, VerifyOptions(slides=(other,), sample="all"), heard)
    assert any("has other pixels than the tile" in str(finding) for finding in found.findings)
    assert not any("find tiles" in text for text in heard.said)


def test_a_table_with_absolute_paths_works_in_later_commands(made: Path, tree: Path, tmp_path: Path) -> None:
    rows = [{"image": tree / f"class{n % 2}/t{n}.png", "label": f"class{n % 2}"} for n in NUMBERS]
    table = write_table(tmp_path / "t.csv", rows)
    options = replace(OPTIONS, tiles=False, column=("path=image",))
    store = tmp_path / "s"
    tile([table], store, replace(options, root=tree), Silent())
    heard = Noting()
    extract([table], store, TEACHER, options, heard)
    assert contents(store) == contents(made)
    assert verify(store, VerifyOptions(slides=(table,), sample="all"), heard).findings == []
    open_split(store, recipe.load_complete(store), "train", None, [table]).check(2)
    assert not any("by content" in text for text in heard.said)


def test_processes_read_tiles_of_a_store_behind_a_url(made: Path, tree: Path) -> None:
    """A connection cannot be shared with them, and of the store they need the manifest alone."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{made}/", "/shelf/tiles/", recursive=True)
    with stores.open("memory://shelf/tiles") as opened, PatchPool(1, processes=True) as pool:
        split = open_split(opened.files, opened.complete, "train", None, [tree])
        assert split.readers_are_processes("auto", True)
        found = pool.submit(split.sources["tiles-train"], reads, 3, 0, 0).result()
    memory.rm("/shelf", recursive=True)
    tile = manifest.read_patches(made, "tiles-train").tile
    assert tile is not None
    assert fingerprint_of_tile(found) == tile[3]


def test_images_that_cannot_be_used_have_a_reason_each(tmp_path: Path) -> None:
    write_tiles(tmp_path / "t", range(6), labels=1)
    (tmp_path / "t/class0/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    PIL.Image.fromarray(tile_pixels(7, 20, 64)).save(tmp_path / "t/class0/small.png")
    PIL.Image.fromarray(tile_pixels(8)).convert("RGBA").point(lambda v: 0).save(
        tmp_path / "t/class0/clear.png"
    )
    PIL.Image.new("I;16", (64, 64)).save(tmp_path / "t/class0/deep.png")
    summary = tile([tmp_path / "t"], tmp_path / "s", OPTIONS, Silent())
    assert summary.n_patches == 6
    assert summary.some_failed
    said = " ".join(summary.refused)
    assert len(summary.refused) == 4
    for part in (
        "broken.png: not a readable image",
        "small.png: 64x20 px, smaller than a patch",
        "transparent",
        "mode I;16",
    ):
        assert part in said
    assert any("could not be used" in row["reason"] for row in summary.slides)
    padded = tile([tmp_path / "t"], tmp_path / "p", replace(OPTIONS, pad="reflect"), Silent())
    assert padded.n_patches == 7
    assert recipe.load(tmp_path / "p").patch.tissue["pad"] == "reflect"
    with pytest.raises(RecipeMismatch, match=r"recipe\.patch\.tissue\.pad"):
        tile([tmp_path / "t"], tmp_path / "p", OPTIONS, Silent())


def test_a_list_that_was_tiled_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_tiles(tmp_path / "t", range(6))
    shutil.copy(tmp_path / "t" / names[0], tmp_path / "t" / "class0" / "again.png")
    (tmp_path / "t/class0/broken.png").write_bytes(b"no image")
    options, store = replace(OPTIONS, val=0.0), tmp_path / "s"
    tile([tmp_path / "t"], store, options, Silent())
    looked: list[object] = []

    def look(*a: Any) -> groups.Grouped:
        looked.append(a)
        return groups.group_tiles(*a)

    monkeypatch.setattr(sys.modules["pipeline.tile.tile_list"], "group_tiles", look)
    heard = Noting()
    first = extract([tmp_path / "t"], store, TEACHER, options, heard)
    assert first.views == 18
    assert looked == []
    assert any("2 tiles of the list are not in the store" in text for text in heard.said)
    (tmp_path / "t/class0/another.png").write_bytes(b"no image")
    second = extract([tmp_path / "t"], store, TEACHER, options, Silent())
    assert len(looked) == 1
    for found, names in ((first, ["broken"]), (second, ["another", "broken"])):
        said = [f"class0/{name}.png: not a readable image" for name in names]
        assert [text[: len(start)] for text, start in zip(found.refused, said, strict=True)] == said
        assert found.some_failed
        assert found.to_json()["refused_tiles"] == found.refused
        assert sum("tile not used: " in line for line in found.lines()) == len(names)
    for name in ("another", "broken"):
        (tmp_path / f"t/class0/{name}.png").unlink()
    assert not extract([tmp_path / "t"], store, TEACHER, options, Silent()).some_failed
    assert verify(store, VerifyOptions(), Silent()).findings == []


def with_a_name(made: Path, store: Path, name: str) -> str:
    """A copy of a store in which the first tile of the validation has another name; returns its true one."""
    shutil.copytree(made, store)
    patches = manifest.read_patches(store, "tiles-val")
    table = manifest.read_further(store, "tiles-val", patches.further)
    further = {column: table[column].to_pylist() for column in patches.further}
    true, further["file"][0] = further["file"][0], name
    manifest.write_patches(store, "tiles-val", patches.x_px0, patches.y_px0, patches.tissue, further)
    return str(true)


def test_a_name_that_leads_out_of_the_folder_is_not_followed(made: Path, tree: Path, tmp_path: Path) -> None:
    store, folder = tmp_path / "s", Path(shutil.copytree(tree, tmp_path / "t"))
    true = with_a_name(made, store, "../outside.png")
    shutil.copy(folder / true, tmp_path / "outside.png")
    open_split(store, recipe.load_complete(store), "val", None, [folder]).check(2)  # found by content
    (folder / true).unlink()
    with pytest.raises(SlideError, match=r": \.\./outside\.png: not the name of a file below a folder"):
        open_split(store, recipe.load_complete(store), "val", None, [folder])


def test_a_patch_beyond_its_tile_is_not_read(made: Path, tree: Path) -> None:
    (row,) = (row for row in manifest.read_slides(made) if row["slide_id"] == "tiles-val")
    stored = recipe.load(made)
    reader = find_places(made, stored.patch, [row], [tree])["tiles-val"].source(row, stored).open()
    assert reader.read(0, 0, 0).shape == (64, 64, 3)
    with pytest.raises(ReadError, match="has no patch of 64 px at 64,0"):
        reader.read(0, 64, 0)
    reader.close()


def test_a_name_with_a_row_that_no_file_has(made: Path, tree: Path, tmp_path: Path) -> None:
    """Python reads numbers of 4,300 digits at most; a store from elsewhere may have longer ones."""
    store = tmp_path / "s"
    with_a_name(made, store, f"a.h5#{'9' * 5000}")
    moved = verify(store, VerifyOptions(slides=(tree,), sample="all"), Silent())
    assert moved.findings == []
    write_hdf5(tmp_path / "a.h5", range(3))
    with pytest.raises(SlideError, match="give the folder that the names"):
        open_split(store, recipe.load_complete(store), "val", None, [tmp_path / "a.h5"])


def test_larger_tiles_are_cut_and_smaller_ones_padded(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    PIL.Image.fromarray(tile_pixels(1, 130, 200)).save(tmp_path / "t/large.png")
    PIL.Image.fromarray(tile_pixels(2, 40, 64)).save(tmp_path / "t/small.png")
    options = replace(OPTIONS, pad="white", val=0.0)
    extract([tmp_path / "t"], tmp_path / "s", replace(TEACHER, pixels=True), options, Silent())
    patches = manifest.read_patches(tmp_path / "s", "tiles-train")
    assert patches.tile is not None
    kept = pixels.open_pixels(tmp_path / "s", "tiles-train").read_chunk(0)
    large = patches.tile == fingerprint_of_tile(tile_pixels(1, 130, 200))
    assert sorted(map(tuple, patches.coords[large][:, ::-1].tolist())) == [
        (y, x) for y in (0, 64) for x in (0, 64, 128)
    ]
    for row in np.flatnonzero(large).tolist():
        x, y = patches.coords[row].tolist()
        np.testing.assert_array_equal(kept[row], tile_pixels(1, 130, 200)[y : y + 64, x : x + 64])
    (row,) = np.flatnonzero(~large).tolist()
    np.testing.assert_array_equal(kept[row][12:52], tile_pixels(2, 40, 64))
    assert (kept[row][:12] == 255).all()
    assert (kept[row][52:] == 255).all()


def test_the_first_tiles_by_content_are_taken(made: Path, tree: Path, tmp_path: Path) -> None:
    tile([tree], tmp_path / "s", replace(OPTIONS, max_patches=3), Silent())
    for slide_id in ("tiles-train", "tiles-val"):
        few, every = (manifest.read_patches(store, slide_id).tile for store in (tmp_path / "s", made))
        assert few is not None
        assert every is not None
        assert few.tolist() == every[:3].tolist()


def test_a_sample_of_large_tiles_is_spread_over_tiles_and_places(tmp_path: Path) -> None:
    """The first patches by content and row would be the upper edge of a few tiles."""
    (tmp_path / "t").mkdir()
    for i in range(20):
        PIL.Image.fromarray(tile_pixels(i, 256, 256)).save(tmp_path / f"t/{i}.png")

    def of(count: int) -> set[tuple[str, int, int]]:
        store = tmp_path / f"s{count}"
        tile([tmp_path / "t"], store, replace(OPTIONS, max_patches=count, val=0.0), Silent())
        patches = manifest.read_patches(store, "tiles-train")
        assert patches.tile is not None
        places = [(name, int(x), int(y)) for name, (x, y) in zip(patches.tile, patches.coords, strict=True)]
        assert len(places) == count
        assert places == sorted(places, key=lambda place: (place[0], place[2], place[1]))
        return set(places)

    few, more = of(10), of(50)
    assert few < more
    assert len({name for name, _, _ in few}) == 10
    assert set(Counter(name for name, _, _ in more).values()) == {2, 3}
    assert {x for _, x, _ in more} == {y for _, _, y in more} == {0, 64, 128, 192}


def test_a_group_that_failed_is_tried_again_and_one_that_is_done_keeps_its_split(tmp_path: Path) -> None:
    names = write_tiles(tmp_path, range(4))
    rows = [{"path": n, "group": g, "split": "train"} for n, g in zip(names, "aaab", strict=True)]
    table, store, options = (
        write_table(tmp_path / "t.csv", rows),
        tmp_path / "s",
        replace(OPTIONS, tiles=False),
    )
    whole = (tmp_path / names[3]).read_bytes()
    (tmp_path / names[3]).write_bytes(b"no image")
    assert [row["status"] for row in tile([table], store, options, Silent()).slides] == ["ok", "failed"]
    (tmp_path / names[3]).write_bytes(whole)
    assert extract([table], store, TEACHER, options, Silent()).views == 12
    assert [row["status"] for row in manifest.read_slides(store)] == ["ok", "ok"]
    write_table(table, [{**row, "split": "val"} for row in rows])
    with pytest.raises(OptionError, match="slide a: tiled with split 'train', now 'val'"):
        tile([table], store, options, Silent())


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    names = write_tiles(tmp_path, range(6))
    shutil.copy(tmp_path / names[0], tmp_path / "again.png")
    rows: list[dict[str, object]] = [
        {"path": name, "group": "b" if i > 2 else "a"} for i, name in enumerate(names)
    ]
    rows += [{"path": "again.png", "group": "b"}]
    table = write_table(tmp_path / "tiles.csv", rows)
    options = replace(OPTIONS, tiles=False, val=0.0)
    summary = tile([table], tmp_path / "s", options, Silent())
    assert {row["slide_id"]: row["n_patches"] for row in summary.slides} == {"a": 3, "b": 3}
    again = tile([table], tmp_path / "s", options, Silent())
    assert again.slides == summary.slides
    more = write_table(
        tmp_path / "more.csv", [{"path": names[4], "group": "0"}, {"path": "again.png", "group": "0"}]
    )
    later = {row["slide_id"]: row for row in tile([more], tmp_path / "s", options, Silent()).slides}
    assert (later["0"]["status"], later["0"]["reason"]) == ("failed", "all of its tiles are in other groups")
    names += write_tiles(tmp_path, [7])
    new = write_table(tmp_path / "new.csv", [{"path": name, "group": "a"} for name in names])
    with pytest.raises(OptionError, match="group a: tiled with 3 patches"):
        tile([new], tmp_path / "s", options, Silent())


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"path": "a.png", "split": "training"}], "split 'training': allowed: train, val, test"),
        ([{"path": "a.png", "tissue": "1"}], "column 'tissue' is measured or written by g2l"),
        ([{"path": "../a.png"}], "expected the path of a file below"),
        ([{"path": "/elsewhere/a.png"}], "give the folder that all tiles are in as --root"),
        ([{"path": "a.png", "Patient ID": "1"}], "is 'patient_id' meant"),
        ([{"image": "a.png"}], "no column path; found image"),
        ([{"path": "a.png"}, {"path": "a.png"}], "listed twice"),
        (
            [
                {"path": "a.png", "patient_id": "p", "split": "val"},
                {"path": "b.png", "patient_id": "p", "split": "train"},
            ],
            "patient p: a.png is in split val, b.png in train",
        ),
        (
            [
                {"path": "a.png", "group": "g", "split": "val"},
                {"path": "b.png", "group": "g", "split": "train"},
            ],
            "group g: split 'val' and, of b.png, 'train'",
        ),
    ],
)
def test_a_table_that_says_two_things_is_refused(
    rows: list[dict[str, object]], match: str, tmp_path: Path
) -> None:
    for number, name in enumerate("ab"):
        PIL.Image.fromarray(tile_pixels(number)).save(tmp_path / f"{name}.png")
    table = write_table(tmp_path / "tiles.csv", rows)
    with pytest.raises(OptionError, match=match):
        tile([table], tmp_path / "s", replace(OPTIONS, tiles=False), Silent())
    assert manifest.read_slides(tmp_path / "s") == []


def test_options_of_slides_are_refused_for_tiles_and_the_other_way_round(
    tree: Path, slides: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="--min-tissue: is for slides, and the inputs are tiles"):
        tile([tree], tmp_path / "s", replace(OPTIONS, min_tissue=0.1), Silent())
    with pytest.raises(OptionError, match="--pad: is for tiles, and the inputs are slides"):
        tile([slides], tmp_path / "s", TileOptions(pad="white"), Silent())
    with pytest.raises(OptionError, match="give tiles and slides to different stores"):
        tile([slides, slides / "slides.csv"], tmp_path / "s", TileOptions(), Silent())


def test_groups_without_an_id_of_their_own_get_one(tmp_path: Path) -> None:
    names = write_tiles(tmp_path, range(3))
    groups = ["\u5927\u80a0", "a b", "a_b"]
    table = write_table(
        tmp_path / "t.csv", [{"path": n, "group": g} for n, g in zip(names, groups, strict=True)]
    )
    found = tile([table], tmp_path / "s", replace(OPTIONS, tiles=False), Silent()).slides
    assert len({row["slide_id"] for row in found}) == 3
    assert {utf8(row["patient_id"]) for row in found} == set(groups)


def test_two_thousand_tiles_are_two_blocks(tmp_path: Path) -> None:
    stacked = tmp_path / "many_train_x.h5"
    write_hdf5(stacked, range(4))
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(stacked, "w") as file:
        file["x"] = rng.integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    stacked.with_name("many_train_y.h5").unlink()
    summary = tile([stacked], tmp_path / "s", TileOptions(patch=32), Silent())
    assert [(row["slide_id"], row["n_patches"]) for row in summary.slides] == [("tiles-train", 2000)]
    planned = plan(tmp_path / "s", PlanOptions(seeds=2, dim=24), TileOptions(patch=32), Silent())
    assert planned.files == 2 + 7 + 2 * (2 * 2 + 1)


def test_a_block_of_moved_tiles_takes_the_names_of_its_own_tiles(tmp_path: Path) -> None:
    """Each reader reads both blocks, so it must not keep the names of the first for the second."""
    import h5py

    rng, given = np.random.default_rng(0), tmp_path / "a_x.h5"
    with h5py.File(given, "w") as file:
        file["x"] = rng.integers(0, 256, (1100, 32, 32, 3), dtype=np.uint8)
    store = tmp_path / "s"
    tile([given], store, TileOptions(patch=32, val=0.0), Silent())
    moved = given.rename(tmp_path / "b_x.h5")
    (row,) = manifest.read_slides(store)
    stored, found = recipe.load(store), manifest.read_patches(store, "tiles-train").tile
    assert found is not None
    places = find_places(store, stored.patch, [row], [moved])
    options = replace(TEACHER, seeds=1)
    tasks = plan_tasks(store, stored, places, options, Tally())
    sources = [task.source for task in tasks]
    assert all(isinstance(source, GroupSource) for source in sources)
    assert [len(source.moved) for source in sources if isinstance(source, GroupSource)] == [576, 524]
    with PatchPool(1) as pool:
        for task in tasks:
            for at in (task.rows.start, task.rows.stop - 1):
                assert fingerprint_of_tile(pool.submit(task.source, reads, at, 0, 0).result()) == found[at]
    few = sources[1]
    assert isinstance(few, GroupSource)
    assert few.for_part("a", found) is few
    moved.rename(given)
    tasks = plan_tasks(store, stored, find_places(store, stored.patch, [row], [given]), options, Tally())
    assert tasks[0].source is tasks[1].source  # nothing is moved: one reader for all blocks
    assert len(pickle.dumps(tasks[0])) < 2000


def test_plan_counts_what_tile_finds(tree: Path, made: Path) -> None:
    found = plan([tree], PlanOptions(dim=24), OPTIONS, Silent())
    assert {slide.slide_id: slide.patches for slide in found.slides} == {
        row["slide_id"]: row["n_patches"] for row in manifest.read_slides(made)
    }
    assert not found.some_failed


def test_plan_names_what_tile_would_refuse(tmp_path: Path) -> None:
    write_tiles(tmp_path, range(6))
    (tmp_path / "class0/broken.png").write_bytes(b"no image")
    found = plan([tmp_path], PlanOptions(dim=24), OPTIONS, Silent())
    assert found.some_failed
    assert not found.unusable
    assert found.refused[0].startswith("class0/broken.png: not a readable image")
    assert found.to_json()["refused_tiles"] == found.refused
    assert "tile not used: 'class0/broken.png" in "\n".join(found.lines())


@pytest.mark.cluster
def test_the_same_bytes_with_two_workers(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_CHUNK", 4)
    where = ClusterOptions(workers=2)
    tile([tree], tmp_path / "one", OPTIONS, Silent())
    tile([tree], tmp_path / "two", OPTIONS, Silent(), where)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    one, two = ((tmp_path / name / "pictures/tiles-train.png").read_bytes() for name in ("one", "two"))
    assert one == two


def test_prototypes_of_a_store_of_tiles(made: Path, tmp_path: Path) -> None:
    options = PrototypeOptions(k=4, epochs=2, window=16, threads=2)
    fitted = fit(made, tmp_path / "p", options, Silent())
    assert fitted.out == tmp_path / "p"
    assert (fitted.out / "prototypes.json").is_file()


def test_merge_subset_and_export(made: Path, tree: Path, tmp_path: Path) -> None:
    parts = []
    for split in ("train", "val"):
        subset(made, tmp_path / split, Selection(splits=(split,)))
        parts.append(tmp_path / split)
    merge(parts, tmp_path / "merged")
    without = ("manifest/slides.parquet",)
    assert {n: d for n, d in contents(tmp_path / "merged").items() if n not in without} == {
        n: d for n, d in contents(made).items() if n not in without
    }
    export(made, tmp_path / "out", ExportOptions(pseudonyms=Pseudonyms(b"k" * 32)))
    (row, _) = manifest.read_slides(tmp_path / "out")
    patches = manifest.read_patches(tmp_path / "out", row["slide_id"])
    assert patches.further == ("tile",)
    assert patches.tile is not None
    assert all(text.startswith("keyed-") for text in patches.tile)
    assert verify(tmp_path / "out", VerifyOptions(), Silent()).findings == []
    with pytest.raises(OptionError, match="under a pseudonym"):
        open_split(tmp_path / "out", recipe.load_complete(tmp_path / "out"), "train", None, [tree])


def test_two_stores_that_say_other_things_of_one_tile_are_not_merged(made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made, tmp_path / "other"))
    patches = manifest.read_patches(made, "tiles-val")
    table = manifest.read_further(made, "tiles-val", patches.further)
    further = {name: table[name].to_pylist() for name in patches.further}
    further["label"][0] = "another"
    manifest.write_patches(other, "tiles-val", patches.x_px0, patches.y_px0, patches.tissue, further)
    with pytest.raises(StoreError, match="label of patch 0 is "):
        merge([made, other], tmp_path / "merged")


def test_a_tile_in_two_splits_of_two_stores_is_not_merged(tmp_path: Path) -> None:
    names = write_tiles(tmp_path, range(3))
    for group, split in (("a", "train"), ("b", "val")):
        rows = [{"path": name, "group": group, "split": split} for name in names[group == "a" :]]
        table = write_table(tmp_path / f"{group}.csv", rows)
        tile([table], tmp_path / group, replace(OPTIONS, tiles=False), Silent())
    with pytest.raises(StoreError, match=r"groups a \(train\) and b \(val\) have a tile in common"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both", allow_duplicates=True)


def test_a_tile_in_two_splits_of_one_store_is_found_and_refused(made: Path, tmp_path: Path) -> None:
    """No command writes such a store: the row of the validation is put under the tiles of the training."""
    store = Path(shutil.copytree(made, tmp_path / "s"))
    mine, theirs = (manifest.read_patches(store, f"tiles-{split}").tile for split in ("train", "val"))
    assert mine is not None
    assert theirs is not None
    changed = sorted([mine[0], *theirs[1:].tolist()])
    patches = manifest.read_patches(store, "tiles-val")
    further = {"tile": changed, "file": [f"{i}.png" for i in range(len(changed))]}
    manifest.write_patches(store, "tiles-val", patches.x_px0, patches.y_px0, patches.tissue, further)
    rows = manifest.read_slides(store)
    rows[1]["fingerprint"] = fingerprint_of_group(changed)
    manifest.write_slides(store, rows)
    said = f"tile {mine[0]} is in split val here and in train in group tiles-train: a training would see"
    found = [str(finding) for finding in verify(store, VerifyOptions(), Silent()).findings]
    assert any(said in text for text in found)
    for split in ("train", "val"):
        with pytest.raises(StoreError, match=said):
            open_split(store, recipe.load_complete(store), split, None)


@pytest.mark.parametrize("damage", ["no tile", "no file", "order", "other tiles", "not a tile", "grid"])
def test_verify_reads_the_columns_of_tiles(made: Path, damage: str, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made, tmp_path / "s"))
    patches = manifest.read_patches(store, "tiles-val")
    table: pa.Table = manifest.read_further(store, "tiles-val", patches.further)
    further = {name: table[name].to_pylist() for name in patches.further}
    if damage.startswith("no "):
        further.pop(damage.removeprefix("no "))
    elif damage == "grid":
        patches = replace(patches, x_px0=np.r_[np.int32(7), patches.x_px0[1:]])
    elif damage == "order":
        further["tile"][:2] = further["tile"][1::-1]
    else:
        further["tile"][0] = f"rgb8-1:{0:032x}" if damage == "other tiles" else "x"
    manifest.write_patches(store, "tiles-val", patches.x_px0, patches.y_px0, patches.tissue, further)
    found = [str(finding) for finding in verify(store, VerifyOptions(), Silent()).findings]
    expected = {
        "no tile": "has no column tile",
        "no file": "has no column file",
        "order": "not in order of tile",
        "other tiles": "is not that of these tiles",
        "not a tile": "is no fingerprint of a tile",
        "grid": "x_px0 7 is not on the grid of 64 pixels",
    }
    assert any(expected[damage] in text for text in found)


def test_hdf5_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    write_hdf5(tmp_path / "true_x.h5", range(3))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink("true_x.h5", "x")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        whole = h5py.VirtualLayout((3, 64, 64, 3), np.uint8)
        whole[:] = h5py.VirtualSource("true_x.h5", "x", (3, 64, 64, 3))
        file.create_virtual_dataset("x", whole)
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("x", (3, 8, 8, 3), np.uint8, external=[("true_x.h5", 0, 576)])
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("x", shape=(1 << 30, 96, 96, 3), dtype=np.uint8, chunks=(1, 96, 96, 3))
    with h5py.File(tmp_path / "float.h5", "w") as file:
        file["x"] = np.zeros((2, 8, 8, 3), np.float32)
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("x")
    with h5py.File(tmp_path / "gzip.h5", "w") as file:
        write_bomb(file, "x", np.zeros((2, 96, 96, 3), np.uint8))
    (tmp_path / "none.h5").write_bytes(b"no")
    for name, match in (
        ("link", "no dataset x of its own"),
        ("huge", "hardly any of them in the file"),
        ("float", r"x is float32 \(2, 8, 8, 3\); uint8"),
        ("group", "no dataset in this file"),
        ("virtual", "no dataset in this file"),
        ("external", "no dataset in this file"),
        ("none", "not a readable HDF5 file"),
    ):
        with pytest.raises(OptionError, match=match):
            tile([tmp_path / f"{name}.h5"], tmp_path / "s", OPTIONS, Silent())
    refused = tile([tmp_path / "gzip.h5"], tmp_path / "t", OPTIONS, Silent()).refused
    assert len(refused) == 2
    assert "row 0 is damaged (the chunk at (0, 0, 0, 0) does not unpack to 55296 bytes)" in refused[0]
    with pytest.raises(ReadError, match="row 3; the file has 3"):
        TileReader().read(tmp_path, "true_x.h5#3")
    with h5py.File(tmp_path / "true_y.h5", "w") as file:
        write_bomb(file, "y", np.zeros(3, np.uint8))
    with pytest.raises(
        OptionError, match=r"true_y\.h5: the chunk at \(0,\) has .* and 3 when it is unpacked"
    ):
        tile([tmp_path / "true_x.h5"], tmp_path / "u", OPTIONS, Silent())
    monkeypatch.setattr(hdf5, "MAX_TILE_PX", 64 * 64 - 1)
    with pytest.raises(OptionError, match="tiles of 64x64 px; at most 4095 pixels are read"):
        tile([tmp_path / "true_x.h5"], tmp_path / "u", OPTIONS, Silent())


def test_a_tile_whose_name_is_no_text_has_a_reason_and_the_others_go_on(tmp_path: Path) -> None:
    """In a folder tree, and given as a file; a CSV is UTF-8, and cannot name one."""
    folder, store = tmp_path / os.fsdecode(b"t\xe9"), tmp_path / "s"
    names = write_tiles(folder, range(6))
    odd = [os.fsdecode(name) for name in (b"class0/caf\xe9.png", b"kl\xe4sse/a.png")]
    (folder / odd[1]).parent.mkdir()
    for name in odd:
        shutil.copy(folder / names[0], folder / name)  # what it shows stands in the store under another name
    said = [f"{utf8(name)}: its name is not UTF-8 text; rename it" for name in odd]
    summary = tile([folder], store, OPTIONS, Silent())
    assert (summary.n_patches, summary.refused, summary.some_failed) == (6, said, True)
    assert plan([folder], PlanOptions(dim=24), OPTIONS, Silent()).refused == said
    found = extract([folder], store, TEACHER, OPTIONS, Silent())
    assert (found.views, found.refused) == (18, said)
    assert verify(store, VerifyOptions(slides=(folder,), sample="all"), Silent()).findings == []
    alone = tile([folder / odd[0]], tmp_path / "alone", OPTIONS, Silent())
    (row,) = alone.slides
    assert (row["status"], alone.refused) == ("failed", [said[0].removeprefix("class0/")])
    assert row["reason"] == f"1 of 1 tiles could not be used, such as {alone.refused[0]}"


def test_an_hdf5_file_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    stacked = tmp_path / os.fsdecode(b"caf\xe9.h5")
    write_hdf5(tmp_path / "a.h5", range(2)).rename(stacked)
    with pytest.raises(OptionError, match=r"caf\\udce9\.h5: its name is not UTF-8 text; rename the file"):
        tile([stacked], tmp_path / "s", OPTIONS, Silent())
    assert not (tmp_path / "s" / "manifest").exists()


def test_built_in_policies_take_the_sizes_of_patch_and_teacher() -> None:
    g2l = POLICIES["g2l"]
    assert sized(g2l, 256, 224) == g2l
    assert (sized(g2l, 96, 224).patch_px, sized(g2l, 96, 224).crop_px) == (96, 96)
    assert sized(g2l, 512, 392).crop_px == 392
    own = Policy("mine", hflip_p=0.5)
    assert sized(own, 96, 96) is own
