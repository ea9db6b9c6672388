"""The embeddings of a slide, or of a CSV of tiles, in the files that other tools read.

``parquet`` is ours and keeps everything. ``trident-h5`` is what TRIDENT, Patho-Bench and CLAM read for a slide,
``clam`` the two folders of CLAM, ``eva`` its offline manifest with a tensor a sample, ``plism`` the folders of
plism-benchmark.
A patch that could not be read stays in a Parquet file as an empty row, and is left out of the others, which have no
such thing; it is named in the summary in any case.
"""

from collections.abc import Mapping

from pipeline.embed.formats.base import Format, any_columns, slides_only
from pipeline.embed.formats.eva import check_eva, finish_eva, write_eva
from pipeline.embed.formats.h5 import write_clam, write_h5
from pipeline.embed.formats.parquet import write_parquet
from pipeline.embed.formats.plism import check_plism, write_plism

# parquet


# TRIDENT, Patho-Bench, CLAM


# eva


# plism-benchmark


BY_NAME: Mapping[str, Format] = {
    "parquet": Format(any_columns, write_parquet),
    "trident-h5": Format(slides_only("trident-h5"), write_h5),
    "clam": Format(slides_only("clam"), write_clam),
    "eva": Format(check_eva, write_eva, finish_eva),
    "plism": Format(check_plism, write_plism),
}
