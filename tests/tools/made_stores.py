"""Small valid stores without any slide or model: written by the functions of `stores` alone, in milliseconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stores.format import features, manifest, pixels, recipe
from stores.io import files

DIM, SIZE_PX = 8, 16
TEACHER = recipe.Teacher("made-up", "0" * 64, "cls", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 14, DIM, "float32")
RECIPE = recipe.Recipe(
    recipe.Patch(0.5, SIZE_PX, "non-overlapping", 0.5, {"name": "made-up"}),
    TEACHER,
    {"name": "made-up"},
    recipe.Reader("4", "5", "r-1", "v-1", "as stored"),
)


@dataclass(frozen=True, slots=True)
class MadeSlide:
    """A slide of a made-up store; all values follow from the id."""

    slide_id: str
    n_rows: int = 40
    bad: Sequence[int] = ()
    """Rows that could not be read."""
    n_seeds: int = 3
    seeds_apart: int | None = None
    """Seeds of the first of two commit records of each block; one record when None."""
    blocks: int | None = None
    """Only the first blocks are extracted."""
    pixels: bool = False
    status: str = "ok"
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Own columns, and columns to overwrite."""


def make_store(
    store: Path, slides: Sequence[MadeSlide], stored: recipe.Recipe = RECIPE, **options: Any
) -> Path:
    """Write a store of `slides`; `options` go into ``options/extract-teacher.json``."""
    recipe.save(store, stored)
    files.write_json(store / "options" / "tile.json", {"val": 0.1})
    files.write_json(store / "options" / "extract-teacher.json", {"pixels": False, **options})
    manifest.write_slides(store, [_add_slide(store, slide) for slide in slides])
    return store


def rows_of(slide: MadeSlide) -> tuple[manifest.Patches, npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """Patches, features (seed, row, dim) and pixels (row, side, side, 3) of a slide."""
    rng = np.random.default_rng(list(slide.slide_id.encode()))
    n = slide.n_rows
    x, y = (np.arange(n, dtype=np.int32) * step for step in (256, 512))
    patches = manifest.Patches(x, y, (0.5 + rng.random(n, np.float32) / 2).astype(np.float32))
    values = rng.normal(size=(8, n, DIM)).astype(np.float16)
    values[:, list(slide.bad)] = np.nan
    patch_pixels = rng.integers(0, 256, (n, SIZE_PX, SIZE_PX, 3), np.uint8)
    patch_pixels[list(slide.bad)] = 0
    return patches, values, patch_pixels


def _add_slide(store: Path, slide: MadeSlide) -> dict[str, Any]:
    row = {
        "slide_id": slide.slide_id,
        "file_name": f"{slide.slide_id}.svs",
        "fingerprint": f"fingerprint of {slide.slide_id}",
        "vendor": "aperio",
        "width_px0": 1 << 20,
        "height_px0": 1 << 20,
        "mpp": 0.5,
        "mpp_source": "slide",
        "patch_px0": SIZE_PX,
        "patch_mpp": 0.5,
        "patient_id": f"p-{slide.slide_id}",
        "split": "train",
        "status": slide.status,
        "reason": "" if slide.status == "ok" else "made so",
        "n_patches": slide.n_rows if slide.status == "ok" else 0,
        **slide.columns,
    }
    if slide.status != "ok":
        return row
    patches, values, patch_pixels = rows_of(slide)
    manifest.write_patches(store, slide.slide_id, patches.x_px0, patches.y_px0, patches.tissue)
    (store / "pictures").mkdir(exist_ok=True)
    (store / "pictures" / f"{slide.slide_id}.png").write_bytes(slide.slide_id.encode())
    blocks = features.n_blocks(slide.n_rows) if slide.blocks is None else slide.blocks
    if not slide.n_seeds or not blocks:
        return row
    coords = np.stack([patches.x_px0, patches.y_px0], axis=1)
    features.create_slide(store, slide.slide_id, coords, slide.n_seeds, DIM)
    if slide.pixels:
        pixels.create_slide(store, slide.slide_id, slide.n_rows, SIZE_PX)
    apart = min(slide.seeds_apart or slide.n_seeds, slide.n_seeds)
    for block in range(blocks):
        rows = features.block_range(slide.n_rows, block)
        for seed in range(slide.n_seeds):
            features.write_block(store, slide.slide_id, seed, block, values[seed, rows.start : rows.stop])
        if slide.pixels:
            pixels.write_rows(store, slide.slide_id, rows.start, patch_pixels[rows.start : rows.stop])
        for seeds in (range(apart), range(apart, slide.n_seeds)):
            if seeds:
                table = views_of(slide, patches, rows, seeds, row["split"])
                manifest.write_commit(store, slide.slide_id, block, seeds, table)
    return row


def views_of(slide: MadeSlide, patches: manifest.Patches, rows: range, seeds: range, split: str) -> pa.Table:
    """The rows of a commit record, ordered by seed, then row."""
    places = [(seed, row) for seed in seeds for row in rows]
    at = np.array([row for _, row in places])
    columns: dict[str, Any] = {name: [0] * len(places) for name in manifest.DRAWN_SCHEMA.names}
    columns |= {name: [False] * len(places) for name in ("hflip", "vflip", "jitter", "blur", "stain")}
    columns |= {
        "slide_id": [slide.slide_id] * len(places),
        "row": at,
        "x_px0": patches.x_px0[at],
        "y_px0": patches.y_px0[at],
        "seed": [seed for seed, _ in places],
        "split": [split] * len(places),
        "tissue": patches.tissue[at],
        "status": [manifest.BAD_READ if row in slide.bad else manifest.OK for _, row in places],
        "view_crc32": [None if row in slide.bad else row * 7 + seed for seed, row in places],
        "hue": [row / 64 + seed for seed, row in places],
    }
    return pa.table(
        {name: columns[name] for name in manifest.VIEWS_SCHEMA.names}, schema=manifest.VIEWS_SCHEMA
    )
