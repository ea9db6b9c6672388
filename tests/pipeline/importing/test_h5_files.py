"""h5 files from elsewhere: what is no plain array of numbers, or too large, is refused in one line, unread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.importing.h5_files import describe, find_h5, read_slide
from stores.errors import CorruptStore, OptionError
from tests.tools import trident
from tests.tools.bombs import write_bomb

CORNERS = trident.grid(512, 512, 256)
RAW2FEATURES = {
    "patch_size": 448,
    "patch_size_level0": 448,
    "level0_magnification": 40,
    "target_magnification": 20,
}
VALUES = np.ones((4, 6), np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    trident.write_trident(tmp_path / "s1.h5", CORNERS, VALUES)
    return tmp_path / "s1.h5"


def _replace(name: str, **how: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        about = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, **how).attrs.update(about)

    return change


def _link(name: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def _virtual(file: h5py.File) -> None:
    del file["features"]
    whole = h5py.VirtualLayout((4, 6), np.float32)
    whole[:] = h5py.VirtualSource("/etc/hostname", "features", (4, 6))
    file.create_virtual_dataset("features", whole)


def _attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file["coords"].attrs.__setitem__(name, value)


def _without(*names: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for name in names:
            del file["coords"].attrs[name]

    return change


def _value(name: str, at: Any, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(at, value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_link("features", h5py.ExternalLink("/etc/passwd", "features")), "'features' is a link elsewhere"),
        (_link("coords", h5py.SoftLink("/features")), "'coords' is a link elsewhere"),
        (_virtual, "'features' lies in other files"),
        (
            _replace("features", shape=(4, 6), dtype="f4", external=[("/etc/passwd", 0, 96)]),
            "lies in other files",
        ),
        (
            lambda file: file.__delitem__("features"),
            "has no 'features'; expected are 'features' and 'coords'",
        ),
        (
            _replace("features", data=[[b"gASVAAA"] * 6] * 4),
            "'features' holds object, and should hold numbers",
        ),
        (_replace("features", shape=(4, 6), dtype=h5py.string_dtype()), "'features' holds object"),
        (_replace("features", shape=(4, 6), dtype=h5py.ref_dtype), "'features' holds object"),
        (_replace("features", shape=(4, 6), dtype="i4"), "'features' holds int32"),
        (_replace("coords", shape=(4, 2), dtype="f8"), "'coords' holds float64"),
        (
            _replace("features", shape=(4, 2, 3), dtype="f4"),
            r"features (4, 2, 3) and coords (4, 2); expected",
        ),
        (_replace("features", shape=(3, 6), dtype="f4"), r"features (3, 6) and coords (4, 2)"),
        (_replace("features", shape=(4, 1 << 20), dtype="f2", chunks=(1, 1024)), "at most"),
        (_value("features", (2, 3), np.nan), "feature 2 has the value nan; allowed are -65504 to 65504"),
        (_value("features", (1, 0), np.inf), "feature 1 has the value inf"),
        (_value("features", (3, 5), 70000), "feature 3 has the value 70000"),
        (_value("coords", (0, 0), -1), "coordinates from -1 to 256; level-0 pixels begin at 0"),
        (_value("coords", (0, 0), 1 << 40), "level-0 pixels begin at 0"),
        (_value("coords", 0, (256, 256)), "lists a patch twice"),
        (_attribute("patch_size", np.ones(5)), "attribute 'patch_size' of coords is not one number"),
        (_attribute("patch_size", "256"), "attribute 'patch_size' of coords is not one number"),
        (_attribute("patch_size", -3), "attribute 'patch_size' of coords is -3"),
        (_attribute("patch_size", np.nan), "attribute 'patch_size' of coords is nan"),
        # raw2features writes the side at level 0 as patch_size too
        (
            lambda file: file["coords"].attrs.update(RAW2FEATURES),
            "patch_size_level0 says 448: another tool than TRIDENT",
        ),
        (_without("patch_size"), "no attribute patch_size, the side of a patch"),
        (
            _without("target_magnification", "patch_size_level0"),
            "neither patch_size_level0 nor level0_magnification",
        ),
        (lambda file: file.attrs.__setitem__("g2l", "{}"), "written by `g2l embed`"),
    ],
)
def test_what_is_refused(path: Path, change: Callable[[h5py.File], None], match: str) -> None:
    with h5py.File(path, "a") as file:
        change(file)
    said = _refusal(path)
    assert match in said
    assert str(path) in said


def _refusal(path: Path) -> str:
    """Why a file is refused, one line; empty when it is not."""
    try:
        describe(path, None, "auto")
        read_slide(path, None)
    except CorruptStore as error:
        said = str(error)
    else:
        return ""
    assert "\n" not in said
    return said


def test_compressed_files_and_unknown_filters(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for how in ({"compression": "gzip", "shuffle": True}, {"compression": "lzf", "fletcher32": True}):
        with h5py.File(path, "a") as file:
            _replace("features", data=VALUES, **how)(file)
        assert _refusal(path) == ""
    monkeypatch.setattr("stores.io.hdf5._ORDERS", ((3,),))
    assert "'features' is compressed by HDF5 filter 32000 in (32000, 3); write it with gzip" in _refusal(path)


@pytest.mark.parametrize("name", ["features", "coords"])
def test_a_chunk_that_unpacks_to_more_than_it_has(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        write_bomb(file, name, file[name][:])
    assert f"'{name}': the chunk at (0, 0)" in _refusal(path)


def test_a_huge_shape_takes_no_memory(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for name, shape in (("features", (1 << 29, 1536)), ("coords", (1 << 29, 2))):
            about = dict(file[name].attrs)
            del file[name]
            kind = "f4" if name == "features" else "i8"
            file.create_dataset(name, shape, kind, chunks=(64, shape[1])).attrs.update(about)
    assert path.stat().st_size < 1 << 20
    for look in (lambda: describe(path, None, "auto"), lambda: read_slide(path, None)):
        with pytest.raises(CorruptStore, match="at most"):
            look()


@pytest.mark.parametrize("raw", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_what_is_no_h5_file(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with pytest.raises(CorruptStore, match="not a readable h5 file"):
        describe(path, None, "auto")


def test_damaged_in_the_middle(path: Path) -> None:
    raw = path.read_bytes()
    for at in range(0, len(raw), 97):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x41]) + raw[at + 1 :])
        _refusal(path)


def test_how_it_was_cut(path: Path) -> None:
    how, dim = describe(path, None, "auto")
    assert (how.by, how.cut_px, how.patch_px0, how.level, how.target_mpp, dim) == (
        "trident",
        256,
        256,
        None,
        0.5,
        6,
    )
    # 40x to 15x: TRIDENT's own attribute is rounded down, its reading is not
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update(
            {"level0_magnification": 40, "target_magnification": 15, "patch_size_level0": 682}
        )
    assert describe(path, None, "auto")[0].patch_px0 == 683
    with h5py.File(path, "a") as file:
        file["coords"].attrs["patch_level"] = 1
    assert describe(path, None, "auto")[0].by == "clam"
    assert describe(path, None, "trident")[0].by == "trident"


def test_what_a_folder_holds(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such folder"):
        find_h5(tmp_path / "absent")
    with pytest.raises(OptionError, match=r"no file ends in \.h5"):
        find_h5(tmp_path)
    for name in ("b", "a", ".hidden"):
        trident.write_trident(tmp_path / f"{name}.h5", CORNERS, VALUES)
    assert list(find_h5(tmp_path)) == ["a", "b"]
    (tmp_path / "c.h5").symlink_to(tmp_path / "a.h5")
    (tmp_path / "d.h5").mkdir()
    with pytest.raises(CorruptStore, match="is a folder"):
        describe(find_h5(tmp_path)["d"], None, "auto")
