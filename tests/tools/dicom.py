"""A writer of small DICOM whole slide images, explicit VR little endian: what OpenSlide needs to open them, no more."""

import struct
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

_LONG = frozenset(("OB", "OW", "SQ", "UN", "UT"))
_WSI_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_UNDEFINED = 0xFFFFFFFF
_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
"""Of a sequence of undefined length."""
Image = npt.NDArray[np.uint8]


def element(tag: int, vr: str, value: bytes, undefined: bool = False) -> bytes:
    """A data element; `undefined` leaves its length open, so that `value` has to bring its end."""
    padded = value + (b"\0" if vr in ("UI", "OB") else b" ") * (len(value) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    length = _UNDEFINED if undefined else len(padded)
    return head + (struct.pack("<HI", 0, length) if vr in _LONG else struct.pack("<H", length)) + padded


def text(tag: int, vr: str, value: object) -> bytes:
    return element(tag, vr, str(value).encode())


def number(tag: int, vr: str, value: int | float) -> bytes:
    return element(tag, vr, struct.pack({"US": "<H", "UL": "<I", "FL": "<f"}[vr], value))


def item(content: bytes, undefined: bool = False) -> bytes:
    """An item of a sequence or of encapsulated pixels."""
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) if undefined else b""
    return struct.pack("<HHI", 0xFFFE, 0xE000, _UNDEFINED if undefined else len(content)) + content + end


def sequence(tag: int, *items: bytes, undefined: bool = False) -> bytes:
    """A sequence of items, of a length that is written or left open, as both occur."""
    return element(
        tag, "SQ", b"".join(item(i, undefined) for i in items) + (_END if undefined else b""), undefined
    )


def write_instance(
    path: Path,
    image: Image,
    series: str,
    kind: str = "ORIGINAL\\PRIMARY\\VOLUME\\NONE",
    mpp: float = 0.5,
    number_in_series: int = 1,
    tile_px: int = 256,
    modality: str = "SM",
    undefined: bool = False,
) -> None:
    """Write one image of a series, uint8 (h, w, 3), in JPEG tiles of the highest quality."""
    height, width = image.shape[:2]
    frames = []
    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            part = image[y : y + tile_px, x : x + tile_px]
            tile = np.full((tile_px, tile_px, 3), 255, np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            options = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
            data = cv2.imencode(".jpg", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR), options)[1].tobytes()
            frames.append(item(data + b"\0" * (len(data) % 2)))
    uid = f"{series}.{number_in_series}"
    meta = (
        element(0x00020001, "OB", b"\0\1")
        + text(0x00020002, "UI", _WSI_STORAGE)
        + text(0x00020003, "UI", uid)
        + text(0x00020010, "UI", "1.2.840.10008.1.2.4.50")
        + text(0x00020012, "UI", "2.25.1")
    )
    spacing = text(0x00280030, "DS", f"{mpp / 1000}\\{mpp / 1000}")
    dataset = b"".join((
        text(0x00080008, "CS", kind),
        text(0x00080016, "UI", _WSI_STORAGE),
        text(0x00080018, "UI", uid),
        text(0x00080060, "CS", modality),
        # what a reader of the header has to pass over, in each of two ways
        sequence(0x00081115, sequence(0x00081199, text(0x00081150, "UI", "1.2"), undefined=undefined),
                 undefined=undefined),
        text(0x0020000D, "UI", f"{series}.0"),
        text(0x0020000E, "UI", series),
        text(0x00200011, "IS", 1),
        text(0x00200013, "IS", number_in_series),
        number(0x00280002, "US", 3),
        text(0x00280004, "CS", "YBR_FULL_422"),
        number(0x00280006, "US", 0),
        text(0x00280008, "IS", len(frames)),
        number(0x00280010, "US", tile_px),
        number(0x00280011, "US", tile_px),
        number(0x00280100, "US", 8),
        number(0x00280101, "US", 8),
        number(0x00280102, "US", 7),
        number(0x00280103, "US", 0),
        number(0x00480001, "FL", width * mpp / 1000),
        number(0x00480002, "FL", height * mpp / 1000),
        number(0x00480006, "UL", width),
        number(0x00480007, "UL", height),
        text(0x00209311, "CS", "TILED_FULL"),
        sequence(0x52009229, sequence(0x00289110, spacing, undefined=undefined), undefined=undefined),
        element(0x7FE00010, "OB", item(b"") + b"".join(frames) + _END, undefined=True),
    ))  # fmt: skip
    head = number(0x00020000, "UL", len(meta))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + head + meta + dataset)


def write_series(folder: Path, prefix: str, image: Image, series: str, n_levels: int = 3) -> list[Path]:
    """Write a slide as a series of levels and a label; every second level leaves the lengths of sequences open."""
    paths = [folder / f"{prefix}_level{i}.dcm" for i in range(n_levels)]
    for i, path in enumerate(paths):
        kind = "ORIGINAL\\PRIMARY\\VOLUME\\NONE" if i == 0 else "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED"
        level = np.ascontiguousarray(image[:: 2**i, :: 2**i])
        write_instance(path, level, series, kind, 0.5 * 2**i, i + 1, undefined=bool(i % 2))
    label = folder / f"{prefix}_label.dcm"
    white = np.full((64, 96, 3), 230, np.uint8)
    write_instance(label, white, series, "ORIGINAL\\PRIMARY\\LABEL\\NONE", 5.0, n_levels + 1)
    return [*paths, label]
