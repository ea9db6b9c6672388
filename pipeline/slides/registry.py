"""The readers of slide files, and the slides that they open.

A new reader is a module with a `contract.SlideReader` and a line in `READERS`.
"""

from pathlib import Path

from pipeline.slides.contract import SlideFile, SlideReader
from pipeline.slides.dicom_reader import DicomReader
from pipeline.slides.openslide_reader import QUICKHASH, OpenSlideReader
from pipeline.slides.picture_reader import PictureReader
from pipeline.slides.slide import SlideInfo
from pipeline.slides.tiff_reader import TiffReader
from pipeline.slides.zarr_reader import ZarrReader
from stores.errors import SlideError

READERS: tuple[SlideReader, ...] = (
    DicomReader(),
    TiffReader(),
    ZarrReader(),
    PictureReader(),
    OpenSlideReader(),
)
"""Asked in this order: the first that takes a file reads it."""


def suffixes() -> list[str]:
    """Endings of slide files and of folders that are slides, sorted."""
    return sorted(frozenset().union(*(reader.suffixes | reader.folder_suffixes for reader in READERS)))


def is_slide_folder(path: Path) -> bool:
    """Whether a folder is by its ending one slide, which is not searched for others."""
    return any(path.suffix.lower() in reader.folder_suffixes for reader in READERS) and path.is_dir()


def reader_of(path: Path, fingerprint: str | None = None) -> SlideReader:
    """The reader for a slide file; SlideError when there is none.

    Parameters
    ----------
    fingerprint
        Of the slide in a store. What OpenSlide read when it was tiled, OpenSlide reads again, though another reader may
        have come since that would find other levels in the file.
    """
    if fingerprint is not None and fingerprint.startswith(QUICKHASH):
        return OpenSlideReader()
    for reader in READERS:
        if reader.takes(path):
            return reader
    if not path.exists():
        raise SlideError(f"{path.name}: no such file")
    raise SlideError(f"{path.name}: not a slide format that is known; known are {' '.join(suffixes())}")


def is_taken(path: Path) -> bool:
    """Whether there is a reader for a file or folder."""
    return any(reader.takes(path) for reader in READERS)


def open_slide(path: Path, fingerprint: str | None = None) -> SlideFile:
    """Open a slide file with its reader, as `reader_of` chooses it; a context manager.

    Raises
    ------
    SlideError
        When no reader takes it, or it does not open.
    """
    return reader_of(path, fingerprint).open(path)


def inspect(slide_id: str, path: Path, mpp: float | None = None, mpp_source: str = "option") -> SlideInfo:
    """Open a slide file and close it again, for `SlideFile.inspect`."""
    with open_slide(path) as file:
        return file.inspect(slide_id, mpp, mpp_source)
