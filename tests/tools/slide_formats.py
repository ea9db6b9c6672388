"""Slides of one picture in every format that a reader reads, with what is in them: for tests of all readers alike."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import tifffile
import zarr
from PIL import Image
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from tests.tools.dicom import write_series

Picture = npt.NDArray[np.uint8]
Levels = Sequence[Picture]
_MPP = 0.5
_TILE = (256, 256)


@dataclass(frozen=True)
class Format:
    """A way of writing a slide."""

    write: Callable[[Path, Levels], Path]
    """Writes levels below a folder; returns what opens the slide."""
    vendor: str
    ground_truth: Callable[[Path, int], Picture] | None = None
    """What another library reads of a level; None where the format keeps the pixels that were written."""
    tolerance: int = 0
    single: bool = False
    """It has one level, however many are given, and no mpp."""
    options: dict[str, Any] = field(default_factory=dict)


def halved(picture: Picture, n_levels: int = 3) -> list[Picture]:
    """Levels of a picture: every second pixel of the one before."""
    return [np.ascontiguousarray(picture[:: 2**i, :: 2**i]) for i in range(n_levels)]


def write_generic_tiff(folder: Path, levels: Levels) -> Path:
    path, dots = folder / "generic.tif", 1e4 / _MPP
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(levels):
            writer.write(
                level,
                photometric="rgb",
                tile=_TILE,
                compression="zlib",
                subfiletype=int(i > 0),
                resolution=(dots / 2**i, dots / 2**i),
                resolutionunit="CENTIMETER",
            )
    return path


def write_strips(folder: Path, levels: Levels) -> Path:
    path, dots = folder / "strips.tif", 1e4 / _MPP
    options: dict[str, Any] = {
        "resolution": (dots, dots),
        "resolutionunit": "CENTIMETER",
        "rowsperstrip": 100,
    }
    tifffile.imwrite(path, levels[0], photometric="rgb", compression="lzw", predictor=True, **options)
    return path


def write_dicom(folder: Path, levels: Levels) -> Path:
    return write_series(folder / "series", "a", levels[0], "1.2.826.0.9", len(levels))[0]


def ome_tiff(
    name: str, unit: str = "\u00b5m", planar: bool = False, **options: Any
) -> Callable[[Path, Levels], Path]:
    """OME-TIFF with its pyramid in SubIFDs."""
    size = {"\u00b5m": _MPP, "nm": 1000 * _MPP, "mm": _MPP / 1000}[unit]
    metadata: dict[str, Any] = {
        "axes": "SYX" if planar else "YXS",
        **{f"PhysicalSize{axis}": size for axis in "XY"},
        **{f"PhysicalSize{axis}Unit": unit for axis in "XY"},
    }

    def write(folder: Path, levels: Levels) -> Path:
        path = folder / f"{name}.ome.tif"
        pages = [np.ascontiguousarray(np.moveaxis(level, -1, 0)) if planar else level for level in levels]
        given: dict[str, Any] = {
            "photometric": "rgb",
            "planarconfig": "separate" if planar else "contig",
            **options,
        }
        with tifffile.TiffWriter(path, ome=True) as writer:
            writer.write(pages[0], subifds=len(pages) - 1, metadata=metadata, **given)
            for page in pages[1:]:
                writer.write(page, subfiletype=1, metadata=None, **given)
        return path

    return write


def read_tifffile(path: Path, level: int) -> Picture:
    """A level of an OME-TIFF as tifffile reads it."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        return np.asarray((page if level == 0 else page.pages[level - 1]).asarray())


