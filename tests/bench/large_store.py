"""A large valid store in a minute: 1,000 slides of 10,000 patches under 4 seeds, 40 million views, without any teacher.

Its pixels are patches of one colour each and no operation is on, so that a view is its patch and its checksum is known.
Its ids are pseudonyms, so that nothing is to be drawn again from a fingerprint. The files of pixels are links to those
of a few slides; everything else is written for each slide. `g2l store verify` accepts it.

    python -m tests.bench.large_store OUT --slides 1000
"""

import argparse
import functools
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from pipeline.views.draw import RENDERING
from pipeline.views.policy import POLICIES
from stores.format import arrays, features, layout, manifest, pixels, recipe
from stores.format.chunks import write_chunk
from stores.format.encoding import Encoder
from stores.format.index import write_index
from stores.format.statistics import mean_and_variance
from stores.io import files
from tests.tools.tiny import Tiny

SLIDES, PATCHES, SEEDS, DIM, SIDE_PX = 1000, 10_000, 4, 16, 32
POLICY = replace(
    POLICIES["g2l"],
    name="off",
    patch_px=SIDE_PX,
    crop_px=SIDE_PX,
    random_crop=False,
    hflip_p=0.0,
    vflip_p=0.0,
    jitter_p=0.0,
    blur_p=0.0,
)
"""Draws as ``g2l`` does, so that records are as large, and applies nothing."""
RECIPE = recipe.Recipe(
    recipe.Patch(0.5, SIDE_PX, "non-overlapping", 0.5, {"name": "made-up"}),
    recipe.Teacher("made-up", "0" * 64, "cls", (0.5,) * 3, (0.5,) * 3, SIDE_PX, DIM, "float32"),
    POLICY.to_json(),
    recipe.Reader("4", "5", "r-1", RENDERING, "as stored"),
)
_KINDS = 10
"""Slides whose pixels are written; the others' are links to them."""
_POOL = 64
"""Different blocks of features."""


def student() -> nn.Module:
    """12-d features of a view."""
    made = Tiny(12)
    made.image_px = SIDE_PX
    return made


def make(store: Path, n_slides: int, n_patches: int = PATCHES, n_seeds: int = SEEDS, first: int = 0) -> None:
    """Write a store of the slides numbered from `first` on; a tenth of them is held out."""
    recipe.save(store, RECIPE)
    files.write_json(store / layout.options_file("extract-teacher"), {"pixels": True, "seeds": n_seeds})
    arrays.ensure_group(store, layout.FEATURES)
    arrays.ensure_group(store, layout.PIXELS)
    numbers = range(first, first + n_slides)
    kinds = list(numbers[:_KINDS])
    work = functools.partial(_write_slide, store, kinds, n_patches, n_seeds)
    with ProcessPoolExecutor(2) as pool:
        rows = [*pool.map(work, kinds), *pool.map(work, numbers[len(kinds) :], chunksize=8)]
    manifest.write_slides(store, rows)
    write_index(store)


