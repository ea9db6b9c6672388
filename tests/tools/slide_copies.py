"""Many slides out of one: copies whose fingerprints differ, since one picture is one slide."""

import shutil
from pathlib import Path

import tifffile


def copy_slide(slide: Path, to: Path) -> None:
    """Copy a tiled TIFF. The first tile of its smallest level, which OpenSlide hashes, ends in the name of the copy.

    Decoders stop before it: the pixels are the same.
    """
    shutil.copy(slide, to)
    with tifffile.TiffFile(to, mode="r+") as file:
        page = file.pages[-1]
        assert isinstance(page, tifffile.TiffPage)
        start, size = page.dataoffsets[0], page.databytecounts[0]
        with slide.open("rb") as data:
            data.seek(start)
            tile = data.read(size) + to.stem.encode()
        end = file.filehandle.seek(0, 2)
        file.filehandle.write(tile)
        for name, value, values in (
            ("TileOffsets", end, page.dataoffsets),
            ("TileByteCounts", len(tile), page.databytecounts),
        ):
            page.tags[name].overwrite((value, *values[1:]))
