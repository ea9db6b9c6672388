"""Decoders of TIFF tiles that give what OpenSlide gives, or an error: never pixels where OpenSlide refuses.

Tiles are untrusted input: no decoder takes more memory than a tile of the level's size.
"""

import zlib
from typing import Any, Protocol

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]

JPEG, JPEG2000, DEFLATE = 7, frozenset((33003, 33005, 34712)), frozenset((8, 32946))
"""Values of the TIFF tag Compression; 33003 and 33005 are Aperio's."""
RGB, YCBCR = 2, 6
"""Values of the TIFF tag PhotometricInterpretation."""
_HORIZONTAL = 2
_SOC_SIZ, _SOT = b"\xff\x4f\xff\x51", b"\xff\x90"
_HARMLESS = frozenset((b"\xff\x5c", b"\xff\x5d", b"\xff\x64"))  # QCD, QCC, COM


class DecodeError(ValueError):
    """A tile is damaged, or of another kind than those that were compared with OpenSlide."""


class TileCodec(Protocol):
    """Decodes the tiles of one level."""

    def decode(self, data: bytes, tile: Pixels) -> None:
        """Fill `tile`, uint8 (height, width, 3) and C-contiguous; DecodeError when that cannot be."""

    def trust(self, data: bytes) -> None:
        """OpenSlide has decoded this tile, the beginning of which is given."""


class Jpeg:
    """JPEG without warnings: what libjpeg merely warns of, OpenSlide refuses.

    Parameters
    ----------
    tables
        The level's JPEGTables, a JPEG file of nothing but tables.
    photometric
        How colours are coded, which a tile itself does not say.
    """

    def __init__(self, tables: bytes | None, photometric: int) -> None:
        transform = b"\x01" if photometric == YCBCR else b"\x00"
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + transform
        self._head = b"\xff\xd8" + adobe + (tables or b"")[2:-2]

    def decode(self, data: bytes, tile: Pixels) -> None:
        try:
            found = simplejpeg.decode_jpeg(self._head + data[2:], buffer=tile, strict=True)
        except ValueError as error:
            raise DecodeError(str(error)) from None
        _require_shape(found, tile)

    def trust(self, data: bytes) -> None: ...


class Jpeg2000:
    """JPEG 2000 codestreams whose main header says what one that OpenSlide decoded says."""

    def __init__(self) -> None:
        self._headers: set[bytes] = set()

    def decode(self, data: bytes, tile: Pixels) -> None:
        if _main_header(data) not in self._headers:
            raise DecodeError("a tile unlike those that were compared")
        try:
            found = imagecodecs.jpeg2k_decode(data, out=tile, numthreads=1)
        except (ValueError, RuntimeError) as error:
            raise DecodeError(str(error)) from None
        _require_shape(found, tile)

    def trust(self, data: bytes) -> None:
        self._headers |= {_main_header(data)} - {b""}


class Deflate:
    """Deflate, with or without differences between neighbours."""

    def __init__(self, predictor: int) -> None:
        self._differences = predictor == _HORIZONTAL

    def decode(self, data: bytes, tile: Pixels) -> None:
        stream = zlib.decompressobj()
        try:
            found = stream.decompress(data, tile.nbytes + 1)
        except zlib.error as error:
            raise DecodeError(str(error)) from None
        if len(found) != tile.nbytes or not stream.eof:
            raise DecodeError(f"{len(found)} bytes or more, {tile.nbytes} expected")
        fill(tile, found, self._differences)

    def trust(self, data: bytes) -> None: ...


def fill(tile: Pixels, raw: bytes | bytearray, differences: bool) -> None:
    """Fill a tile from its bytes, unpacked; `differences` says that they are those between neighbours in a row.

    Raises
    ------
    DecodeError
        When they are more or fewer than the tile has.
    """
    if len(raw) != tile.nbytes:
        raise DecodeError(f"{len(raw)} bytes, {tile.nbytes} expected")
    values = np.frombuffer(raw, np.uint8).reshape(tile.shape)
    if differences:
        np.cumsum(values, axis=1, dtype=np.uint8, out=tile)
    else:
        tile[:] = values


def codec_of(page: Any) -> TileCodec | None:
    """The decoder of a TIFF page's tiles; None when there is none for them."""
    if page.compression == JPEG and page.photometric in (RGB, YCBCR):
        return Jpeg(page.jpegtables, page.photometric)
    if page.compression in JPEG2000 and page.photometric in (RGB, YCBCR):
        return Jpeg2000()
    if page.compression in DEFLATE and page.photometric == RGB and page.predictor in (1, _HORIZONTAL):
        return Deflate(page.predictor)
    return None


def _require_shape(found: Pixels, tile: Pixels) -> None:
    if found.shape != tile.shape:
        raise DecodeError(f"{found.shape} pixels, {tile.shape} expected")


def _main_header(data: bytes) -> bytes:
    """The segments of a JPEG 2000 main header that say what is coded and how; empty when it is not one.

    Quantisation and comments, which differ between tiles and take no memory, are left out.
    """
    header, at = data[:2], 2
    while data[at : at + 2] != _SOT:
        marker, length = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4])
        if not marker.startswith(b"\xff") or length < 2:
            return b""
        if marker not in _HARMLESS:
            header += data[at : at + 2 + length]
        at += 2 + length
    return header if header.startswith(_SOC_SIZ) else b""
