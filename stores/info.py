"""What a store holds, in figures."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stores.errors import CorruptStore
from stores.format import features, layout, manifest, qc, recipe
from stores.format.arrays import read_metadata
from stores.format.figures import COLUMNS, Figures
from stores.format.index import Index, read_index, sizes_of
from stores.io.location import StoreLike, read_file, walk
from stores.io.text import counted, human_bytes, one_line, unusable_lines


def store_info(store: StoreLike) -> dict[str, Any]:
    """Recipe, slides, patches, views per seed and split, statistics, bytes and completeness, as JSON types.

    Raises
    ------
    StoreError
        When `store` is not one.
    """
    stored = recipe.load(store)
    slides = manifest.read_slides(store)
    of_slide = {row["slide_id"]: row for row in slides}
    index, about = _index_of(store)
    if index is None:
        counts, statistics = _read(store)
    else:
        counts = index.count_views(of_slide)
        statistics = None if index.statistics is None else dict(index.statistics)
    ok = [c for c in counts if c["status"] == manifest.OK]
    n_patches = sum(row["n_patches"] for row in slides)
    seeds = sorted({c["seed"] for c in counts})
    n_views = sum(c["views"] for c in counts)
    size, n_files = _sizes(store, index)
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
        "statistics": statistics,
        "bytes": size,
        "files": n_files,
        "packed": _is_packed(store, slides),
        "index": about,
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
        *([f"index     {info['index']}"] if info["index"].startswith("not used") else []),
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


def _index_of(store: StoreLike) -> tuple[Index | None, str]:
    """The index, if it fits, and what is said of it."""
    try:
        index = read_index(store)
    except CorruptStore as error:
        return None, f"not used: {str(error).removeprefix(f'{store}/')}"
    if index is None:
        return None, "none"
    for folder, n_bytes in index.bytes.items():
        found = read_file(store, layout.metadata_file(folder), layout.MAX_METADATA_BYTES) is not None
        if found != (n_bytes > 0):
            about = f"{layout.INDEX} says that {folder} has {n_bytes} bytes; run `g2l store reindex`"
            return None, f"not used: {about}"
    return index, counted(sum(1 for _ in index.records()), "commit record")


def _read(store: StoreLike) -> tuple[list[dict[str, Any]], dict[str, float] | None]:
    """Numbers of views, and figures on their features; each commit record is read once."""
    figures = Figures()

    def tables() -> Iterator[pa.Table]:
        slide_id, stats = "", np.empty(0)
        for commit in manifest.commits(store):
            table = commit.read([*manifest.COUNTED, *COLUMNS])
            if commit.slide_id != slide_id:
                slide_id, stats = commit.slide_id, features.read_stats(store, commit.slide_id)
            figures.add(commit, table, stats)
            yield table

    return manifest.count(tables()).to_pylist(), figures.to_json(store)


def _sizes(store: StoreLike, index: Index | None) -> tuple[dict[str, int], int]:
    """Bytes of features, pixels and manifest, and the number of all files; what is in the index is not listed."""
    if index is None:
        listed, size, n_files = layout.list_files(store, only_plain=False), {}, {}
    else:
        size, n_files = dict(index.bytes), dict(index.files)
        if isinstance(store, Path):
            others = [name for name in os.listdir(store) if name not in size]
            listed = dict(walk(store, lambda name, what: None, *others))
        else:
            listed = store.list_files(beside=size)
    size = size or sizes_of(listed)[0]
    size[layout.MANIFEST] = sum(n for name, n in listed.items() if name.startswith(f"{layout.MANIFEST}/"))
    return size, len(listed) + sum(n_files.values())


def _sums(pairs: Any) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for key, value in pairs:
        total[key] += value
    return dict(sorted(total.items()))
