"""The output formats of ``embed``: the files that other tools read, of the embeddings of a slide or of a CSV of tiles.

``parquet`` is the project's own and keeps everything. ``trident-h5`` is what TRIDENT, Patho-Bench and CLAM read for a
slide, ``clam`` the two folders of CLAM, ``eva`` its offline manifest with a tensor for each sample, ``plism`` the
folders of plism-benchmark, ``geojson`` a map of a slide's features for QuPath.

A patch that could not be read is an empty row in a Parquet file. The other formats have no such row and leave it out.
The summary names it in any case.

A format is a file in this folder with a `pipeline.embed.formats.base.Format`, and a line here. This module imports no
format until it is asked for one, so that the options may list the names.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.embed.formats.base import Format

_HOMES = {
    "parquet": "parquet:PARQUET",
    "trident-h5": "h5:TRIDENT_H5",
    "clam": "h5:CLAM",
    "eva": "eva:EVA",
    "plism": "plism:PLISM",
    "geojson": "geojson:GEOJSON",
}
"""For each name its module in this folder, and the name of the `Format` in it."""
FORMATS = tuple(_HOMES)


def format_of(name: str) -> "Format":
    """The format of a name in `FORMATS`."""
    module, _, attribute = _HOMES[name].partition(":")
    found: Format = getattr(importlib.import_module(f"pipeline.embed.formats.{module}"), attribute)
    return found
