"""What the commands print when they are done: one function for JSON, one for people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stores.combine.copy_slide import Shared
from stores.info import store_info
from stores.io.text import human_bytes, one_line
from stores.verify.reindex import Reindexed

_SHOWN = 20


def tile_json(store: Path, result: Any) -> dict[str, Any]:
    """The summary of ``tile``."""
    usable = [row for row in result.slides if row["status"] == "ok"]
    return {
        "store": str(store),
        "slides": len(result.slides),
        "slides_usable": len(usable),
        "patches": result.n_patches,
        "patches_by_slide": {row["slide_id"]: row["n_patches"] for row in result.slides},
        "splits": {split: sum(row["split"] == split for row in usable) for split in ("train", "val", "test")},
        "unusable": {row["slide_id"]: row["reason"] for row in result.unusable},
    }


def tile_lines(store: Path, result: Any) -> list[str]:
    """The summary of ``tile`` for people."""
    summary = tile_json(store, result)
    splits = ", ".join(f"{name} {count}" for name, count in summary["splits"].items() if count)
    lines = [
        f"{summary['slides_usable']} of {summary['slides']} slides usable, {summary['patches']} patches; "
        f"slides by split: {splits or 'none'}",
        f"pictures: {store / 'pictures'}",
    ]
    return lines + _reasons(summary["unusable"])


def _reasons(unusable: Mapping[str, str]) -> list[str]:
    if not unusable:
        return []
    return [
        f"{len(unusable)} slides could not be used:",
        *(f"  {_named(name, why)}" for name, why in unusable.items()),
    ]


def _named(slide_id: str, reason: str) -> str:
    said = one_line(reason, 500) or "no reason given"
    return said if said.startswith(slide_id) else f"{slide_id}: {said}"


def extract_json(store: Path, result: Any) -> dict[str, Any]:
    """The summary of ``extract-teacher``."""
    info = store_info(store)
    return {
        "store": str(store),
        "recipe_digest": info["recipe_digest"],
        "views": info["views"],
        "views_new": result.views,
        "views_before": result.views_before,
        "complete": info["complete"],
        "bytes": info["bytes"],
        "bytes_per_view": info["bytes_per_view"],
        "seconds": result.seconds,
        "views_per_s": result.views / result.seconds if result.views else None,
        "data_wait": result.wait_seconds / result.device_seconds if result.views else None,
        "bad_reads": result.bad_reads,
        "failed_blocks": result.failed_blocks,
        "unusable": result.failed_slides,
        **result.figures,
    }


def extract_lines(store: Path, result: Any) -> list[str]:
    """The summary of ``extract-teacher`` for people."""
    summary = extract_json(store, result)
    lines = [
        f"{summary['views']} views in {store} ({summary['views_new']} new, {summary['views_before']} found done), "
        f"{summary['complete']:.1%} of all patches; recipe {summary['recipe_digest'][:12]}"
    ]
    if summary["views_new"]:
        lines.append(
            f"{summary['views_per_s']:.1f} views/s, waited for data {summary['data_wait']:.1%} of the time; "
            f"{human_bytes(summary['bytes_per_view'])} a view, peak memory {human_bytes(summary['peak_rss_bytes'])}"
        )
    return lines + _bad_reads(summary) + _failed_blocks(summary) + _reasons(summary["unusable"])


def embed_json(out: Path, result: Any) -> dict[str, Any]:
    """The summary of ``embed``."""
    return {
        "out": str(out),
        "embeddings": str(out / "embeddings"),
        "dim": result.dim,
        "published": result.published,
        "patches_new": result.views,
        "patches_before": result.views_before,
        "seconds": result.seconds,
        "views_per_s": result.views / result.seconds if result.views else None,
        "data_wait": result.wait_seconds / result.device_seconds if result.views else None,
        "bad_reads": result.bad_reads,
        "failed_blocks": result.failed_blocks,
        "unusable": result.failed_slides,
        **result.figures,
    }


def embed_lines(out: Path, result: Any) -> list[str]:
    """The summary of ``embed`` for people."""
    summary = embed_json(out, result)
    lines = [
        f"{summary['patches_new'] + summary['patches_before']} patches ({summary['patches_new']} new, "
        f"{summary['patches_before']} found done), {summary['dim']} numbers each; "
        f"{summary['published']} published in {summary['embeddings']}"
    ]
    if summary["patches_new"]:
        lines.append(
            f"{summary['views_per_s']:.1f} views/s, waited for data {summary['data_wait']:.1%} of the time, "
            f"peak memory {human_bytes(summary['peak_rss_bytes'])}"
        )
    return lines + _bad_reads(summary) + _failed_blocks(summary) + _reasons(summary["unusable"])


def _bad_reads(summary: Mapping[str, Any]) -> list[str]:
    if not summary["bad_reads"]:
        return []
    return [
        f"{len(summary['bad_reads'])} patches could not be read (status bad_read):",
        *(f"  {one_line(text, 300)}" for text in summary["bad_reads"][:20]),
    ]


def _failed_blocks(summary: Mapping[str, Any]) -> list[str]:
    if not summary["failed_blocks"]:
        return []
    return [
        f"{len(summary['failed_blocks'])} blocks failed twice; start the same command again to try them:",
        *(f"  {name}: {one_line(why, 300)}" for name, why in list(summary["failed_blocks"].items())[:20]),
    ]


def distill_lines(run: Path, summary: Mapping[str, Any]) -> list[str]:
    """The summary of ``distill`` for people."""
    early = ", stopped early" if summary["stopped_early"] else ""
    lines = [
        f"{summary['steps']} of {summary['steps_planned']} steps{early}: "
        f"loss {summary['loss_first']:.3f} -> {summary['loss_last']:.3f}"
    ]
    if summary["cka_after"] is not None:
        held_out = [f"CKA to the teacher {summary['cka_before']:.3f} -> {summary['cka_after']:.3f}"]
        if summary["cosine_after"] is not None:
            held_out.insert(0, f"cosine {summary['cosine_before']:.3f} -> {summary['cosine_after']:.3f}")
        if "cka_ema_after" in summary:
            held_out.append(f"of the moving average {summary['cka_ema_after']:.3f}")
        lines.append(f"held out: {', '.join(held_out)}")
    lines.append(
        f"{summary['views_per_s']:.1f} views/s, waited for data {summary['data_wait']:.1%} of the time, "
        f"peak memory {human_bytes(summary['peak_rss_bytes'])}"
    )
    return [*lines, f"student: {run / 'student'}", f"curves: {run / 'curves.png'}"]


def info_lines(store: Any, info: Mapping[str, Any]) -> list[str]:
    """``store info`` for people."""
    recipe = info["recipe"]
    teacher = recipe["teacher"] or {"name": "none yet", "weights_sha256": "", "dim": 0, "dtype": "-"}
    lines = [
        f"store     {store}",
        f"recipe    {info['recipe_digest'] or 'incomplete: no teacher yet'}",
        f"teacher   {one_line(teacher['name'])}, {teacher['dim']}-d, {one_line(teacher['dtype'])}, "
        f"weights {one_line(teacher['weights_sha256'], 16)}",
        f"patch     {recipe['patch']['size_px']} px at {recipe['patch']['mpp']:g} mpp",
        *_token_lines(recipe.get("tokens")),
        f"slides    {info['slides']} ({_join(info['slides_by_status'])}), {info['patients']} patients",
        f"patches   {info['patches']} ({_join(info['patches_by_split'])})",
        f"views     {info['views']}, {info['complete']:.1%} complete, {info['bad_reads']} bad reads",
    ]
    lines += [f"  seed {seed:>3} {_join(splits)}" for seed, splits in info["views_by_seed_and_split"].items()]
    lines.append(
        "bytes     " + ", ".join(f"{name} {human_bytes(size)}" for name, size in info["bytes"].items())
    )
    if info["statistics"]:
        found = info["statistics"]
        lines.append(
            f"features  per dimension: mean {found['mean_min']:.3g} to {found['mean_max']:.3g}, standard deviation "
            f"{found['std_min']:.3g} to {found['std_max']:.3g} (median {found['std_median']:.3g}), "
            f"{found['constant_dimensions']} constant"
        )
        if "tissue_p50" in found:
            share = "{tissue_p05:.0%}, {tissue_p50:.0%}, {tissue_p95:.0%}".format(**found)
            lines.append(f"tissue    {share} of a patch (5th, 50th and 95th percentile)")
    if info["bytes_per_view"]:
        lines.append(f"          {info['bytes_per_view']:.0f} B a view, manifest included")
    return lines + _reasons(info["slides_unusable"])


def _token_lines(tokens: Mapping[str, Any] | None) -> list[str]:
    if tokens is None:
        return []
    grid = f"{tokens['grid']}x{tokens['grid']}"
    return [f"tokens    {tokens['count']} of {grid} patch tokens a view, {tokens['dim']}-d"]


def _join(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{one_line(name)} {count}" for name, count in counts.items())


def export_json(result: Any) -> dict[str, Any]:
    """The outcome of ``store export``; the names that were replaced are not in it."""
    names = ("slides", "patches", "files", "bytes", "left_out", "compact", "notes")
    return {name: getattr(result, name) for name in names}


def export_lines(out: Path, result: Any) -> list[str]:
    """The outcome of ``store export`` for people."""
    lines = [
        f"{out}: {result.slides} slides, {result.patches} patches; {result.files} files, {human_bytes(result.bytes)}"
    ]
    if result.compact:
        error = result.compact
        lines.append(
            f"int8: relative error {error['relative_error']:.2%} on average, {error['max_relative_error']:.2%} at most"
        )
        if "nn10_overlap" in error:
            lines.append(f"      {error['nn10_overlap']:.1%} of the 10 nearest neighbours stay the same")
    lines += [f"note: {text}" for text in result.notes]
    return lines + [f"left out, no file of a store: {name!r:.200}" for name in result.left_out]


def transfer_lines(where: str, result: Any) -> list[str]:
    """``store push`` and ``store pull`` for people."""
    size = human_bytes(result.bytes)
    return [
        f"{where}: {result.files} files, {size}; {result.there_before} of them were there from an earlier run",
        f"proved by: {result.proof}",
        *(f"left out, no file of a store: {name!r:.200}" for name in result.left_out),
    ]


def verify_json(store: Any, result: Any) -> dict[str, Any]:
    """The outcome of ``store verify``."""
    structure = result.structure
    return {
        "store": str(store),
        "ok": not result.findings,
        "findings": [finding.to_json() for finding in result.findings],
        "slides": structure.slides,
        "views": structure.views,
        "bytes": structure.bytes,
        "sealed": structure.sealed,
        "views_checked": result.views_checked,
        "features_checked": result.features_checked,
        "cosine_min": result.cosine_min,
        "error_max": result.error_max,
        "notes": result.notes,
        "repaired": result.repaired,
    }


def verify_lines(store: Any, result: Any) -> list[str]:
    """The outcome of ``store verify`` for people."""
    structure = result.structure
    sealed = "sealed, checksums compared" if structure.sealed else "not sealed"
    lines = [
        *(f"repaired: {text}" for text in result.repaired),
        f"structure: {structure.slides} slides, {structure.views} views, {human_bytes(structure.bytes)} read; {sealed}",
    ]
    if result.views_checked:
        lines.append(f"views: {result.views_checked} rendered again and compared")
    if result.features_checked:
        lines.append(
            f"teacher: {result.features_checked} features computed again; smallest cosine {result.cosine_min:.6f}, "
            f"largest difference {result.error_max:.2e}"
        )
    lines += [f"note: {text}" for text in result.notes]
    lines += [f"wrong: {finding}" for finding in result.findings]
    count = len(result.findings)
    return [*lines, f"{store}: {f'{count} wrong' if count else 'nothing is wrong'}"]


def model_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """``models`` for people."""
    lines = [f"{'name':<16} {'dim':>5} {'parameters':>13}  {'mpp':>4}  licence"]
    for row in rows:
        gated = ", gated" if row["gated"] else ""
        lines.append(
            f"{row['name']:<16} {row['dim']:>5} {row['params']:>13,}  {row['mpp']:>4g}  {row['licence']}{gated}"
        )
        if row["note"]:
            lines.append(f"{'':<16} {row['note']}")
    return lines


def copy_json(out: Path, result: Shared) -> dict[str, Any]:
    """The summary of ``merge`` and ``subset``."""
    info = store_info(out)
    figures = {name: info[name] for name in ("recipe_digest", "seeds", "views", "complete")}
    return {"store": str(out), **asdict(result), **figures, "bytes": sum(info["bytes"].values())}


def copy_lines(summary: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    sources = ", ".join(f"{source['name']} ({source['slides']})" for source in summary["sources"])
    return [
        f"{summary['store']}: {summary['slides']} slides, {summary['patches']} patches, "
        f"{summary['views']} views under {len(summary['seeds'])} seeds, {human_bytes(summary['bytes'])}; "
        f"slides from: {sources}",
        *(f"note: {text}" for text in summary["notes"]),
        *_some("left out, no file of a store or of a slide in its table", summary["left_out"]),
    ]


def reindex_json(store: Path, dry_run: bool, result: Reindexed) -> dict[str, Any]:
    """The summary of ``reindex``."""
    return {"store": str(store), "dry_run": dry_run, **asdict(result)}


def reindex_lines(summary: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    verb = "would be " if summary["dry_run"] else ""
    gone = "removed" if summary["pruned"] else "--prune removes it"
    return [
        *(f"{verb}done: {text}" for text in summary["done"]),
        *_some(f"no commit record lists it, {gone}", summary["leftovers"]),
        *_some("stray, no file of a store, left alone", summary["strays"]),
        *(f"wrong: {text}" for text in summary["problems"]),
        f"{summary['store']}: {_count(summary)}",
    ]


def _count(summary: Mapping[str, Any]) -> str:
    wrong = len(summary["problems"])
    if wrong:
        return f"{wrong} wrong, which nothing else tells how to mend"
    todo = len(summary["done"]) if summary["dry_run"] else 0
    return f"{todo} things to do" if todo else "everything is in line"


def _some(what: str, names: Sequence[str]) -> list[str]:
    lines = [f"{what}: {name!r:.300}" for name in names[:_SHOWN]]
    more = len(names) - _SHOWN
    return [*lines, f"{what}: {more} more, see --json"] if more > 0 else lines
