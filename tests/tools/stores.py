"""Small valid stores without slides or models, and what a store says, whatever its files look like."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stores.format import arrays, attention, features, layout, manifest, pixels, recipe, tokens

DIM, PATCH_PX = 8, 32
RECIPE = recipe.Recipe(
    patch=recipe.Patch(0.5, PATCH_PX, "non-overlapping", 0.5, {"kind": "classical", "version": 1}),
    teacher=recipe.Teacher("t", "ab" * 32, "cls", (0.7, 0.6, 0.7), (0.2, 0.2, 0.2), 28, DIM, "float32"),
    policy={"name": "g2l"},
    reader=recipe.Reader("4.0.1", "5.0.0", "area-integer-1", "made-up", "as stored"),
)


TOKENS = recipe.Tokens(count=3, grid=4, dim=6, rule="tokens-1")
ATTENTION = recipe.Attention(grid=4, rule="attention-1")


def make_store(
    path: Path,
    rows: dict[str, int],
    records: Sequence[range] = (range(3),),
    with_pixels: bool = False,
    own: dict[str, Any] | None = None,
    about: recipe.Tokens | None = None,
    looks: recipe.Attention | None = None,
) -> Path:
    """A store of slides with so many patches each; patch 1 of a slide with more than two could not be read.

    What a slide holds follows from its id alone.

    Parameters
    ----------
    records
        The seeds of the commit records of each block.
    own
        The user's own columns by slide.
    about
        Tokens to make, `TOKENS` for example.
    looks
        Attention to make, `ATTENTION` for example.
    """
    recipe.save(path, replace(RECIPE, tokens=about, attention=looks))
    table = []
    for slide_id, n_rows in rows.items():
        random = np.random.default_rng(list(slide_id.encode()))
        xy = np.stack([np.arange(n_rows) % 7 * 64, np.arange(n_rows) // 7 * 64], axis=1).astype(np.int32)
        tissue = (0.5 + random.random(n_rows) / 2).astype(np.float32)
        split = "val" if slide_id.endswith("v") else "train"
        row = {"slide_id": slide_id, "file_name": f"{slide_id}.tiff", "fingerprint": f"print of {slide_id}"}
        row |= {"patient_id": f"p-{slide_id}", "split": split, "status": "ok" if n_rows else "no_tissue"}
        table.append(
            row | {"n_patches": n_rows, "vendor": "none", "mpp": 0.5, **(own or {}).get(slide_id, {})}
        )
        if not n_rows:
            continue
        manifest.write_patches(path, slide_id, xy[:, 0].copy(), xy[:, 1].copy(), tissue)
        n_seeds = records[-1].stop
        features.create_slide(path, slide_id, xy, n_seeds, DIM)
        values = random.normal(size=(n_seeds, n_rows, DIM)).astype(np.float16)
        crcs = random.integers(0, 1 << 32, (n_seeds, n_rows), dtype=np.uint32)
        bad = {1} if n_rows > 2 else set()
        values[:, list(bad)] = np.nan
        if with_pixels:
            pixels.create_slide(path, slide_id, n_rows, PATCH_PX)
            patches = random.integers(0, 256, (n_rows, PATCH_PX, PATCH_PX, 3), dtype=np.uint8)
            pixels.write_rows(path, slide_id, 0, patches)
        if about is not None:
            write_tokens(path, slide_id, n_rows, n_seeds, about, bad)
        if looks is not None:
            write_attention(path, slide_id, n_rows, n_seeds, looks, bad)
        for block in range(features.n_blocks(n_rows)):
            span = features.block_range(n_rows, block)
            for seeds in records:
                for seed in seeds:
                    features.write_block(path, slide_id, seed, block, values[seed, span.start : span.stop])
                places = [(seed, r) for seed in seeds for r in span]
                columns: dict[str, Any] = {field.name: [0] * len(places) for field in manifest.VIEWS_SCHEMA}
                columns |= {n: [False] * len(places) for n in ("hflip", "vflip", "jitter", "blur", "stain")}
                columns |= {
                    "slide_id": [slide_id] * len(places),
                    "split": [split] * len(places),
                    "seed": [seed for seed, _ in places],
                    "row": [r for _, r in places],
                    "x_px0": [int(xy[r, 0]) for _, r in places],
                    "y_px0": [int(xy[r, 1]) for _, r in places],
                    "tissue": [float(tissue[r]) for _, r in places],
                    "status": ["bad_read" if r in bad else "ok" for _, r in places],
                    "view_crc32": [None if r in bad else int(crcs[seed, r]) for seed, r in places],
                }
                views = pa.table(columns, schema=manifest.VIEWS_SCHEMA)
                manifest.write_commit(path, slide_id, block, seeds, views)
    manifest.write_slides(path, table)
    return path


def write_tokens(
    path: Path, slide_id: str, n_rows: int, n_seeds: int, about: recipe.Tokens, bad: set[int]
) -> None:
    """Tokens that follow from the slide's id alone; none in bad rows."""
    random = np.random.default_rng([1, *slide_id.encode()])
    tokens.create_slide(path, slide_id, n_rows, n_seeds, about)
    values = random.normal(size=(n_seeds, n_rows, about.count, about.dim)).astype(np.float16)
    order = random.random((n_seeds, n_rows, about.grid**2)).argsort(axis=2)[:, :, : about.count]
    places = np.sort(order, axis=2).astype(np.int32)
    values[:, list(bad)], places[:, list(bad)] = np.nan, tokens.NO_POSITION
    size = tokens.chunk_rows(n_rows, about.count, about.dim)
    for seed in range(n_seeds):
        for index in range(-(-n_rows // size)):
            tokens.write_chunk(path, slide_id, seed, index, values[seed, index * size : (index + 1) * size])
        for block in range(features.n_blocks(n_rows)):
            span = features.block_range(n_rows, block)
            tokens.write_positions(path, slide_id, seed, block, places[seed, span.start : span.stop])


def write_attention(
    path: Path, slide_id: str, n_rows: int, n_seeds: int, about: recipe.Attention, bad: set[int]
) -> None:
    """Attention that follows from the slide's id alone; none in bad rows."""
    random = np.random.default_rng([2, *slide_id.encode()])
    attention.create_slide(path, slide_id, n_rows, n_seeds, about)
    values = random.dirichlet(np.ones(1 + about.grid**2), (n_seeds, n_rows))[:, :, 1:].astype(np.float16)
    values[:, list(bad)] = np.nan
    for seed in range(n_seeds):
        for block in range(features.n_blocks(n_rows)):
            span = features.block_range(n_rows, block)
            attention.write_block(path, slide_id, seed, block, values[seed, span.start : span.stop])


def content(store: Path) -> dict[str, str]:
    """A digest of each thing that a store says: recipe, slides, and by slide its patches, views and values."""
    found = {"recipe": recipe.load(store).digest(), "slides": _hash(manifest.read_slides(store))}
    for row in manifest.read_slides(store):
        if row["status"] != manifest.OK:
            continue
        slide_id = row["slide_id"]
        patches = manifest.read_patches(store, slide_id)
        found[f"{slide_id} patches"] = _hash(
            [getattr(patches, n).tolist() for n in manifest.PATCHES_SCHEMA.names]
        )
        parts = [commit.read() for commit in manifest.commits(store, slide_id)]
        views = pa.concat_tables([manifest.VIEWS_SCHEMA.empty_table(), *parts])
        views = views.sort_by([("seed", "ascending"), ("row", "ascending")])
        found[f"{slide_id} views"] = _hash(views.to_pylist())
        if not views.num_rows:
            continue
        opened = features.open_features(store, slide_id)
        found[f"{slide_id} coords"] = _hash(features.read_coords(store, slide_id).tolist())
        found[f"{slide_id} stats"] = hashlib.sha256(
            features.read_stats(store, slide_id).tobytes()
        ).hexdigest()
        values = [
            opened.read_block(s, b)
            for s in range(opened.n_seeds)
            for b in range(features.n_blocks(opened.n_rows))
        ]
        found[f"{slide_id} features"] = hashlib.sha256(np.concatenate(values).tobytes()).hexdigest()
        about = recipe.load(store).tokens
        if about is not None:
            for leaf in tokens.LEAVES:
                held = _whole(store, layout.feature_array(slide_id, leaf))
                found[f"{slide_id} {leaf}"] = hashlib.sha256(held.tobytes()).hexdigest()
        looks = recipe.load(store).attention
        if looks is not None:
            of = attention.open_attention(store, slide_id, looks)
            maps = [
                of.read_block(s, b)
                for s in range(opened.n_seeds)
                for b in range(features.n_blocks(opened.n_rows))
            ]
            found[f"{slide_id} attention"] = hashlib.sha256(np.concatenate(maps).tobytes()).hexdigest()
        if pixels.has_pixels(store, slide_id):
            kept = _whole(store, layout.pixel_array(slide_id))
            found[f"{slide_id} pixels"] = hashlib.sha256(kept.tobytes()).hexdigest()
    return found


def _whole(store: Path, name: str) -> npt.NDArray[Any]:
    """All of an array, also of a store behind a URL."""
    spec = arrays.read_metadata(store, name)
    return np.asarray(arrays.open_checked(store, name, len(spec.shape), str(spec.dtype))[...])


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def files_of(store: Path) -> dict[str, bytes]:
    """Every file, by its name below the store."""
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}
