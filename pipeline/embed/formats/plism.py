"""``plism``: the folders of plism-benchmark, one ``features.npy`` for each slide."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.embed.formats.base import Format, Parts, Unit
from pipeline.embed.parts import feature_matrix
from stores.errors import OptionError, SlideError
from stores.format import layout, manifest
from stores.io import files


def check_plism(columns: Mapping[str, Any], tiles: bool) -> None:
    if not tiles or "group" not in columns:
        raise OptionError(
            "--format plism: takes a CSV of the PLISM tiles with the slide they are of, as --column group=NAME"
        )
    for slide in sorted(set(columns["group"])):
        if not layout.is_slide_id(slide) or not re.match(r"[A-Z]+_[A-Z0-9]+_", slide):
            raise OptionError(
                f"--format plism: slide {slide!r:.80}; expected STAINING_SCANNER_..., as GMH_S60_to_GMH_S60.tif"
            )
    for name in columns["path"]:
        _tile_id(name)


def _tile_id(name: str) -> tuple[int, int, int]:
    """The three numbers at the end of a PLISM tile's name: the second and third are its place.

    >>> _tile_id("GM_S60/tile_16_30_7.png")
    (16, 30, 7)
    """
    match = re.search(r"_(\d{1,7})_(\d{1,7})_(\d{1,7})$", Path(name).stem)
    if match is None:
        raise OptionError(
            f"--format plism: tile {name!r:.120}; expected a name that ends in three numbers, _16_30_7"
        )
    return int(match[1]), int(match[2]), int(match[3])


def write_plism(folder: Path, unit: Unit, parts: Parts) -> list[Path]:
    ids = np.array([_tile_id(name) for name in unit.columns["path"]])
    slides = np.array(unit.columns["group"])
    folder.mkdir(parents=True, exist_ok=True)
    everything = files.partial_of(folder / "everything")  # 91 slides are 4.5 GB at 768 numbers
    try:
        values = np.lib.format.open_memmap(everything, "w+", np.float32, (unit.n_patches, unit.dim))
        for part in parts:
            _require_all(unit, part)
            rows = part["row"].to_numpy()
            values[rows[0] : rows[-1] + 1] = feature_matrix(part["features"])
        written = []
        for slide in sorted(set(unit.columns["group"])):
            of_slide = np.flatnonzero(slides == slide)
            of_slide = of_slide[np.lexsort((ids[of_slide, 2], ids[of_slide, 1]))]
            path = folder / slide / "features.npy"
            both = np.concatenate([ids[of_slide].astype(np.float32), values[of_slide]], axis=1)
            with files.replacing(path) as partial, partial.open("wb") as file:
                np.save(file, both, allow_pickle=False)
            written.append(path)
    finally:
        everything.unlink(missing_ok=True)
    return written


def _require_all(unit: Unit, part: pa.Table) -> None:
    bad = part.filter(pc.not_equal(part["status"], manifest.OK))["row"].to_pylist()
    if bad:
        raise SlideError(
            f"{unit.columns['path'][bad[0]]}: cannot be read, nor {len(bad) - 1} others near it; plism-benchmark "
            "compares the same tiles of all slides: mend them, or leave them out of every slide"
        )


PLISM = Format(check_plism, write_plism)
