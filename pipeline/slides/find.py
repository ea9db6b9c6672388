"""Which slide files the inputs hold, and under which ids.

An id is the stem of the file's name, see `slide_id_of`; for a slide that is several files, its reader says what it is
made of (`contract.SeriesReader`). Names that give one id are told apart by a hash of the name, so that neither the
order of the inputs nor their folders matter: the file that a store already has under an id keeps it, else the one whose
stem is the id itself.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.slides import registry
from pipeline.slides.contract import SeriesReader
from stores.errors import OptionError
from stores.format.layout import MAX_SLIDE_ID, is_slide_id
from stores.io.foreign import is_regular
from stores.io.progress import SILENT, Reporter
from stores.io.text import counted

_NO_READER = frozenset((
    ".afi", ".i2syntax", ".ims", ".isyntax", ".kfb", ".lif", ".mds", ".mdsx", ".nd2", ".qptiff", ".sdpc", ".tmap",
    ".tron", ".vsi", ".zvi",
))  # fmt: skip
"""Endings of slide formats for which there may be no reader; those that a reader takes do not count."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Found:
    """The slide files of the inputs."""

    slides: dict[str, Path]
    """By slide id, sorted."""
    doubled: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Files of one name in several folders, by the id that each of them would have; none of them is in `slides`."""
    no_reader: tuple[Path, ...] = ()
    """Slide files of formats that no reader knows."""
    unreadable: tuple[str, ...] = ()
    """Folders that could not be listed."""

    def tell(self, report: Reporter) -> None:
        """Say what is not among `slides`, a line each."""
        for slide_id, paths in self.doubled.items():
            shown = ", ".join(map(str, paths[:_SHOWN]))
            report.note(f"slide {slide_id}: {len(paths)} files have this name, none is used: {shown}")
        if self.no_reader:
            report.note(
                f"{_formats(self.no_reader)}: not read, no reader knows them, such as {self.no_reader[0]}"
            )
        if self.unreadable:
            report.note(
                f"{counted(len(self.unreadable), 'folder')} cannot be listed, such as {self.unreadable[0]}"
            )


def find_slides(
    inputs: Sequence[Path], known: Iterable[Mapping[str, Any]] = (), report: Reporter = SILENT
) -> dict[str, Path]:
    """`search_slides` for commands that need only the files."""
    found = search_slides(inputs, known)
    found.tell(report)
    return found.slides


def search_slides(inputs: Sequence[Path], known: Iterable[Mapping[str, Any]] = ()) -> Found:
    """Search files and folders for slides. Folders are searched recursively, hidden files left out.

    Files that are one slide together are found as one, by whichever of them.
    Links are followed, each folder is searched once. A link that leads nowhere counts as a slide file, which then does
    not open.

    Parameters
    ----------
    known
        Rows of the slides table of a store: its slides keep their ids.

    Raises
    ------
    OptionError
        When an input does not exist, or nothing is found.
    """
    paths: dict[Path, _Names] = {}
    named: set[Path] = set()
    no_reader: list[Path] = []
    unreadable: list[str] = []
    endings = frozenset(registry.suffixes())
    seen: set[tuple[int, int]] = set()
    for given in inputs:
        if given.is_file() or registry.is_slide_folder(given):
            paths[given] = _Names.of(given)
            named.add(given)
        elif given.is_dir():
            for path in _below(given, seen, unreadable):
                if path.suffix.lower() in endings:
                    paths[path] = _Names.of(path)
                elif path.suffix.lower() in _NO_READER:
                    no_reader.append(path)
        else:
            raise OptionError(f"{given}: no such file or folder")
    paths = _grouped(paths, named)
    slides, doubled = _with_ids(paths, {row["slide_id"]: row["file_name"] for row in known})
    if not paths:
        where = ", ".join(map(str, inputs)) or "no input"
        others = f"; found {_formats(no_reader)}, which no reader knows" if no_reader else ""
        raise OptionError(f"{where}: no slide found; looked for {' '.join(sorted(endings))}{others}")
    return Found(slides, doubled, tuple(no_reader), tuple(unreadable))


def _formats(paths: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() for path in paths)
    return f"{counted(len(paths), 'file')} ({', '.join(f'{n} {ending}' for ending, n in sorted(counts.items()))})"


def _below(folder: Path, seen: set[tuple[int, int]], unreadable: list[str]) -> Iterator[Path]:
    """Files below a folder, and links that lead nowhere, in order of their names."""
    for at, folders, names in os.walk(
        folder, followlinks=True, onerror=lambda error: unreadable.append(str(error.filename))
    ):
        here = os.stat(at)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        whole = [name for name in folders if registry.is_slide_folder(Path(at, name))]
        folders[:] = [name for name in folders if name not in whole]
        yield from (path for name in whole if registry.is_taken(path := Path(at, name)))
        for name in sorted(names):
            path = Path(at, name)
            if not name.startswith(".") and (is_regular(path) or not os.path.exists(path)):
                yield path


@dataclass(frozen=True, slots=True)
class _Names:
    """What the id of a slide is made of, and what tells it apart from others that give the same."""

    stem: str
    name: str

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(path.stem, path.name)


def _grouped(paths: Mapping[Path, _Names], named: Set[Path]) -> dict[Path, _Names]:
    """One path for each slide of several files. Files that are no slide stay where the user named them."""
    left = dict(paths)
    for reader in registry.READERS:
        if not isinstance(reader, SeriesReader):
            continue
        for group in reader.group([path for path in left if reader.takes(path)]):
            for path in group.files:
                if group.path is not None or path not in named:
                    left.pop(path, None)
            if group.path is not None:
                left[group.path] = _Names(group.stem, group.name)
    return left


def _with_ids(
    paths: Mapping[Path, _Names], names: Mapping[str, str | None]
) -> tuple[dict[str, Path], dict[str, tuple[Path, ...]]]:
    """Files by id, sorted, and those of one name.

    Parameters
    ----------
    names
        File names by id that are in use.
    """
    groups: dict[str, dict[Path, _Names]] = {}
    for path, own in paths.items():
        groups.setdefault(_id_of(own.stem), {})[path] = own
    by_id: dict[str, list[Path]] = {}
    for base, group in groups.items():
        others = {own.name: base for own in group.values()}
        if len(others) > 1:
            exact = list({own.name: None for own in group.values() if own.stem == base})
            owner = _named(names.get(base), group)
            if (
                owner is None
                and len(exact) == 1
                and _named(names.get(_apart(base, exact[0])), group) != exact[0]
            ):
                owner = exact[0]
            others = {name: base if name == owner else _apart(base, name) for name in others}
        elif _named(names.get(base), group) is None:
            (only,) = others
            if _named(names.get(_apart(base, only)), group) == only:
                others[only] = _apart(base, only)
        for path, own in group.items():
            same = by_id.setdefault(others[own.name], [])
            if not any(_same_file(path, other) for other in same):
                same.append(path)
    doubled = {slide_id: tuple(same) for slide_id, same in sorted(by_id.items()) if len(same) > 1}
    return {slide_id: same[0] for slide_id, same in sorted(by_id.items()) if len(same) == 1}, doubled


def _named(file_name: str | None, group: Mapping[Path, _Names]) -> str | None:
    """The name of the one slide of a group that is opened by a file of that name."""
    found = {own.name for path, own in group.items() if path.name == file_name}
    return found.pop() if len(found) == 1 else None


def _same_file(a: Path, b: Path) -> bool:
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)


def slide_id_of(path: Path) -> str:
    """The slide id of a file name: its stem, with ``_`` for every character that is not allowed.

    A stem that has no allowed character gives ``slide-`` and a hash of it; one that is too long is cut, and ends in a
    hash.

    >>> slide_id_of(Path("My slide (1).svs")), slide_id_of(Path("\\u5207\\u7247.svs"))
    ('My_slide__1_', 'slide-e1b4f02f')
    """
    return _id_of(path.stem)


def _id_of(stem: str) -> str:
    slide_id = re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("._-")
    if is_slide_id(slide_id):
        return slide_id
    return _apart(slide_id if len(slide_id) > MAX_SLIDE_ID else "slide", stem)


def _apart(slide_id: str, name: str) -> str:
    """An id that tells `name` apart from others that give `slide_id`."""
    # macOS spells a letter and its accent as two characters
    text = os.fsencode(unicodedata.normalize("NFC", name))
    digest = hashlib.sha256(text).hexdigest()[:8]
    return f"{slide_id[: MAX_SLIDE_ID - 9]}-{digest}"
