"""CSVs of tiles, and how a tile becomes a view."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.embed import tiles
from pipeline.encoders.torchvision_cpu import make_importable
from stores.errors import OptionError, ReadError


def table(folder: Path, text: str) -> Path:
    path = folder / "tiles.csv"
    path.write_text(text)
    return path


def image(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    rng = np.random.default_rng(width * 1000 + height)
    PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode).save(path)
    return path


def test_columns_are_renamed_and_others_carried_along(tmp_path: Path) -> None:
    image(tmp_path / "a.png", 8, 8)
    csv = table(tmp_path, "tile,density,stage\na.png,dense,II\nb.png,sparse,I\n")
    found = tiles.read_tiles(csv, ["path=tile", "label=density"], None)
    assert found.columns == {"path": ("a.png", "b.png"), "label": ("dense", "sparse"), "stage": ("II", "I")}
    assert found.files == (tmp_path / "a.png", tmp_path / "b.png")
    assert found.digest == tiles.read_tiles(csv, ["label=density", "path=tile"], None).digest
    assert found.digest != tiles.read_tiles(csv, ["path=tile", "site=density"], None).digest


def test_names_of_columns_that_people_write(tmp_path: Path) -> None:
    image(tmp_path / "a.png", 8, 8)
    found = tiles.read_tiles(table(tmp_path, "Path; Label;Stage\n a.png ;x ; I\n"), [], None)
    assert found.columns == {"path": ("a.png",), "label": ("x",), "Stage": ("I",)}
    found = tiles.read_tiles(table(tmp_path, "Path,Label,Stage\na.png,x,I\n"), ["label=stage"], None)
    assert found.columns == {"path": ("a.png",), "label_in_csv": ("x",), "label": ("I",)}


def test_a_column_that_has_the_name_already_is_kept_under_another(tmp_path: Path) -> None:
    image(tmp_path / "a.png", 8, 8)
    csv = table(tmp_path, "path,label,grade\na.png,old,new\n")
    found = tiles.read_tiles(csv, ["label=grade"], None)
    assert (found.columns["label"], found.columns["label_in_csv"]) == (("new",), ("old",))


@pytest.mark.parametrize(
    ("text", "renamed", "message"),
    [
        ("tile\na.png\n", [], "no column path; found tile: name it with --column path=NAME"),
        ("path\na.png\na.png\n", [], r"line 3: a.png is also in line 2"),
        ("path\n", [], "lists no tile"),
        ("path,label\na.png\n", [], "line 2: 1 cells, and the first line names 2 columns"),
        ("path,label\na.png,x,y\n", [], "line 2: 3 cells, and the first line names 2 columns"),
        ("path,x\n,1\n", [], "line 2: no path"),
        (
            "path\nz.png\n",
            [],
            "z.png does not exist, nor those after it: give the folder they are in as --root",
        ),
        ("path,status\na.png,1\n", [], "column 'status' is measured or written by g2l; rename it"),
        ("path,Tissue\na.png,1\n", [], "column 'Tissue' is measured or written by g2l; rename it"),
        ("path,labels\na.png,1\n", [], "column 'labels': is 'label' meant"),
        ("path,path\na.png,b.png\n", [], "two columns are called 'path'"),
        (
            "path\na.png\n",
            ["colour=path"],
            "--column colour=path: expected NAME=COLUMN with a NAME of path, label",
        ),
        ("path\na.png\n", ["label"], "--column label: expected NAME=COLUMN"),
        ("path\na.png\n", ["label=grade"], "has no column 'grade'; it has path"),
        ("path\n\xe9\n", [], "is not UTF-8 text"),
    ],
)
def test_a_csv_that_does_not_do(tmp_path: Path, text: str, renamed: list[str], message: str) -> None:
    image(tmp_path / "a.png", 8, 8)
    path = tmp_path / "tiles.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionError, match=message):
        tiles.read_tiles(path, renamed, None)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 70), size_px=st.sampled_from([16, 32]))
def test_the_shorter_side_becomes_the_size_and_the_centre_is_taken(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, size_px: int
) -> None:
    path = image(tmp_path_factory.getbasetemp() / f"{width}x{height}.png", width, height)
    view = tiles.read_tile(path, size_px, "resize")
    assert (view.shape, view.dtype) == ((size_px, size_px, 3), np.uint8)
    if min(width, height) == size_px:
        whole = np.asarray(PIL.Image.open(path))
        top, left = round((height - size_px) / 2), round((width - size_px) / 2)
        np.testing.assert_array_equal(view, whole[top : top + size_px, left : left + size_px])
    if width == height:
        resized = PIL.Image.open(path).resize((size_px, size_px), PIL.Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(view, np.asarray(resized))


@pytest.mark.parametrize(
    ("width", "height"),
    [(2048, 1536), (1536, 2048), (1024, 700), (299, 224), (224, 301), (700, 460), (768, 768), (96, 50)],
)
def test_the_view_is_what_evas_resize_and_crop_make(tmp_path: Path, width: int, height: int) -> None:
    """``ResizeAndCrop`` of kaiko-ai/eva: torchvision's Resize, whose longer side is cut off, and CenterCrop."""
    make_importable()
    from torchvision.transforms import v2

    smooth = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    PIL.Image.fromarray(smooth).resize((width, height), PIL.Image.Resampling.BICUBIC).save(
        tmp_path / "a.png", compress_level=1
    )
    pixels = torch.from_numpy(np.array(PIL.Image.open(tmp_path / "a.png"))).permute(2, 0, 1)
    expected = v2.Compose([v2.Resize(size=224), v2.CenterCrop(size=224)])(pixels).permute(1, 2, 0).numpy()
    view = tiles.read_tile(tmp_path / "a.png", 224, "resize").astype(int)
    assert np.abs(view - expected).max() <= 1  # Pillow and torch round in other places
    if (width, height) == (2048, 1536):
        before = tiles.read_tile(tmp_path / "a.png", 224, "resize", tiles.BEFORE).astype(int)
        assert np.abs(before - expected).max() > 50