def _name(number: int) -> str:
    """Six consonants, as a pseudonym has them."""
    return f"{number:06x}".translate(str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst"))


def _write_slide(
    store: Path, kinds: Sequence[int], n_patches: int, n_seeds: int, number: int
) -> dict[str, Any]:
    # of these processes only: a store that can be made again needs no flushing
    setattr(os, "fsync", lambda handle: None)  # noqa: B010
    slide_id, random = f"s-{_name(number)}", np.random.default_rng(number)
    side = int(np.ceil(np.sqrt(n_patches)))
    at = np.arange(n_patches)
    x, y = ((part * SIDE_PX).astype(np.int32) for part in (at % side, at // side))
    tissue = (0.5 + random.integers(0, 512, n_patches) / 1024).astype(np.float32)
    split = "val" if number % 10 == 9 else "train"
    manifest.write_patches(store, slide_id, x, y, tissue)
    kind = number % len(kinds)
    _write_features(store, slide_id, np.stack([x, y], axis=1), n_seeds, random)
    if number in kinds:
        _write_pixels(store, slide_id, kind, n_patches)
    else:
        os.makedirs(store / layout.PIXELS / slide_id)
        _link(store / layout.pixel_array(f"s-{_name(kinds[kind])}"), store / layout.pixel_array(slide_id))
    crcs = _checksums(kind, n_patches)
    for block in range(features.n_blocks(n_patches)):
        rows = np.tile(np.asarray(features.block_range(n_patches, block)), n_seeds)
        seeds = np.repeat(np.arange(n_seeds), len(rows) // n_seeds)
        columns = {"slide_id": np.full(len(rows), slide_id), "split": np.full(len(rows), split)}
        columns |= {"row": rows, "x_px0": x[rows], "y_px0": y[rows], "seed": seeds, "tissue": tissue[rows]}
        columns |= {"status": np.full(len(rows), manifest.OK), "view_crc32": crcs[rows]} | _drawn(
            seeds, random
        )
        table = pa.table({name: columns[name] for name in manifest.VIEWS_SCHEMA.names})
        manifest.write_commit(store, slide_id, block, range(n_seeds), table.cast(manifest.VIEWS_SCHEMA))
    return {
        "slide_id": slide_id,
        "file_name": f"f-{_name(number)}",
        "fingerprint": f"keyed-{_name(number) * 4}",
        "vendor": "made-up",
        "width_px0": side * SIDE_PX,
        "height_px0": side * SIDE_PX,
        "mpp": 0.5,
        "mpp_source": "slide",
        "patch_px0": SIDE_PX,
        "patch_mpp": 0.5,
        "patient_id": f"p-{_name(number)}",
        "split": split,
        "status": manifest.OK,
        "reason": "",
        "n_patches": n_patches,
    }


def _drawn(seeds: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Drawn parameters within the policy's range; those of seed 0 are neutral."""
    n, drawn = len(seeds), seeds > 0

    def uniform(least: float, most: float, centre: float) -> np.ndarray:
        first, last = round(least * 65536), round(most * 65536)
        return np.where(drawn, random.integers(first, last + 1, n) / 65536, centre).astype(np.float32)

    found = {name: np.zeros(n, np.int16) for name in ("crop_x_px", "crop_y_px")}
    found |= {name: np.zeros(n, bool) for name in ("hflip", "vflip", "jitter", "blur", "stain")}
    found |= {
        name: uniform(1 - half, 1 + half, 1.0)
        for name, half in (("brightness", 0.15), ("contrast", 0.15), ("saturation", 0.1))
    }
    found |= {"hue": uniform(-0.05, 0.05, 0.0), "sigma": uniform(0.1, 2.0, 0.0)}
    found["order"] = np.where(drawn, random.integers(0, 24, n), 0).astype(np.int8)
    return found | {name: np.ones(n, np.float32) for name in ("stain_h", "stain_e", "stain_d")}


def _colours(kind: int, rows: np.ndarray) -> np.ndarray:
    number = rows + 20_000 * kind
    return np.stack([number >> shift & 255 for shift in (0, 8, 16)], axis=1).astype(np.uint8)


@functools.cache
def _checksums(kind: int, n_patches: int) -> np.ndarray:
    colours = _colours(kind, np.arange(n_patches))
    return np.array([zlib.crc32(colour.tobytes() * SIDE_PX**2) for colour in colours], np.uint32)


def _write_pixels(store: Path, slide_id: str, kind: int, n_patches: int) -> None:
    name, form = layout.pixel_array(slide_id), pixels.form(n_patches, SIDE_PX)
    arrays.ensure_array(store, name, form)
    encoder = Encoder(form.metadata())
    for start in range(0, n_patches, form.chunks[0]):
        colours = _colours(kind, np.arange(start, min(start + form.chunks[0], n_patches)))
        shape = (len(colours), SIDE_PX, SIDE_PX, 3)
        values = np.broadcast_to(colours[:, None, None], shape)
        raw = encoder.chunk((start // form.chunks[0], 0, 0, 0), values)
        files.write_bytes(store / layout.chunk_file(name, (start // form.chunks[0], 0, 0, 0)), raw)


def _link(old: Path, new: Path) -> None:
    for folder, names, files_here in os.walk(old):
        to = new / Path(folder).relative_to(old)
        for name in names:
            (to / name).mkdir()
        for name in files_here:
            os.link(Path(folder) / name, to / name)


@functools.cache
def _blocks(n_rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blocks of features, and their statistics."""
    random = np.random.default_rng(n_rows)
    made = [random.normal(size=(n_rows, DIM)).astype(np.float16) for _ in range(_POOL)]
    return [(values, mean_and_variance(values)) for values in made]


def _write_features(
    store: Path, slide_id: str, coords: np.ndarray, n_seeds: int, random: np.random.Generator
) -> None:
    n_patches = len(coords)
    features.create_slide(store, slide_id, coords.astype(np.int32), n_seeds, DIM)
    names = [layout.feature_array(slide_id, leaf) for leaf in ("features", "stats")]
    specs = [arrays.read_metadata(store, name) for name in names]
    for block in range(features.n_blocks(n_patches)):
        made = _blocks(len(features.block_range(n_patches, block)))
        for seed, number in enumerate(random.integers(0, _POOL, n_seeds).tolist()):
            values, found = made[number]
            write_chunk(store, names[0], specs[0], (seed, block, 0), values[None], np.nan)
            write_chunk(store, names[1], specs[1], (seed, block, 0, 0), found[None, None], np.nan)


def main() -> None:
    """Make one, as asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--slides", type=int, default=SLIDES)
    parser.add_argument("--patches", type=int, default=PATCHES)
    parser.add_argument("--first", type=int, default=0, help="number of the first slide")
    given = parser.parse_args()
    make(given.store, given.slides, given.patches, first=given.first)


if __name__ == "__main__":
    main()
