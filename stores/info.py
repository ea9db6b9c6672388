"""What a store holds, in figures."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from stores.errors import CorruptStore
from stores.format import features, layout, manifest, qc, recipe
from stores.format.arrays import read_metadata
from stores.format.statistics import RunningStats
from stores.io.location import StoreLike, read_file
from stores.io.text import counted, human_bytes, one_line, unusable_lines

CONSTANT = 1e-6
"""A dimension with a smaller standard deviation counts as constant."""


def store_info(store: StoreLike) -> dict[str, Any]:
    """Recipe, slides, patches, views per seed and split, statistics, bytes and completeness, as JSON types.

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
    size = dict.fromkeys((layout.FEATURES, layout.PIXELS, layout.MANIFEST), 0)
    listed = layout.list_files(store, only_plain=False)
    for name, n_bytes in listed.items():
        folder = name.split("/")[0]
        if folder in size:
            size[folder] += n_bytes
    judged = qc.summary(store, slides)
    return {
        "path": str(store),
        "recipe_digest": stored.digest() if stored.complete else None,
        "seal_digest": layout.seal_digest(store),
        "recipe": stored.to_json(),
        "slides": len(slides),
        "slides_by_status": _sums((row["status"], 1) for row in slides),
        "slides_unusable": {r["slide_id"]: r["reason"] or "" for r in slides if r["status"] != manifest.OK},
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
        "statistics": statistics(store),
        "bytes": size,
        "files": len(listed),
        "packed": _is_packed(store, slides),
        "bytes_per_view": (size[layout.FEATURES] + size[layout.MANIFEST]) / n_views if n_views else None,
    } | ({} if judged is None else {"qc": judged})


def info_lines(info: Mapping[str, Any]) -> list[str]:
    """What `store_info` found, to read."""
    recipe_json, found = info["recipe"], info["statistics"]
    teacher = recipe_json["teacher"] or {"name": "none yet", "weights_sha256": "", "dim": 0, "dtype": "-"}
    lines = [
        f"store     {info['path']}",
        f"recipe    {info['recipe_digest'] or 'incomplete: no teacher yet'}",
        f"seal      {info['seal_digest'] or 'none'}",
        f"teacher   {one_line(teacher['name'])}, {teacher['dim']}-d, {one_line(teacher['dtype'])}, "
        f"weights {one_line(teacher['weights_sha256'], 16)}",
        f"patch     {recipe_json['patch']['size_px']} px at {recipe_json['patch']['mpp']:g} mpp",
    ]
    if (declared := recipe_json.get("declared")) is not None:
        lines.append(
            f"declared  imported from files of {one_line(declared['by'])}: teacher and views are what was declared; "
            "a sample is proven by `g2l store verify --teacher`"
        )
    if (kept := recipe_json.get("tokens")) is not None:
        grid = f"{kept['grid']}x{kept['grid']}"
        lines.append(f"tokens    {kept['count']} of {grid} patch tokens a view, {kept['dim']}-d")
    if (kept := recipe_json.get("attention")) is not None:
        lines.append(f"attention of the class token to {kept['grid']}x{kept['grid']} patches of a view")
    lines += [
        f"slides    {info['slides']} ({_join(info['slides_by_status'])}), {counted(info['patients'], 'patient')}",
        f"patches   {info['patches']} ({_join(info['patches_by_split'])})",
        f"views     {info['views']}, {info['complete']:.1%} complete, {counted(info['bad_reads'], 'bad read')}",
        *(f"  seed {seed:>3} {_join(splits)}" for seed, splits in info["views_by_seed_and_split"].items()),
        "bytes     " + ", ".join(f"{name} {human_bytes(size)}" for name, size in info["bytes"].items()),
        f"files     {info['files']}"
        + (", packed: read only, `g2l store export --loose` undoes it" if info["packed"] else ""),
    ]
    if found:
        lines.append(
            f"features  per dimension: mean {found['mean_min']:.3g} to {found['mean_max']:.3g}, standard deviation "
            f"{found['std_min']:.3g} to {found['std_max']:.3g} (median {found['std_median']:.3g}), "
            f"{found['constant_dimensions']} constant"
        )
        if "tissue_p50" in found and "declared" not in recipe_json:
            share = "{tissue_p05:.0%}, {tissue_p50:.0%}, {tissue_p95:.0%}".format(**found)
            lines.append(f"tissue    {share} of a patch (5th, 50th and 95th percentile)")
    if "qc" in info:
        lines += qc.lines(info["qc"])
    if info["bytes_per_view"]:
        lines.append(f"          {info['bytes_per_view']:.0f} B a view, manifest included")
    return lines + unusable_lines(info["slides_unusable"])


def _is_packed(store: StoreLike, slides: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the features of the first slide that has any are in shards."""
    for row in slides:
        name = layout.feature_array(row["slide_id"], "features")
        if row["status"] == manifest.OK and read_file(
            store, layout.metadata_file(name), layout.MAX_METADATA_BYTES
        ):
            return read_metadata(store, name).shard is not None
    return False


def _join(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{one_line(name)} {count}" for name, count in counts.items())


def statistics(store: StoreLike) -> dict[str, float] | None:
    """A few figures on the features' mean and standard deviation per dimension, over all committed views.

    None while there are no features. The share of tissue is that of patches with a committed view of seed 0.

    Raises
    ------
    CorruptStore
        When statistics of a committed block are missing or damaged, or impossible for float16 features.
    """
    running = RunningStats()
    tissue: list[npt.NDArray[np.float32]] = []
    stats: dict[str, npt.NDArray[np.float64]] = {}
    for commit in manifest.commits(store):
        table = commit.read(["row", "seed", "status", "tissue"])
        if commit.slide_id not in stats:
            stats = {commit.slide_id: features.read_stats(store, commit.slide_id)}
        for seed in commit.seeds:
            n_rows = len(manifest.ok_rows(table, seed))
            if n_rows:
                slide_id, dim = commit.slide_id, len(running.mean) if running.count else None
                running.add(
                    n_rows, *features.stats_of_block(stats[slide_id], slide_id, seed, commit.block, dim)
                )
        if commit.seeds.start == 0:
            tissue.append(table.filter(pc.equal(table["seed"], 0))["tissue"].to_numpy())
    if not running.count:
        return None
    std = np.sqrt(running.variance)
    share = np.concatenate(tissue) if tissue else np.zeros(0, np.float32)
    if not np.isfinite(share).all():
        raise CorruptStore(f"{store}/{layout.VIEWS}: a share of tissue is not a number")
    found = {
        "views": running.count,
        "mean_min": float(running.mean.min()),
        "mean_max": float(running.mean.max()),
        "mean_abs_mean": float(np.abs(running.mean).mean()),
        "std_min": float(std.min()),
        "std_median": float(np.median(std)),
        "std_max": float(std.max()),
        "constant_dimensions": int((std < CONSTANT).sum()),
    }
    if len(share):
        found |= {f"tissue_p{q:02d}": float(np.quantile(share, q / 100)) for q in (5, 50, 95)}
    return found


def _sums(pairs: Any) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for key, value in pairs:
        total[key] += value
    return dict(sorted(total.items()))
