"""What the header of a DICOM file says of its series: a small reader, bounded in elements and depth.

The encoding is that of DICOM PS3.5, chapter 7: a data element is a tag, in most files a value representation (VR), a
length and a value; elements come in the order of their tags. Three elements near the beginning are wanted, so little
of a file is read, and no pixel. PS3.10, chapter 7, describes what comes before.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stores.errors import CorruptStore
from stores.io.foreign import open_regular

_PREAMBLE_BYTES, _MAGIC = 128, b"DICM"
_MAX_FILE_BYTES = 1 << 62
_MAX_ELEMENTS, _MAX_DEPTH, _MAX_TEXT = 1 << 14, 16, 1 << 10
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""VRs whose length has four bytes, after two that are reserved."""
_UNKNOWN = b"UN"
"""A VR whose sequences are written without VRs."""
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_TRANSFER_SYNTAX, _IMAGE_TYPE, _MODALITY, _SERIES = 0x00020010, 0x00080008, 0x00080060, 0x0020000E
_IMPLICIT = b"1.2.840.10008.1.2"
_OTHER_ENCODINGS = frozenset((b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"))
"""Big endian, which was withdrawn, and a compressed header; OpenSlide reads neither."""

_NO_LEVEL = frozenset(("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER"))
"""Image types beside VOLUME, by DICOM PS3.3, C.8.12.4.1.1."""


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """What tells the files of a series apart."""

    series: str
    """SeriesInstanceUID (0020,000E)."""
    modality: str
    """Modality (0008,0060): ``SM`` for slide microscopy."""
    image_type: tuple[str, ...]
    """ImageType (0008,0008), such as ``ORIGINAL PRIMARY VOLUME NONE``."""

    @property
    def is_level(self) -> bool:
        """Whether the file can hold a pyramid level: it does not say that it holds something else."""
        return self.modality in ("SM", "") and _NO_LEVEL.isdisjoint(self.image_type)


class _Unusual(Exception):
    """The file ends too early, or is no DICOM file of a kind that is read here."""


def read_header(path: Path) -> DicomHeader | None:
    """The header of a DICOM file; None when it is none, damaged, or encoded in a way that OpenSlide does not read."""
    try:
        with open_regular(path, _MAX_FILE_BYTES) as file:
            return _Header(file).read()
    except (OSError, CorruptStore, _Unusual):
        return None


class _Header:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left, self._implicit = file, _MAX_ELEMENTS, False

    def read(self) -> DicomHeader:
        self._file.seek(_PREAMBLE_BYTES)
        if self._file.read(len(_MAGIC)) != _MAGIC:
            raise _Unusual
        syntax = self._values(lambda tag: tag >> 16 != 2, (_TRANSFER_SYNTAX,)).get(_TRANSFER_SYNTAX, b"")
        if not syntax or syntax in _OTHER_ENCODINGS:
            raise _Unusual
        self._implicit = syntax == _IMPLICIT
        found = self._values(lambda tag: tag > _SERIES, (_IMAGE_TYPE, _MODALITY, _SERIES))
        series, modality, kinds = (
            found.get(tag, b"").decode("ascii", "replace") for tag in (_SERIES, _MODALITY, _IMAGE_TYPE)
        )
        if not series:
            raise _Unusual
        return DicomHeader(series, modality, tuple(kind.strip() for kind in kinds.split("\\")))

    def _values(self, is_beyond: Callable[[int], bool], wanted: tuple[int, ...]) -> dict[int, bytes]:
        """Values of the wanted elements before the first that is beyond them; leaves the file at that one."""
        found: dict[int, bytes] = {}
        while True:
            at = self._file.tell()
            tag, vr, length = self._element(self._implicit)
            if is_beyond(tag):
                self._file.seek(at)
                return found
            if tag in wanted and length <= _MAX_TEXT:
                found[tag] = self._bytes(length).strip(b" \0")
            else:
                self._skip(length, self._implicit or vr == _UNKNOWN, 0)

    def _element(self, implicit: bool) -> tuple[int, bytes, int]:
        """Tag, VR and length of the element here; the file is then at its value."""
        self._left -= 1
        if self._left < 0:
            raise _Unusual
        group, element = struct.unpack("<HH", self._bytes(4))
        tag = group << 16 | element
        if implicit or group == 0xFFFE:
            return tag, b"", struct.unpack("<I", self._bytes(4))[0]
        vr, length = struct.unpack("<2sH", self._bytes(4))
        return tag, vr, struct.unpack("<I", self._bytes(4))[0] if vr in _LONG else length

    def _skip(self, length: int, implicit: bool, depth: int) -> None:
        """Pass over a value; one of undefined length is a sequence, which ends with an element of its own."""
        if length != _UNDEFINED:
            self._file.seek(length, 1)
            return
        if depth == _MAX_DEPTH:
            raise _Unusual
        while True:
            tag, _, item_length = self._element(implicit)
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise _Unusual
            if item_length != _UNDEFINED:
                self._file.seek(item_length, 1)
                continue
            while True:
                tag, vr, inner = self._element(implicit)
                if tag == _ITEM_END:
                    break
                self._skip(inner, implicit or vr == _UNKNOWN, depth + 1)

    def _bytes(self, n: int) -> bytes:
        found = self._file.read(n)
        if len(found) != n:
            raise _Unusual
        return found
