"""A small store without any fault, made of random pixels and features: what `tests.conformance.hostile` damages.

Views are drawn and rendered as the recipe says, so that also a check of views finds nothing. Two slides for training
(one with a patch that could not be read), one for validation, one without tissue.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.encoders.attention import ATTENTION_RULE
from pipeline.tile.grid import morton_order
from pipeline.views.draw import RENDERING, TOKEN_RULE, draw, draw_tokens
from pipeline.views.policy import Policy
from pipeline.views.render import render, view_crc32
from stores.format import attention, features, manifest, pixels, recipe, tokens
from stores.io import files

DIM, SIZE_PX, CROP_PX, PATCH_PX0, N_SEEDS = 8, 20, 16, 40, 2
POLICY = Policy(
    "small",
    patch_px=SIZE_PX,
    crop_px=CROP_PX,
    hflip_p=0.5,
    vflip_p=0.5,
    jitter_p=0.5,
    brightness=0.15,
    contrast=0.15,
    saturation=0.1,
    hue=0.05,
    blur_p=0.1,
    blur_kernel_px=9,
)
TOKENS = recipe.Tokens(count=3, grid=4, dim=6, rule=TOKEN_RULE)
ATTENTION = recipe.Attention(grid=4, rule=ATTENTION_RULE)
RECIPE = recipe.Recipe(
    patch=recipe.Patch(0.5, SIZE_PX, "non-overlapping", 0.25, {"kind": "made-up"}),
    teacher=recipe.Teacher(
        "made-up", "ab" * 32, "cls", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), CROP_PX, DIM, "float32"
    ),
    policy=POLICY.to_json(),
    reader=recipe.Reader("4.0.1", "5.0.0", "area-integer-1", RENDERING, "as stored"),
    tokens=TOKENS,
)


@dataclass(frozen=True, slots=True)
class Slide:
    """A slide of the store; everything else follows from its id."""

    slide_id: str
    n_rows: int
    split: str = "train"
    bad: tuple[int, ...] = ()
    """Rows that could not be read."""
    moved: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Places of some rows, x and y in level-0 pixels, instead of those on the grid."""
    tissue: Mapping[int, float] = field(default_factory=dict)
    """Share of tissue of some rows."""


SLIDES = (Slide("a", 40, bad=(3,)), Slide("b", 33), Slide("c", 5, "val"))


def make(store: Path, slides: tuple[Slide, ...] = SLIDES, about: recipe.Attention | None = None) -> Path:
    """Write the store; `about` is the attention that it keeps, if any."""
    recipe.save(store, replace(RECIPE, attention=about))
    files.write_json(store / "options/tile.json", {"val": 0.1})
    files.write_json(store / "options/extract-teacher.json", {"pixels": True, "teacher_licence": "CC0-1.0"})
    nothing = {**_row(Slide("d", 0)), "status": "no_tissue", "reason": "no tissue", "n_patches": 0}
    manifest.write_slides(store, [*(_write_slide(store, slide, about) for slide in slides), nothing])
    return store


def _row(slide: Slide) -> dict[str, Any]:
    return {
        "slide_id": slide.slide_id,
        "file_name": f"{slide.slide_id}.svs",
        "fingerprint": f"sha256:{slide.slide_id * 64}",
        "vendor": "aperio",
        "width_px0": 400,
        "height_px0": 410,
        "mpp": 0.25,
        "mpp_source": "slide",
        "patch_px0": PATCH_PX0,
        "patch_mpp": 0.5,
        "patient_id": f"p-{slide.slide_id}",
        "split": slide.split,
        "status": "ok",
        "reason": "",
        "n_patches": slide.n_rows,
        "site": "here",
    }


def _write_slide(store: Path, slide: Slide, about: recipe.Attention | None) -> dict[str, Any]:
    row, n = _row(slide), slide.n_rows
    random = np.random.default_rng(list(slide.slide_id.encode()))
    col, line = np.divmod(np.arange(100), 10)
    order = morton_order(col, line)[:n]
    xy = np.stack([col[order], line[order]], axis=1).astype(np.int32) * PATCH_PX0
    tissue = (0.5 + random.random(n) / 2).astype(np.float32)
    for at, place in slide.moved.items():
        xy[at] = place
    for at, share in slide.tissue.items():
        tissue[at] = share
    patches = random.integers(0, 256, (n, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    values = random.normal(size=(N_SEEDS, n, DIM)).astype(np.float16)
    of_tokens = random.normal(size=(N_SEEDS, n, TOKENS.count, TOKENS.dim)).astype(np.float16)
    places = np.full((N_SEEDS, n, TOKENS.count), tokens.NO_POSITION, np.int32)
    records = []
    for seed in range(N_SEEDS):
        for at in range(n):
            key = POLICY, row["fingerprint"], int(xy[at, 0]), int(xy[at, 1]), seed
            params = draw(*key)
            read = at not in slide.bad
            crc = view_crc32(render(patches[at], params, POLICY)) if read else None
            if read:
                places[seed, at] = draw_tokens(*key, TOKENS.count, TOKENS.grid**2)
            drawn = {name: getattr(params, name) for name in manifest.DRAWN_SCHEMA.names}
            records.append(
                {
                    "slide_id": slide.slide_id,
                    "row": at,
                    "x_px0": int(xy[at, 0]),
                    "y_px0": int(xy[at, 1]),
                    "seed": seed,
                    "split": slide.split,
                    "tissue": float(tissue[at]),
                    "status": manifest.OK if read else manifest.BAD_READ,
                    "view_crc32": crc,
                    **drawn,
                }
            )
    bad = list(slide.bad)
    values[:, bad], of_tokens[:, bad], patches[bad] = np.nan, np.nan, 0
    _write_arrays(store, slide.slide_id, xy, values, of_tokens, places, patches)
    if about is not None:
        looks = random.dirichlet(np.ones(1 + about.grid**2), (N_SEEDS, n))[:, :, 1:].astype(np.float16)
        looks[:, bad] = np.nan
        attention.create_slide(store, slide.slide_id, n, N_SEEDS, about)
        for seed in range(N_SEEDS):
            attention.write_block(store, slide.slide_id, seed, 0, looks[seed])
    manifest.write_patches(store, slide.slide_id, xy[:, 0].copy(), xy[:, 1].copy(), tissue)
    table = pa.Table.from_pylist(records, schema=manifest.VIEWS_SCHEMA)
    manifest.write_commit(store, slide.slide_id, 0, range(N_SEEDS), table)
    return row


def _write_arrays(
    store: Path,
    slide_id: str,
    xy: npt.NDArray[np.int32],
    values: npt.NDArray[np.float16],
    of_tokens: npt.NDArray[np.float16],
    places: npt.NDArray[np.int32],
    patches: npt.NDArray[np.uint8],
) -> None:
    n = len(xy)
    tokens.create_slide(store, slide_id, n, N_SEEDS, TOKENS)
    pixels.create_slide(store, slide_id, n, SIZE_PX)
    features.create_slide(store, slide_id, xy, N_SEEDS, DIM)
    features.write_seeds(store, slide_id, range(N_SEEDS), 0, values)
    for seed in range(N_SEEDS):
        tokens.write_chunk(store, slide_id, seed, 0, of_tokens[seed])
        tokens.write_positions(store, slide_id, seed, 0, places[seed])
    pixels.write_rows(store, slide_id, 0, patches)