def ome_zarr(
    name: str,
    zarr_format: int,
    chunks: tuple[int, ...] = (1, 3, 1, 200, 256),
    group: str = "",
    **options: Any,
) -> Callable[[Path, Levels], Path]:
    """OME-Zarr 0.4 on Zarr 2 or 0.5 on Zarr 3, written by Zarr."""

    def write(folder: Path, levels: Levels) -> Path:
        path = folder / f"{name}.zarr"
        where = path / group
        root = zarr.open_group(where, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
        datasets: list[Any] = []
        for i, level in enumerate(levels):
            values = np.moveaxis(level, -1, 0)[None, :, None]
            array = root.create_array(str(i), shape=values.shape, chunks=chunks, dtype="uint8", **options)
            array[...] = values
            scale = [1, 1, 1, 1000 * _MPP * 2**i, 1000 * _MPP * 2**i]
            datasets.append(
                {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            )
        axes: list[Any] = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
        axes += [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
        multiscales: list[Any] = [{"axes": axes, "datasets": datasets}]
        if zarr_format == 3:
            root.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
        else:
            root.attrs["multiscales"] = [{**multiscales[0], "version": "0.4"}]
        if group:
            (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
            (path / ".zattrs").write_text(json.dumps({"bioformats2raw.layout": 3}))
        return path

    return write


def read_zarr(path: Path, level: int) -> Picture:
    """A level of an OME-Zarr as Zarr reads it."""
    array = np.asarray(zarr.open_array(path / str(level), mode="r")[...])
    return np.ascontiguousarray(np.moveaxis(array[0, :, 0], 0, -1))


def write_picture(ending: str, **options: Any) -> Callable[[Path, Levels], Path]:
    def write(folder: Path, levels: Levels) -> Path:
        Image.fromarray(levels[0]).save(folder / f"picture{ending}", **options)
        return folder / f"picture{ending}"

    return write


def read_pillow(path: Path, level: int) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


FORMATS: dict[str, Format] = {
    "generic-tiff": Format(write_generic_tiff, "generic-tiff"),
    "dicom": Format(write_dicom, "dicom", tolerance=6),
    "ome-jpeg": Format(
        ome_tiff("jpeg", tile=_TILE, compression="jpeg", compressionargs={"level": 90}),
        "ome-tiff",
        read_tifffile,
    ),
    "ome-deflate": Format(
        ome_tiff("deflate", "nm", tile=_TILE, compression="zlib", predictor=True), "ome-tiff"
    ),
    "ome-lzw-planes": Format(ome_tiff("lzw", "mm", planar=True, tile=_TILE, compression="lzw"), "ome-tiff"),
    "ome-zstd-planes": Format(
        ome_tiff("zstd", planar=True, tile=_TILE, compression="zstd", predictor=True), "ome-tiff"
    ),
    "ome-plain-strips": Format(ome_tiff("strips", rowsperstrip=50), "ome-tiff"),
    "tiff-strips": Format(write_strips, "tiff", single=True),
    "zarr2-zstd": Format(ome_zarr("v2", 2), "ome-zarr", read_zarr),
    "zarr2-lz4": Format(
        ome_zarr("lz4", 2, compressors=[numcodecs.Blosc(cname="lz4", shuffle=1)]), "ome-zarr", read_zarr
    ),
    "zarr2-planes": Format(
        ome_zarr("planes", 2, (1, 1, 1, 256, 256), chunk_key_encoding={"name": "v2", "separator": "/"}),
        "ome-zarr",
        read_zarr,
    ),
    "zarr3-zstd": Format(ome_zarr("v3", 3, compressors=[ZstdCodec()]), "ome-zarr", read_zarr),
    "zarr3-blosc": Format(
        ome_zarr("blosc", 3, compressors=[BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec()]),
        "ome-zarr",
        read_zarr,
    ),
    "zarr3-plain": Format(ome_zarr("plain", 3, compressors=None), "ome-zarr", read_zarr),
    "zarr3-shards": Format(
        ome_zarr("shards", 3, (1, 1, 1, 128, 128), shards=(1, 3, 1, 256, 512), compressors=[GzipCodec()]),
        "ome-zarr",
        read_zarr,
    ),
    "bioformats2raw": Format(ome_zarr("b2raw", 2, group="0"), "ome-zarr"),
    "png": Format(write_picture(".png"), "picture", single=True),
    "jpeg": Format(write_picture(".jpg", quality=90), "picture", read_pillow, single=True),
}
