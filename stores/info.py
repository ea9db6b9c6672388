"""What a store holds, in figures."""

from collections import defaultdict
from typing import Any

from stores import layout, manifest, recipe
from stores.location import StoreLike


def store_info(store: StoreLike) -> dict[str, Any]:
    """Recipe, slides, patches, views per seed and split, bytes and completeness, as JSON types.

    Raises
    ------
    StoreError
        When `store` is not one.
    """
    stored = recipe.load(store)
    slides = manifest.read_slides(store)
    counts = manifest.count_views(store).to_pylist()
    ok = [c for c in counts if c["status"] == manifest.OK]
    n_patches = sum(row["n_patches"] for row in slides)
    seeds = sorted({c["seed"] for c in counts})
    n_views = sum(c["views"] for c in counts)
    size = dict.fromkeys(("features.zarr", "pixels.zarr", "manifest"), 0)
    for name, n_bytes in layout.list_files(store, only_plain=False).items():
        folder = name.split("/")[0]
        if folder in size:
            size[folder] += n_bytes
    return {
        "path": str(store),
        "recipe_digest": stored.digest() if stored.complete else None,
        "recipe": stored.to_json(),
        "slides": len(slides),
        "slides_by_status": _sums((row["status"], 1) for row in slides),
        "slides_unusable": {r["slide_id"]: r["reason"] for r in slides if r["status"] != manifest.OK},
        "patients": len({row["patient_id"] for row in slides if row["status"] == manifest.OK}),
        "patches": n_patches,
        "patches_by_split": _sums((row["split"], row["n_patches"]) for row in slides),
        "seeds": seeds,
        "views": sum(c["views"] for c in ok),
        "views_by_seed_and_split": {
            str(seed): _sums((c["split"], c["views"]) for c in ok if c["seed"] == seed) for seed in seeds
        },
        "bad_reads": n_views - sum(c["views"] for c in ok),
        "complete": n_views / (n_patches * len(seeds)) if n_patches and seeds else 0.0,
        "bytes": size,
        "bytes_per_view": (size["features.zarr"] + size["manifest"]) / n_views if n_views else None,
    }


def _sums(pairs: Any) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for key, value in pairs:
        total[key] += value
    return dict(sorted(total.items()))
