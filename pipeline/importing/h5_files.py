"""The h5 files of TRIDENT and CLAM, which come from elsewhere: judged before values are read.

Both keep ``features`` (n, dim) and ``coords`` (n, 2), the top-left corners in level-0 pixels as OpenSlide counts them.
How a patch was cut stands in attributes of ``coords``: in the same file (TRIDENT), or in one of coordinates (CLAM).
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.slides.find import slide_id_of
from stores.errors import CorruptStore, OptionError, StoreError
from stores.io import hdf5
from stores.io.files import first_line
from stores.io.foreign import open_regular
from stores.io.parquet import MAX_ROWS

_FILE_BYTES = 1 << 36
_MOST_VALUES = 1 << 32
"""Of a slide's features: 8 GiB in float16."""
_READ_BYTES = 1 << 26
_FLOAT16_MAX = 65504.0
_MAGNIFICATION_MPP = 10.0
"""10x is 1 micrometre a pixel, by TRIDENT's reckoning."""
_SUFFIX = "_patches"
"""TRIDENT's ending of the names of its files of coordinates."""


@dataclass(frozen=True, slots=True)
class HowCut:
    """What the attributes of a file say of its patches."""

    by: str
    cut_px: int
    """Side of a patch in pixels at the target resolution, or of `level`."""
    patch_px0: int | None
    """Side at level 0; None where `level` says it."""
    level: int | None
    target_mpp: float | None
    """Nominal resolution of the pixels of `cut_px`."""


@dataclass(frozen=True, slots=True)
class SlideFeatures:
    """The content of the files of one slide."""

    coords: npt.NDArray[np.int64]
    """(n, 2): x and y."""
    features: npt.NDArray[np.float16]
    """(n, dim)"""


def find_h5(folder: Path) -> dict[str, Path]:
    """The h5 files of a folder by slide id, sorted; those of its ``h5_files`` where it has none (CLAM).

    Raises
    ------
    OptionError
        When there is none, or two of one slide.
    """
    if not folder.is_dir():
        raise OptionError(f"{folder}: no such folder; give the folder with the h5 files of features")
    for place in (folder, folder / "h5_files"):
        paths = sorted(p for p in place.glob("*.h5") if not p.name.startswith("."))
        if paths:
            break
    else:
        raise OptionError(
            f"{folder}: no file ends in .h5, nor in its folder h5_files; give the folder of the features"
        )
    found: dict[str, Path] = {}
    for path in paths:
        slide_id = slide_id_of(path)
        if slide_id in found:
            raise OptionError(
                f"{path}: {found[slide_id].name} is of the same slide id {slide_id}; keep one of them"
            )
        found[slide_id] = path
    return found


def describe(path: Path, coords: Path | None, layout: str) -> tuple[HowCut, int]:
    """How the patches of a file were cut, and the length of its features; no values are read.

    Parameters
    ----------
    coords
        Folder with files of coordinates, for what the file itself does not say.

    Raises
    ------
    CorruptStore
        When the file is not such a file, or is written in a way that it has no need to be.
    """
    with _opened(path) as file:
        _require_shapes(path, file)
        dim = int(_dataset(path, file, "features").shape[1])
        attributes = _attributes(path, _dataset(path, file, "coords"))
        ours = "g2l" in file.attrs
    if ours:
        raise CorruptStore(
            f"{path}: written by `g2l embed`, which cuts patches by a rule of its own; use `g2l extract-teacher`"
        )
    if not attributes:
        other = _coords_file(path, coords)
        with _opened(other) as file:
            attributes = _attributes(other, _dataset(other, file, "coords"))
        path = other
    return _how_cut(path, attributes, layout), dim


def read_slide(path: Path, coords: Path | None) -> SlideFeatures:
    """All coordinates and features of a slide.

    Raises
    ------
    CorruptStore
        When a feature is not a number or does not fit float16, a coordinate is no level-0 pixel or occurs twice, or
        the file of coordinates has others.
    """
    with _opened(path) as file:
        _require_shapes(path, file)
        own = _dataset(path, file, "coords")
        at, is_described = _coords(path, own), bool(_attributes(path, own))
        features = _features(path, _dataset(path, file, "features"))
    if not is_described:
        other = _coords_file(path, coords)
        with _opened(other) as file:
            same = np.array_equal(_coords(other, _dataset(other, file, "coords")), at)
        if not same:
            raise CorruptStore(
                f"{path}: its coordinates are not those of {other}; was one of them made anew?"
            )
    if len(np.unique(at, axis=0)) != len(at):
        raise CorruptStore(f"{path}: lists a patch twice, so it is not known which of its features is right")
    return SlideFeatures(at, features)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with open_regular(path, _FILE_BYTES) as raw, h5py.File(raw, "r") as file:
            yield file
    except StoreError:
        raise
    except FileNotFoundError:
        raise CorruptStore(f"{path}: no such file") from None
    except Exception as error:  # HDF5 raises many things on a damaged file
        raise CorruptStore(f"{path}: not a readable h5 file ({first_line(error)})") from None


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A plain array of numbers in this very file; no link, no plugin, no large chunk."""
    link = file.get(name, getlink=True)
    if link is None:
        raise CorruptStore(
            f"{path}: has no {name!r}; expected are 'features' and 'coords', as TRIDENT and CLAM write them"
        )
    if not isinstance(link, h5py.HardLink):
        raise CorruptStore(f"{path}: {name!r} is a link elsewhere, which is not followed")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise CorruptStore(f"{path}: {name!r} is not an array")
    if found.is_virtual or found.external is not None:
        raise CorruptStore(f"{path}: {name!r} lies in other files, which are not read")
    kinds = "f" if name == "features" else "iu"
    if found.dtype.kind not in kinds or found.dtype.itemsize > 8 or h5py.check_dtype(ref=found.dtype):
        raise CorruptStore(f"{path}: {name!r} holds {found.dtype!s:.40}, and should hold numbers")
    try:
        hdf5.require_plain(found)
    except ValueError as error:
        raise CorruptStore(f"{path}: {name!r} is {error}") from None
    return found


def _read(path: Path, found: h5py.Dataset, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows of a data set whose chunks have their size and no more."""
    try:
        hdf5.require_bounded(found, start, stop)
    except ValueError as error:
        raise CorruptStore(f"{path}: {found.name.strip('/')!r}: {error}; write the file anew") from None
    return np.asarray(found[start:stop])


