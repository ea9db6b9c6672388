"""OME-Zarr (NGFF 0.4 on Zarr 2, 0.5 on Zarr 3): a folder ``*.zarr`` whose multiscale image is RGB of 8 bits.

A chunk that was not written stands for the fill value, as the format says. It counts as never scanned, so that no patch
lies on such chunks alone. Source: ngff.openmicroscopy.org, versions 0.4 and 0.5.
"""

import functools
import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.slides.contract import Pixels, RegionPatches
from pipeline.slides.pyramid import MAX_LEVELS, Facts, PyramidFile, micrometres
from pipeline.slides.slide import ReadPlan
from pipeline.slides.zarr_array import Array, open_array, read_json
from stores.errors import CorruptStore, SlideError
from stores.io.files import first_line
from stores.io.foreign import open_regular

_SUFFIX = ".zarr"
_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){0,3}")
_MAX_FILES, _MAX_FILE_BYTES, _PIECE_BYTES = 1 << 23, 1 << 40, 1 << 20
_RGB = ("FF0000", "00FF00", "0000FF")


@dataclass(frozen=True, slots=True)
class ZarrReader:
    """The `SlideReader` of OME-Zarr."""

    @property
    def suffixes(self) -> frozenset[str]:
        return frozenset()

    @property
    def folder_suffixes(self) -> frozenset[str]:
        return frozenset((_SUFFIX,))

    def takes(self, path: Path) -> bool:
        """A folder with this ending and the metadata of a multiscale image: other Zarr folders are no slides."""
        try:
            return path.suffix.lower() == _SUFFIX and path.is_dir() and _image(path) is not None
        except (OSError, ValueError, CorruptStore):
            return False

    def open(self, path: Path) -> PyramidFile:
        return _open(path)

    def patches(self, path: Path, plan: ReadPlan) -> RegionPatches:
        return RegionPatches(_open(path), plan)


def _image(root: Path) -> tuple[str, dict[str, Any]] | None:
    """The group of the image below a folder and its attributes: the folder itself, or its first series.

    bioformats2raw writes the series of a file as groups 0, 1, ...; those behind the first are label and overview.
    """
    for group in ("", "0"):
        found = read_json(root, *group.split(), "zarr.json")
        attributes = (found or {}).get("attributes") or read_json(root, *group.split(), ".zattrs") or {}
        attributes = attributes.get("ome", attributes) if isinstance(attributes, dict) else {}
        if isinstance(attributes, dict) and "multiscales" in attributes:
            return group, attributes
        if not isinstance(attributes, dict) or "bioformats2raw.layout" not in attributes:
            return None
    return None