def test_crop_takes_the_centre_as_it_is(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png", 40, 30)
    np.testing.assert_array_equal(
        tiles.read_tile(path, 16, "crop"), np.asarray(PIL.Image.open(path))[7:23, 12:28]
    )
    with pytest.raises(ReadError, match="40x30 px, smaller than the 32 px"):
        tiles.read_tile(path, 32, "crop")


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = 255, 0, 0, 255
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    view = tiles.read_tile(tmp_path / "a.png", 8, "crop")
    assert view[:, :4].min() == 255
    assert view[0, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_and_palettes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = image(tmp_path / "a.png", 8, 8, mode)
    np.testing.assert_array_equal(
        tiles.read_tile(path, 8, "crop"), np.asarray(PIL.Image.open(path).convert("RGB"))
    )


def test_tiles_that_cannot_be_read_say_why_without_folders(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    whole = image(tmp_path / "whole.png", 64, 64).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    PIL.Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    PIL.Image.new("1", (30_000, 2_000)).save(tmp_path / "huge.png")
    image(tmp_path / "thin.png", 1, 4000)
    red, *others = (PIL.Image.new("L", (8, 8), value) for value in (200, 100, 150))
    red.save(tmp_path / "colours.tif", save_all=True, append_images=others)
    PIL.Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    expected = {
        "absent.png": "no such file",
        "text.png": "not a readable image",
        "cut.png": "not a readable image",
        "deep.png": "mode I;16; 8-bit grey or RGB is expected",
        "colours.tif": "several pages; a tile is a file of one image",
        "clear.png": "wholly transparent",
        "huge.png": "30000x2000 px, at most 40000000 pixels are read",
        "thin.png": "224x896000 px when resized, at most 40000000 pixels are made",
    }
    for name, message in expected.items():
        with pytest.raises(ReadError, match=message) as caught:
            tiles.read_tile(tmp_path / name, 224, "resize")
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["a.gif", "a.ppm", "a.tga", "a.png"])
def test_only_formats_of_tiles_are_decoded(tmp_path: Path, name: str) -> None:
    """Whatever the file is called: Pillow knows dozens of formats, and a tile from elsewhere chooses its own."""
    kind = "TGA" if name == "a.png" else None
    PIL.Image.new("RGB", (32, 32)).save(tmp_path / name, kind)
    with pytest.raises(ReadError, match=r"not a readable image \(cannot identify"):
        tiles.read_tile(tmp_path / name, 32, "resize")