def _require_shapes(path: Path, file: h5py.File) -> None:
    features, coords = _dataset(path, file, "features"), _dataset(path, file, "coords")
    shape = features.shape
    if len(shape) != 2 or coords.shape != (shape[0], 2):
        raise CorruptStore(
            f"{path}: features {shape} and coords {coords.shape}; expected (n, dim) and (n, 2)"
        )
    if not (1 <= shape[0] < MAX_ROWS and 1 <= shape[1] < 1 << 16 and math.prod(shape) <= _MOST_VALUES):
        raise CorruptStore(
            f"{path}: features {shape}; at most {MAX_ROWS:,} patches and {_MOST_VALUES:,} numbers"
        )


def _coords(path: Path, found: h5py.Dataset) -> npt.NDArray[np.int64]:
    if len(found.shape) != 2 or found.shape[1] != 2 or found.shape[0] >= MAX_ROWS:
        raise CorruptStore(f"{path}: coords {found.shape}; expected (n, 2)")
    at = _read(path, found, 0, found.shape[0])
    if at.size and (int(at.min()) < 0 or int(at.max()) >= 1 << 31):
        raise CorruptStore(f"{path}: coordinates from {at.min()} to {at.max()}; level-0 pixels begin at 0")
    return at.astype(np.int64)


def _features(path: Path, found: h5py.Dataset) -> npt.NDArray[np.float16]:
    n, dim = found.shape
    out = np.empty((n, dim), np.float16)
    step = max(1, _READ_BYTES // (dim * found.dtype.itemsize))
    for start in range(0, n, step):
        part = _read(path, found, start, min(n, start + step))
        wrong = ~(np.abs(part) <= _FLOAT16_MAX).all(axis=1)  # also where it is NaN
        if wrong.any():
            row = start + int(wrong.argmax())
            worst = part[wrong.argmax()][~(np.abs(part[wrong.argmax()]) <= _FLOAT16_MAX)][0]
            raise CorruptStore(f"{path}: feature {row} has the value {worst:g}; allowed are -65504 to 65504")
        out[start : start + step] = part
    return out


def _attributes(path: Path, found: h5py.Dataset) -> dict[str, float]:
    """The attributes that are one number."""
    numbers: dict[str, float] = {}
    for name in (
        "patch_size",
        "patch_size_level0",
        "level0_magnification",
        "target_magnification",
        "patch_level",
    ):
        if name not in found.attrs:
            continue
        about = h5py.h5a.open(found.id, name.encode())
        if math.prod(about.shape) != 1 or about.dtype.kind not in "iuf":
            raise CorruptStore(f"{path}: attribute {name!r} of coords is not one number")
        value = float(np.asarray(found.attrs[name]).reshape(()))
        if not 0 <= value < 1 << 20 or not (value > 0 or name == "patch_level"):
            raise CorruptStore(f"{path}: attribute {name!r} of coords is {value:g}")
        numbers[name] = value
    return numbers


def _coords_file(path: Path, folder: Path | None) -> Path:
    """The file of coordinates of a slide."""
    if folder is None:
        raise CorruptStore(
            f"{path}: does not say how its patches were cut (no attribute patch_size of coords); give the folder with "
            "the h5 files of coordinates as --coords"
        )
    for place in (folder, folder / "patches"):
        for name in (path.name, f"{path.stem}{_SUFFIX}.h5"):
            if (place / name).exists():
                return place / name
    raise CorruptStore(f"{path}: --coords {folder} has no {path.name} nor {path.stem}{_SUFFIX}.h5")


def _how_cut(path: Path, about: dict[str, Any], layout: str) -> HowCut:
    by = layout
    if by == "auto":
        by = "clam" if "patch_level" in about else "trident"
    if "patch_size" not in about:
        raise CorruptStore(f"{path}: coords has no attribute patch_size, the side of a patch")
    cut_px = round(about["patch_size"])
    if by == "clam":
        if "patch_level" not in about:
            raise CorruptStore(
                f"{path}: coords has no attribute patch_level, so it is not of CLAM; see --layout"
            )
        return HowCut(by, cut_px, None, round(about["patch_level"]), None)
    base, target = about.get("level0_magnification"), about.get("target_magnification")
    if base and target:  # as TRIDENT reads; its patch_size_level0 is rounded down
        side_px0, said = max(1, round(cut_px * base / target)), about.get("patch_size_level0")
        if said is not None and abs(said - side_px0) > 1:
            raise CorruptStore(
                f"{path}: patches of {cut_px} px at {target:g}x are {side_px0} px at {base:g}x, patch_size_level0 says "
                f"{said:g}: another tool than TRIDENT wrote it, and how it cut patches is not known"
            )
        return HowCut(by, cut_px, side_px0, None, _MAGNIFICATION_MPP / target)
    if "patch_size_level0" not in about:
        raise CorruptStore(
            f"{path}: coords has neither patch_size_level0 nor level0_magnification and target_magnification; "
            "see --layout"
        )
    return HowCut(by, cut_px, round(about["patch_size_level0"]), None, None)