def _open(path: Path) -> PyramidFile:
    try:
        found = _image(path)
        if found is None:
            raise SlideError(
                f"{path.name}: no multiscales in its .zattrs or zarr.json; name the folder of an image"
            )
        return _open_image(path, *found)
    except SlideError:
        raise
    except (OSError, CorruptStore, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        words = first_line(error).replace(f"{path}/", "")
        raise SlideError(f"{path.name}: does not open ({type(error).__name__}: {words})") from None


def _open_image(path: Path, group: str, attributes: dict[str, Any]) -> PyramidFile:
    scales = attributes["multiscales"][0]
    names = [axis["name"] for axis in scales["axes"]]
    datasets = scales["datasets"]
    if not 1 <= len(datasets) <= MAX_LEVELS:
        raise SlideError(f"{path.name}: {len(datasets)} levels; 1 to {MAX_LEVELS} are read")
    arrays = []
    for dataset in datasets:
        if not _PATH.fullmatch(str(dataset["path"])):
            raise SlideError(f"{path.name}: a level in {dataset['path']!r:.80}, which is no folder below it")
        arrays.append(open_array(path, "/".join(filter(None, (group, dataset["path"])))))
    levels = [_ArrayLevel(array, names) for array in arrays]
    for level in levels:
        level.require_rgb(path.name)
    colours = [
        str(channel.get("color", "")).upper() for channel in attributes.get("omero", {}).get("channels", [])
    ]
    if colours and tuple(colours) != _RGB:
        raise SlideError(
            f"{path.name}: three channels of the colours {', '.join(colours[:3])}, so no RGB; 8-bit RGB is read"
        )
    own, known = [], {}
    for axis in "xy":
        number = names.index(axis)
        size, unit = _size(number, datasets[0], scales), scales["axes"][number].get("unit")
        own.append(micrometres(size, unit))
        known[f"scale of {axis}"] = f"{size:g} {unit or 'without a unit'}"
    x, y = own
    fingerprint = functools.partial(_fingerprint, path, tuple(array.folder for array in arrays))
    fill = (arrays[0].fill,) * 3
    return PyramidFile(
        path, levels, Facts("ome-zarr", fingerprint, None if x is None or y is None else (x, y), known, fill)
    )


def _size(axis: int, dataset: dict[str, Any], scales: dict[str, Any]) -> float:
    """The size of a pixel of the first level along an axis: its own scale times that of the whole image."""
    size = 1.0
    for holder in (dataset, scales):
        for step in holder.get("coordinateTransformations", ()):
            if step["type"] == "scale":
                size *= float(step["scale"][axis])
    return size


class _ArrayLevel:
    """The `Level` of an array with axes ``c``, ``y`` and ``x``, and perhaps ``t`` and ``z`` of length 1."""

    def __init__(self, array: Array, axes: list[str]) -> None:
        self._array, self._axes = array, axes

    def require_rgb(self, name: str) -> None:
        """SlideError unless there is one plane of three colours."""
        shape = dict(zip(self._axes, self._array.shape, strict=True))
        others = {axis: n for axis, n in shape.items() if axis not in "cyx"}
        if set(shape) - set("tczyx") or not {"c", "y", "x"} <= set(shape) or len(shape) != len(self._axes):
            raise SlideError(
                f"{name}: axes {', '.join(map(str, self._axes))[:80]}; t, c, z, y and x are read"
            )
        if shape["c"] != 3 or any(n != 1 for n in others.values()):
            said = ", ".join(f"{axis} {n}" for axis, n in shape.items())
            raise SlideError(f"{name}: {said}; 8-bit RGB is read: 3 channels, one plane, one time")

    def _of(self, values: tuple[int, ...]) -> tuple[int, int]:
        return values[self._axes.index("x")], values[self._axes.index("y")]

    @property
    def size_px(self) -> tuple[int, int]:
        return self._of(self._array.shape)

    @property
    def tile_px(self) -> tuple[int, int]:
        return self._of(self._array.chunks)

    def tile(self, column: int, row: int) -> Pixels | None:
        width, height = self.tile_px
        out = np.full((height, width, 3), self._array.fill, np.uint8)
        place = {"x": column, "y": row, "t": 0, "z": 0}
        step, written = self._array.chunks[self._axes.index("c")], False
        for number in range(math.ceil(3 / step)):
            chunk = self._array.chunk(tuple((place | {"c": number})[axis] for axis in self._axes))
            if chunk is None:
                continue
            written = True
            plane = chunk[tuple(0 if axis in "tz" else slice(None) for axis in self._axes)]
            left = [axis for axis in self._axes if axis in "cyx"]
            colours = plane.transpose([left.index(axis) for axis in "yxc"])
            span = slice(number * step, min(3, (number + 1) * step))
            out[..., span] = colours[..., : span.stop - span.start]
        return out if written else None


def _fingerprint(root: Path, folders: tuple[Path, ...]) -> str:
    """SHA-256 over names, sizes and contents of all files of the levels, in the order of their names.

    Attributes of the image and what else lies in its folder, such as segmentations, leave it as it is.
    """
    found: list[tuple[str, Path]] = []
    state = hashlib.sha256()
    for folder in folders:
        for at, inner, names in os.walk(folder):
            inner.sort()
            found += [((path := Path(at, name)).relative_to(root).as_posix(), path) for name in names]
            if len(found) > _MAX_FILES:
                raise SlideError(f"{root.name}: more than {_MAX_FILES} files; write it in shards")
    found.sort()
    for name, path in found:
        stat = path.lstat()
        state.update(f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}\n".encode("utf-8", "replace"))
    return _digest(root, tuple(name for name, _ in found), state.digest())


@functools.lru_cache(64)
def _digest(root: Path, names: tuple[str, ...], state: bytes) -> str:
    """Remembered by the state of all files: a slide is opened several times."""
    digest = hashlib.sha256()
    try:
        for name in names:
            with open_regular(root / name, _MAX_FILE_BYTES, root) as file:
                digest.update(f"{name}\0{file.seek(0, 2)}\0".encode("utf-8", "surrogateescape"))
                file.seek(0)
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
    except (OSError, CorruptStore) as error:
        raise SlideError(f"{root.name}: {first_line(error).replace(f'{root}/', '')}") from None
    return f"sha256:{digest.hexdigest()}"
