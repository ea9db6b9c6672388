"""DICOM: all files of a series are one slide, whichever of them is named.

OpenSlide opens a slide from any file of its series, and finds the others in the same folder. So a slide is here the
files of one series in one folder: levels, label, overview and thumbnail.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.slides.contract import FileGroup
from pipeline.slides.dicom_header import DicomHeader, read_header
from pipeline.slides.openslide_reader import OpenSlideFile, OpenSlidePatches
from pipeline.slides.slide import ReadPlan

_SUFFIX = ".dcm"


@dataclass(frozen=True, slots=True)
class DicomReader:
    """The `SeriesReader` of DICOM whole slide images."""

    @property
    def suffixes(self) -> frozenset[str]:
        return frozenset((_SUFFIX,))

    @property
    def folder_suffixes(self) -> frozenset[str]:
        return frozenset()

    def takes(self, path: Path) -> bool:
        """By its ending; a file without one by its header, as archives give files out."""
        return path.suffix.lower() == _SUFFIX or (_is_bare(path) and read_header(path) is not None)

    def open(self, path: Path) -> OpenSlideFile:
        return OpenSlideFile(path)

    def patches(self, path: Path, plan: ReadPlan) -> OpenSlidePatches:
        return OpenSlidePatches(path, plan)

    def group(self, paths: Sequence[Path]) -> list[FileGroup]:
        """A group for each series in a folder, and one for each file whose header cannot be read.

        A slide is opened by the first file, by name, that holds a level. It is named after that file when the series
        has no other, after the folder when all DICOM files in it are of the series, and otherwise after the
        SeriesInstanceUID. Series without a level (labels alone, annotations, radiology) are no slides.
        """
        groups = []
        named: dict[Path, set[Path]] = defaultdict(set)
        for path in paths:
            named[path.parent].add(path)
        for folder, here in sorted(named.items()):
            series, unknown = _series_in(folder, here)
            for uid, files in series.items():
                levels = [path for path, header in files.items() if header.is_level]
                if levels and not here.isdisjoint(files):
                    groups.append(
                        FileGroup(*_names(uid, levels[0], files, series), levels[0], frozenset(files))
                    )
                elif not here.isdisjoint(files):
                    groups.append(FileGroup(uid, uid, None, frozenset(files)))
            groups += [FileGroup(path.stem, path.name, path, frozenset((path,))) for path in unknown]
        return groups


def _series_in(
    folder: Path, named: Collection[Path]
) -> tuple[dict[str, dict[Path, DicomHeader]], list[Path]]:
    """The DICOM files of a folder by series, and the named files whose header cannot be read."""
    series: dict[str, dict[Path, DicomHeader]] = defaultdict(dict)
    unknown = []
    beside = (path for path in folder.iterdir() if not path.name.startswith("."))
    for path in sorted(
        {*named, *(path for path in beside if path.suffix.lower() == _SUFFIX or _is_bare(path))}
    ):
        header = read_header(path)
        if header is not None:
            series[header.series][path] = header
        elif path in named:
            unknown.append(path)
    return dict(series), unknown


def _is_bare(path: Path) -> bool:
    """Whether a name has no ending, or numbers in its place, as in ``IM000001`` and ``1.2.840.10008.5.1``."""
    return (not path.suffix or path.suffix[1:].isdigit()) and path.is_file()


def _names(uid: str, first: Path, files: Collection[Path], series: Collection[str]) -> tuple[str, str]:
    """Stem and name of a slide."""
    if len(files) == 1:
        return first.stem if first.suffix.lower() == _SUFFIX else first.name, first.name
    return uid if len(series) > 1 else first.parent.resolve().name or uid, uid
