"""The readers of slide files, and the slides that they find and open.

A new reader is a module with a `contract.SlideReader` and a line in `READERS`.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.slides.contract import SlideFile, SlideReader
from pipeline.slides.openslide_reader import OpenSlideReader
from pipeline.slides.slide import SlideInfo, slide_id_of
from stores.errors import OptionError, SlideError

READERS: tuple[SlideReader, ...] = (OpenSlideReader(),)
"""Asked in this order: the first that takes a file reads it."""


def suffixes() -> list[str]:
    """Endings of slide files, sorted."""
    return sorted(frozenset().union(*(reader.suffixes for reader in READERS)))


def reader_of(path: Path) -> SlideReader:
    """The reader for a slide file; SlideError when there is none."""
    for reader in READERS:
        if reader.takes(path):
            return reader
    if not path.exists():
        raise SlideError(f"{path.name}: no such file")
    raise SlideError(f"{path.name}: not a slide format that is known; known are {' '.join(suffixes())}")


def open_slide(path: Path) -> SlideFile:
    """Open a slide file with its reader; a context manager.

    Raises
    ------
    SlideError
        When no reader takes it, or it does not open.
    """
    return reader_of(path).open(path)


def inspect(slide_id: str, path: Path, mpp: float | None = None, mpp_source: str = "option") -> SlideInfo:
    """Open a slide file and close it again, for `SlideFile.inspect`."""
    with open_slide(path) as file:
        return file.inspect(slide_id, mpp, mpp_source)


def find_slides(inputs: Sequence[Path]) -> dict[str, Path]:
    """Slide files by slide id, sorted. Folders are searched recursively, hidden files left out.

    Raises
    ------
    OptionError
        When an input does not exist, nothing is found, or two files give one slide id.
    """
    paths: list[Path] = []
    endings = suffixes()
    for given in inputs:
        if given.is_dir():
            found = (p for p in given.rglob("*") if p.suffix.lower() in endings and p.is_file())
            paths += [
                p for p in found if not any(part.startswith(".") for part in p.relative_to(given).parts)
            ]
        elif given.is_file():
            paths.append(given)
        else:
            raise OptionError(f"{given}: no such file or folder")
    slides: dict[str, Path] = {}
    for path in sorted(set(paths)):
        slide_id = slide_id_of(path)
        if slide_id in slides:
            raise OptionError(
                f"slide id {slide_id!r}: both {slides[slide_id]} and {path}; rename one of them"
            )
        slides[slide_id] = path
    if not slides:
        where = ", ".join(map(str, inputs)) or "no input"
        raise OptionError(f"{where}: no slide found; looked for {' '.join(endings)}")
    return dict(sorted(slides.items()))
