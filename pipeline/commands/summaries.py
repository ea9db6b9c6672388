"""What the commands print when they are done: one function for JSON, one for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stores.info import store_info
from stores.io.text import human_bytes, one_line


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
